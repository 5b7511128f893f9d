// Splits text into words: merges never cross a word's border. One PCRE2 pattern a family, compiled
// with its JIT. The patterns are those of the models' own tokenizer.json files.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace penstock::router {

// What `tokenizer.ggml.pre` stands for.
struct PreTokenizerFamily {
  std::string_view name;  // as in the GGUF
  std::string_view pattern;
  bool nfc;            // text is brought into Unicode's normal form C first
  bool ignore_merges;  // a word that is a token is taken as it is
  bool adds_bos;       // where the GGUF doesn't say
};

// InvalidArgument, with the names known, if there is none.
absl::StatusOr<const PreTokenizerFamily*> FindPreTokenizerFamily(std::string_view name);

// Thread-safe.
class PreTokenizer {
 public:
  static absl::StatusOr<std::unique_ptr<PreTokenizer>> Create(const PreTokenizerFamily& family);
  ~PreTokenizer();
  PreTokenizer(const PreTokenizer&) = delete;
  PreTokenizer& operator=(const PreTokenizer&) = delete;

  // Calls on_word(std::string_view) for each word of `text`, in order; together they are `text`,
  // which must be valid UTF-8.
  template <typename OnWord>
  void Split(std::string_view text, OnWord on_word) const {
    Matcher matcher(*this, text);
    size_t done = 0;
    while (done < text.size()) {
      size_t begin = 0;
      size_t end = 0;
      if (!matcher.Next(done, &begin, &end)) begin = end = text.size();
      // What no alternative matches is a word as well; today's patterns match everything.
      if (begin > done) on_word(text.substr(done, begin - done));
      if (end > begin) on_word(text.substr(begin, end - begin));
      done = end;
    }
  }

 private:
  // PCRE2's scratch space for one text.
  class Matcher {
   public:
    Matcher(const PreTokenizer& pre_tokenizer, std::string_view text);
    ~Matcher();
    Matcher(const Matcher&) = delete;
    Matcher& operator=(const Matcher&) = delete;
    // The first match at or after `from`; false if there is none.
    bool Next(size_t from, size_t* begin, size_t* end);

   private:
    const PreTokenizer& pre_tokenizer_;
    std::string_view text_;
    void* match_data_;
  };

  PreTokenizer() = default;

  void* code_ = nullptr;           // pcre2_code
  void* match_context_ = nullptr;  // pcre2_match_context
};

}  // namespace penstock::router
