// Reads a recording (proto/record.proto), event by event. Not thread-safe.
#pragma once

#include <cstdint>
#include <fstream>
#include <memory>
#include <string>

#include "common/status.h"
#include "proto/record.pb.h"

namespace penstock::scheduler {

class Recording {
 public:
  // NOT_FOUND; INVALID_ARGUMENT if it is no recording, or one of another version.
  static absl::StatusOr<std::unique_ptr<Recording>> Open(const std::string& path);

  const record::Header& header() const { return header_; }

  // The next event (the header is none), valid until the next call; null behind the last. DATA_LOSS
  // names the byte from which on the file is damaged.
  absl::StatusOr<const record::Event*> Next();

  // Once Next has returned null: empty if the recording was ended in order, else what is missing,
  // in words.
  std::string Missing() const;

 private:
  explicit Recording(std::string path) : path_(std::move(path)) {}
  absl::Status ReadHeader();
  absl::StatusOr<bool> ReadBlock();

  const std::string path_;
  std::ifstream file_;
  uint64_t file_bytes_ = 0;
  uint64_t position_ = 0;  // of the next frame
  bool cut_off_ = false;
  bool ended_ = false;
  record::Header header_;
  record::Block block_;
  int next_event_ = 0;
  std::string payload_;
};

}  // namespace penstock::scheduler
