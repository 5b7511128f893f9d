#include "router/tokenizer/pre_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <limits>

#include "fmt/format.h"

namespace penstock::router {
namespace {

// Unicode's White_Space, which is what \s means to the models' own tokenisers. PCRE2's \s has
// U+180E (Mongolian vowel separator) as well, and in a negated class needs care: so it is spelt
// out.
#define WS \
  R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})"

constexpr std::string_view kGpt2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^)" WS
                                   R"(\p{L}\p{N}]+|[)" WS R"(]+(?![^)" WS R"(])|[)" WS R"(]+)";

// Digits(individual_digits) and then GPT-2's split of the pieces, in one pattern: a number is its
// own word, and white space before one isn't followed by anything, as far as GPT-2's look-ahead can
// see.
constexpr std::string_view kSmollm =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^)" WS R"(\p{L}\p{N}]+|[)" WS R"(]+(?![^)" WS
    R"(\p{N}])|[)" WS R"(]+)";

#define LLAMA3_PATTERN(numbers)                                                     \
  R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|)" numbers R"(| ?[^)" WS \
  R"(\p{L}\p{N}]+[\r\n]*|[)" WS R"(]*[\r\n]+|[)" WS R"(]+(?![^)" WS R"(])|[)" WS R"(]+)"

constexpr std::string_view kLlama3 = LLAMA3_PATTERN(R"(\p{N}{1,3})");
constexpr std::string_view kQwen2 = LLAMA3_PATTERN(R"(\p{N})");

constexpr PreTokenizerFamily kFamilies[] = {
    {"gpt-2", kGpt2, false, false, false},       {"smollm", kSmollm, false, false, false},
    {"starcoder", kSmollm, false, false, false}, {"refact", kSmollm, false, false, false},
    {"llama-bpe", kLlama3, false, true, true},   {"llama3", kLlama3, false, true, true},
    {"llama-v3", kLlama3, false, true, true},    {"qwen2", kQwen2, true, false, false},
};

}  // namespace

absl::StatusOr<const PreTokenizerFamily*> FindPreTokenizerFamily(std::string_view name) {
  std::string known;
  for (const PreTokenizerFamily& family : kFamilies) {
    if (family.name == name) return &family;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", family.name);
  }
  return absl::InvalidArgumentError(
      fmt::format("tokenizer.ggml.pre is \"{}\", a pre-tokeniser that Penstock doesn't know: serve "
                  "a model with "
                  "one of {}",
                  name, known));
}

absl::StatusOr<std::unique_ptr<PreTokenizer>> PreTokenizer::Create(
    const PreTokenizerFamily& family) {
  std::unique_ptr<PreTokenizer> result(new PreTokenizer());
  int error = 0;
  PCRE2_SIZE error_offset = 0;
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(family.pattern.data()), family.pattern.size(),
                    PCRE2_UTF | PCRE2_UCP, &error, &error_offset, nullptr);
  result->code_ = code;
  if (code == nullptr || pcre2_jit_compile(code, PCRE2_JIT_COMPLETE) != 0) {
    return absl::InternalError(
        fmt::format("PCRE2 can't compile the pre-tokeniser \"{}\" (error {} at {}): it needs UTF "
                    "and JIT support",
                    family.name, error, error_offset));
  }
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  // A long word may take long, but must not be cut.
  pcre2_set_match_limit(context, std::numeric_limits<uint32_t>::max());
  result->match_context_ = context;
  return result;
}

PreTokenizer::~PreTokenizer() {
  pcre2_match_context_free(static_cast<pcre2_match_context*>(match_context_));
  pcre2_code_free(static_cast<pcre2_code*>(code_));
}

PreTokenizer::Matcher::Matcher(const PreTokenizer& pre_tokenizer, std::string_view text)
    : pre_tokenizer_(pre_tokenizer),
      text_(text),
      match_data_(pcre2_match_data_create(1, nullptr)) {}

PreTokenizer::Matcher::~Matcher() {
  pcre2_match_data_free(static_cast<pcre2_match_data*>(match_data_));
}

bool PreTokenizer::Matcher::Next(size_t from, size_t* begin, size_t* end) {
  auto* match_data = static_cast<pcre2_match_data*>(match_data_);
  const int rc =
      pcre2_jit_match(static_cast<const pcre2_code*>(pre_tokenizer_.code_),
                      reinterpret_cast<PCRE2_SPTR>(text_.data()), text_.size(), from, 0, match_data,
                      static_cast<pcre2_match_context*>(pre_tokenizer_.match_context_));
  // Nothing else than NOMATCH is known to happen, even over megabytes of one kind of character: the
  // patterns' repeats take no stack. Were it to, the rest would be one word rather than a crash.
  if (rc <= 0) return false;
  const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(match_data);
  *begin = offsets[0];
  *end = offsets[1];
  return true;
}

}  // namespace penstock::router
