#include "router/service/output.h"

#include <algorithm>
#include <cmath>

namespace penstock::router {

void KeepBest(int n, std::vector<Output>* choices) {
  const auto mean = [](const Output& output) {
    const double mean = output.num_tokens == 0 ? 0 : output.sum_logprob / output.num_tokens;
    return std::isnan(mean) ? -HUGE_VAL : mean;
  };
  std::stable_sort(choices->begin(), choices->end(),
                   [&](const Output& a, const Output& b) { return mean(a) > mean(b); });
  choices->resize(std::min(choices->size(), static_cast<size_t>(n)));
  for (size_t i = 0; i < choices->size(); ++i) (*choices)[i].choice = static_cast<int>(i);
}

}  // namespace penstock::router
