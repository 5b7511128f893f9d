// What is done to a text before it is split into words: the steps of a tokenizer.json's normalizer
// that byte-pair models use.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace penstock::router {

struct NormalizerStep {
  enum class Kind {
    kNfc,      // Unicode's normal form C
    kPrepend,  // puts `text` before a text that isn't empty
    kReplace,  // `from`, which isn't empty, becomes `text`
  };
  Kind kind = Kind::kNfc;
  std::string text;
  std::string from;
};

// Immutable.
class Normalizer {
 public:
  explicit Normalizer(std::vector<NormalizerStep> steps) : steps_(std::move(steps)) {}

  // `text`, valid UTF-8, after all steps: itself, or a view of *storage.
  std::string_view Apply(std::string_view text, std::string* storage) const;

 private:
  const std::vector<NormalizerStep> steps_;
};

// `text` with each `from`, which isn't empty, replaced by `to`.
std::string ReplaceAll(std::string_view text, std::string_view from, std::string_view to);

}  // namespace penstock::router
