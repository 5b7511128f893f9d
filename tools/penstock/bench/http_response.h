// The client's side of HTTP/1.1, as much as a benchmark needs: responses taken apart as their bytes
// come (RFC 9112; lengths, chunks, or until the connection closes), and lines of their bodies.
#pragma once

#include <string>
#include <string_view>

#include "common/status.h"

namespace penstock::bench {

class HttpResponse {
 public:
  // Takes bytes of one response and appends to *body what they hold of its body. INTERNAL if they
  // are not HTTP. Bytes after the response's end are an error too: nothing was asked yet.
  absl::Status Feed(std::string_view bytes, std::string* body);
  // The connection was closed. INTERNAL if the response isn't whole.
  absl::Status Close();

  bool done() const { return state_ == State::kDone; }
  int status() const { return status_; }  // 0: not known yet
  // Whether the connection can be used again, once done.
  bool keep_alive() const { return keep_alive_; }

 private:
  enum class State { kHead, kLength, kChunkSize, kChunk, kChunkEnd, kTrailer, kUntilClose, kDone };

  absl::Status TakeHead(std::string_view head);
  absl::Status TakeHeader(std::string_view line);
  absl::Status TakeChunkSize(std::string_view line);
  // Takes a whole line off *bytes, without its end; false if it isn't whole yet.
  bool TakeLine(std::string_view* bytes, std::string* line);

  State state_ = State::kHead;
  int status_ = 0;
  bool keep_alive_ = true;
  bool chunked_ = false;
  bool has_length_ = false;
  size_t left_ = 0;   // bytes of the body or the chunk still to come
  std::string line_;  // of which a part has come
};

}  // namespace penstock::bench
