#include "scheduler/record/recording.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <string_view>

#include "scheduler/record/frame.h"
#include "scheduler/record/recorder.h"

namespace penstock::scheduler {

constexpr uint64_t kMagicBytes = sizeof(kRecordMagic) - 1;

absl::StatusOr<std::unique_ptr<Recording>> Recording::Open(const std::string& path) {
  std::unique_ptr<Recording> recording(new Recording(path));
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    return NotFound("recording {}: no such file: give what --record-plans has written", path);
  }
  if (!std::filesystem::is_regular_file(path, error)) {
    return InvalidArgument("recording {}: not a file: give what --record-plans has written", path);
  }
  recording->file_.open(path, std::ios::binary);
  if (!recording->file_) {
    return InvalidArgument("recording {} cannot be read ({}): its owner alone may", path,
                           std::strerror(errno));
  }
  recording->file_bytes_ = std::filesystem::file_size(path, error);
  RETURN_IF_ERROR(recording->ReadHeader());
  return recording;
}

absl::Status Recording::ReadHeader() {
  char magic[kMagicBytes] = {};
  file_.read(magic, kMagicBytes);
  if (std::memcmp(magic, kRecordMagic, kMagicBytes) != 0) {
    return InvalidArgument("{} is not a recording: give what --record-plans has written", path_);
  }
  position_ = kMagicBytes;
  const absl::StatusOr<bool> any = ReadBlock();
  if (!any.ok()) return any.status();
  if (!*any || block_.events_size() == 0 || !block_.events(0).has_header()) {
    return InvalidArgument("recording {} has no header: nothing was written before it was cut off",
                           path_);
  }
  header_ = block_.events(0).header();
  next_event_ = 1;
  if (header_.version() == kRecordVersion) return absl::OkStatus();
  return InvalidArgument(
      "recording {} is of version {} (penstock {}), this program reads version {}: replay it with "
      "the penstock that wrote it",
      path_, header_.version(), header_.penstock_version(), kRecordVersion);
}

// False at the end of the file.
absl::StatusOr<bool> Recording::ReadBlock() {
  block_.Clear();
  next_event_ = 0;
  FrameHead head;
  const uint64_t rest = file_bytes_ - std::min(file_bytes_, position_);
  file_.read(reinterpret_cast<char*>(&head), sizeof(head));
  if (rest < sizeof(head) || rest - sizeof(head) < head.bytes || !file_) {
    cut_off_ = rest > 0;
    return false;
  }
  payload_.resize(head.bytes);
  file_.read(payload_.data(), head.bytes);
  if (!file_ || FrameChecksum(payload_) != head.checksum || !block_.ParseFromString(payload_)) {
    return absl::DataLossError(fmt::format(
        "recording {} is damaged from byte {} of {} on (the checksum of the {} bytes there is "
        "wrong): copy it anew from where it was written",
        path_, position_, file_bytes_, head.bytes));
  }
  position_ += sizeof(head) + head.bytes;
  return true;
}

absl::StatusOr<const record::Event*> Recording::Next() {
  while (next_event_ == block_.events_size()) {
    if (ended_ || cut_off_) return nullptr;
    ASSIGN_OR_RETURN(const bool any, ReadBlock());
    if (!any) return nullptr;
  }
  const record::Event& event = block_.events(next_event_++);
  if (!event.has_end()) return &event;
  ended_ = true;
  next_event_ = block_.events_size();
  return nullptr;
}

std::string Recording::Missing() const {
  if (ended_) return "";
  if (cut_off_) {
    return fmt::format(
        "the recording is cut off: from byte {} of {} on there is less than a whole block (its "
        "scheduler was killed, its disk was full, or it is not wholly copied)",
        position_, file_bytes_);
  }
  return "the recording has no end: its scheduler was killed, stopped recording, or still runs";
}

}  // namespace penstock::scheduler
