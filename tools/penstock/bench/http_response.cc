#include "tools/penstock/bench/http_response.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <utility>

namespace penstock::bench {
namespace {

constexpr size_t kMaxLine = 1 << 16;

std::string Lower(std::string_view text) {
  std::string lower(text);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return lower;
}

std::string_view Trimmed(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t") - begin + 1);
}

}  // namespace

bool HttpResponse::TakeLine(std::string_view* bytes, std::string* line) {
  const size_t end = bytes->find('\n');
  line_.append(bytes->substr(0, end));
  bytes->remove_prefix(end == std::string_view::npos ? bytes->size() : end + 1);
  if (end == std::string_view::npos) return false;
  if (!line_.empty() && line_.back() == '\r') line_.pop_back();
  *line = std::exchange(line_, {});
  return true;
}

absl::Status HttpResponse::TakeHead(std::string_view line) {
  if (status_ == 0) {
    const bool http = line.starts_with("HTTP/1.") && line.size() >= 12;
    if (!http || std::from_chars(line.data() + 9, line.data() + 12, status_).ec != std::errc()) {
      return Internal("this is no HTTP/1.1 server: it answered \"{}\"", line.substr(0, 80));
    }
    keep_alive_ = line[7] != '0';
    return absl::OkStatus();
  }
  if (!line.empty()) return TakeHeader(line);
  if (status_ == 100) {  // Continue: the response proper follows
    status_ = 0;
  } else if (status_ == 204 || (has_length_ && !chunked_ && left_ == 0)) {
    state_ = State::kDone;
  } else if (chunked_) {
    state_ = State::kChunkSize;
  } else if (has_length_) {
    state_ = State::kLength;
  } else {
    state_ = State::kUntilClose;
    keep_alive_ = false;
  }
  return absl::OkStatus();
}

absl::Status HttpResponse::TakeHeader(std::string_view line) {
  const size_t colon = line.find(':');
  if (colon == std::string_view::npos) {
    return Internal("the server sent a header without a colon: \"{}\"", line.substr(0, 80));
  }
  const std::string name = Lower(line.substr(0, colon));
  const std::string value = Lower(Trimmed(line.substr(colon + 1)));
  if (name == "transfer-encoding") {
    chunked_ = value == "chunked";
  } else if (name == "connection") {
    keep_alive_ = value != "close";
  } else if (name == "content-length") {
    const char* end = value.data() + value.size();
    const auto [parsed, error] = std::from_chars(value.data(), end, left_);
    if (error != std::errc() || parsed != end) {
      return Internal("the server sent content-length \"{}\"", value);
    }
    has_length_ = true;
  }
  return absl::OkStatus();
}

absl::Status HttpResponse::TakeChunkSize(std::string_view line) {
  const std::string_view digits = line.substr(0, line.find(';'));  // without extensions
  const char* end = digits.data() + digits.size();
  const auto [parsed, error] = std::from_chars(digits.data(), end, left_, 16);
  if (error != std::errc() || parsed == digits.data()) {
    return Internal("the server sent chunk size \"{}\"", line.substr(0, 80));
  }
  state_ = left_ == 0 ? State::kTrailer : State::kChunk;
  return absl::OkStatus();
}

absl::Status HttpResponse::Feed(std::string_view bytes, std::string* body) {
  std::string line;
  while (!bytes.empty()) {
    switch (state_) {
      case State::kDone:
        return Internal("the server sent {} bytes that nothing asked for", bytes.size());
      case State::kUntilClose:
        body->append(std::exchange(bytes, {}));
        break;
      case State::kLength:
      case State::kChunk: {
        const size_t count = std::min(left_, bytes.size());
        body->append(bytes.substr(0, count));
        bytes.remove_prefix(count);
        left_ -= count;
        if (left_ == 0) state_ = state_ == State::kChunk ? State::kChunkEnd : State::kDone;
        break;
      }
      default:  // line by line
        if (line_.size() > kMaxLine) return Internal("the server sent an endless header line");
        if (!TakeLine(&bytes, &line)) break;
        if (state_ == State::kHead) {
          RETURN_IF_ERROR(TakeHead(line));
        } else if (state_ == State::kChunkSize) {
          RETURN_IF_ERROR(TakeChunkSize(line));
        } else if (state_ == State::kChunkEnd) {
          state_ = State::kChunkSize;
        } else if (line.empty()) {
          state_ = State::kDone;  // the trailer's end
        }
    }
  }
  return absl::OkStatus();
}

absl::Status HttpResponse::Close() {
  if (state_ == State::kUntilClose) state_ = State::kDone;
  keep_alive_ = false;
  return done() ? absl::OkStatus() : Internal("the server closed the connection too early");
}

}  // namespace penstock::bench
