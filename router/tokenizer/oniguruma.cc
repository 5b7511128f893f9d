// PatternFromOniguruma. Source: Oniguruma's doc/RE (Ruby syntax) and pcre2pattern(3).
#include <cctype>

#include "common/status.h"
#include "router/tokenizer/characters.h"
#include "router/tokenizer/regex.h"

namespace penstock::router {
namespace {

// What is a word's character to Oniguruma, for the inside of a class: Latin-1's superscripts and
// fractions too.
constexpr std::string_view kWord =
    R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\x{b2}\x{b3}\x{b9}\x{bc}-\x{be})";

class Translator {
 public:
  explicit Translator(std::string_view pattern) : in_(pattern) {}

  absl::StatusOr<std::string> Run() {
    if (in_.substr(0, 4) == "(?i)") Copy(4);
    while (at_ < in_.size()) {
      switch (in_[at_]) {
        case '\\':
          RETURN_IF_ERROR(Escape(/*in_class=*/false));
          break;
        case '[':
          RETURN_IF_ERROR(Class());
          break;
        case '(':
          RETURN_IF_ERROR(Group());
          break;
        case '{':
          RETURN_IF_ERROR(Braces());
          break;
        default:
          Copy(1);
      }
    }
    return std::move(out_);
  }

 private:
  absl::Status Unknown(std::string_view what) const {
    return Unimplemented("the pattern {} has {} at {}, which Penstock does not translate", in_,
                         what, at_);
  }
  bool At(std::string_view text) const { return in_.substr(at_, text.size()) == text; }
  void Copy(size_t count) {
    out_ += in_.substr(at_, count);
    at_ += count;
  }
  void Put(std::string_view text, size_t count) {
    out_ += text;
    at_ += count;
  }

  // The number of hexadecimal digits at in_[from], at most `limit`.
  size_t NumHex(size_t from, size_t limit) const {
    size_t count = 0;
    while (count < limit && from + count < in_.size() &&
           std::isxdigit(static_cast<unsigned char>(in_[from + count]))) {
      ++count;
    }
    return count;
  }

  absl::Status Escape(bool in_class) {
    if (at_ + 1 == in_.size()) return Unknown("a \\ that escapes nothing");
    const char c = in_[at_ + 1];
    switch (c) {
      case 's':
        Put(in_class ? PENSTOCK_WHITE_SPACE : "[" PENSTOCK_WHITE_SPACE "]", 2);
        return absl::OkStatus();
      case 'S':
        Put(in_class ? R"(\P{White_Space})" : "[^" PENSTOCK_WHITE_SPACE "]", 2);
        return absl::OkStatus();
      case 'w':
        Put(in_class ? std::string(kWord) : fmt::format("[{}]", kWord), 2);
        return absl::OkStatus();
      case 'W':
        if (in_class) return Unknown("\\W in a set");
        Put(fmt::format("[^{}]", kWord), 2);
        return absl::OkStatus();
      case 'd':
        Put(R"(\p{Nd})", 2);
        return absl::OkStatus();
      case 'D':
        Put(R"(\P{Nd})", 2);
        return absl::OkStatus();
      case 'v':  // all vertical white space to PCRE2
        Put(R"(\x{b})", 2);
        return absl::OkStatus();
      case 'p':
      case 'P':
        return Property();
      case 'x':
      case 'u':
        return CodePoint(c);
      case 'n':
      case 'r':
      case 't':
      case 'f':
      case 'a':
      case 'e':
        Copy(2);
        return absl::OkStatus();
      case 'A':
      case 'z':
        if (in_class) return Unknown(fmt::format("\\{} in a set", c));
        Copy(2);
        return absl::OkStatus();
      default:
        if (std::isalnum(static_cast<unsigned char>(c))) return Unknown(fmt::format("\\{}", c));
        Copy(2);  // punctuation, or the first byte of a character that needs no escape
        return absl::OkStatus();
    }
  }

  absl::Status Property() {
    const size_t close = in_.find('}', at_);
    if (at_ + 2 >= in_.size() || in_[at_ + 2] != '{' || close == std::string_view::npos) {
      return Unknown("\\p without {name}");
    }
    Copy(close + 1 - at_);
    return absl::OkStatus();
  }

  // \xHH, \x{H...}, \uHHHH.
  absl::Status CodePoint(char kind) {
    const bool braced = kind == 'x' && at_ + 2 < in_.size() && in_[at_ + 2] == '{';
    const size_t begin = at_ + (braced ? 3 : 2);
    const size_t wanted = kind == 'u' ? 4 : 2;
    const size_t count = NumHex(begin, braced ? 6 : wanted);
    const bool whole = braced ? count > 0 && begin + count < in_.size() && in_[begin + count] == '}'
                              : count == wanted;
    if (!whole) return Unknown("an incomplete code point");
    const std::string digits(in_.substr(begin, count));
    if (kind == 'x' && !braced && digits[0] > '7') return Unknown("a byte that is no character");
    Put(fmt::format("\\x{{{}}}", digits), begin + count + (braced ? 1 : 0) - at_);
    return absl::OkStatus();
  }

  absl::Status Class() {
    Copy(1);
    if (At("^")) Copy(1);
    if (At("]")) return Unknown("a set that begins with ]");
    while (at_ < in_.size() && in_[at_] != ']') {
      if (in_[at_] == '[') return Unknown("a set in a set");
      if (At("&&")) return Unknown("&&");
      if (in_[at_] == '\\') {
        RETURN_IF_ERROR(Escape(/*in_class=*/true));
      } else {
        Copy(1);
      }
    }
    if (at_ == in_.size()) return Unknown("a set without end");
    Copy(1);
    return absl::OkStatus();
  }

  absl::Status Group() {
    if (At("(*")) return Unknown("(*");
    if (!At("(?")) {
      Copy(1);
      return absl::OkStatus();
    }
    for (const std::string_view known :
         {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?-i:"}) {
      if (!At(known)) continue;
      Copy(known.size());
      return absl::OkStatus();
    }
    return Unknown("a group of an unknown kind");
  }

  // {n}, {n,}, {n,m}, {,m}; else a brace.
  absl::Status Braces() {
    size_t end = at_ + 1;
    const auto digits = [&] {
      const size_t begin = end;
      while (end < in_.size() && std::isdigit(static_cast<unsigned char>(in_[end]))) ++end;
      return in_.substr(begin, end - begin);
    };
    const std::string_view low = digits();
    const bool comma = end < in_.size() && in_[end] == ',';
    if (comma) ++end;
    const std::string_view high = comma ? digits() : low;
    if (end >= in_.size() || in_[end] != '}' || (low.empty() && high.empty())) {
      Put("\\{", 1);
      return absl::OkStatus();
    }
    ++end;
    // Ruby's {n,m}+ repeats the range, PCRE2's is possessive; {n}? is another thing to each, too.
    if (end < in_.size() && (in_[end] == '+' || (in_[end] == '?' && !comma))) {
      return Unknown("a sign after a range");
    }
    Put(comma ? fmt::format("{{{},{}}}", low.empty() ? "0" : low, high)
              : fmt::format("{{{}}}", low),
        end - at_);
    return absl::OkStatus();
  }

  const std::string_view in_;
  size_t at_ = 0;
  std::string out_;
};

}  // namespace

absl::StatusOr<std::string> PatternFromOniguruma(std::string_view pattern) {
  return Translator(pattern).Run();
}

}  // namespace penstock::router
