#include "router/tokenizer/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <limits>

#include "common/status.h"

namespace penstock::router {

struct Regex::Compiled {
  pcre2_code* code = nullptr;
  pcre2_match_context* context = nullptr;

  Compiled() = default;
  Compiled(const Compiled&) = delete;
  Compiled& operator=(const Compiled&) = delete;
  ~Compiled() {
    pcre2_match_context_free(context);
    pcre2_code_free(code);
  }
};

absl::StatusOr<Regex> Regex::Compile(std::string_view pattern) {
  auto compiled = std::make_shared<Compiled>();
  int error = 0;
  PCRE2_SIZE offset = 0;
  compiled->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                 PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE, &error, &offset, nullptr);
  if (compiled->code == nullptr) {
    PCRE2_UCHAR message[128] = {};
    pcre2_get_error_message(error, message, sizeof(message));
    return InvalidArgument("the pattern {} is not valid at {}: {}", pattern, offset,
                           reinterpret_cast<const char*>(message));
  }
  if (pcre2_jit_compile(compiled->code, PCRE2_JIT_COMPLETE) != 0) {
    return Internal("PCRE2 can't compile the pattern {}: it needs JIT support", pattern);
  }
  compiled->context = pcre2_match_context_create(nullptr);
  // A long word may take long, but must not be cut.
  pcre2_set_match_limit(compiled->context, std::numeric_limits<uint32_t>::max());
  Regex regex;
  regex.compiled_ = std::move(compiled);
  return regex;
}

std::optional<Regex::Match> Regex::Find(std::string_view text, size_t from) const {
  // One a thread, since nothing of it is needed after the offsets are read.
  struct MatchData {
    pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
    ~MatchData() { pcre2_match_data_free(data); }
  };
  thread_local MatchData match;
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  int rc = pcre2_jit_match(compiled_->code, subject, text.size(), from, 0, match.data,
                           compiled_->context);
  if (rc == PCRE2_ERROR_JIT_STACKLIMIT) {
    // The interpreter takes what it needs from the heap.
    rc = pcre2_match(compiled_->code, subject, text.size(), from, PCRE2_NO_JIT, match.data,
                     compiled_->context);
  }
  // Nothing else than NOMATCH is known to happen, even over megabytes of one kind of character.
  // Were it to, the rest would be one word rather than a crash. (0: more groups than offsets have
  // room.)
  if (rc < 0) return std::nullopt;
  const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(match.data);
  return Match{offsets[0], offsets[1]};
}

std::string QuotePattern(std::string_view text) {
  std::string pattern;
  for (const char c : text) {
    const bool plain = (c & 0x80) != 0 || (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') ||
                       (c >= 'a' && c <= 'z') || c == '_' || static_cast<uint8_t>(c) < 0x20;
    if (!plain) pattern += '\\';
    pattern += c;
  }
  return pattern;
}

}  // namespace penstock::router
