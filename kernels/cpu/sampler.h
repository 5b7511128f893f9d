#pragma once

#include <vector>

#include "absl/status/status.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/penalties.h"
#include "kernels/cpu/token_choice.h"
#include "kernels/ops.h"

namespace penstock::kernels::cpu {

// Temperatures below this are greedy: 1 / temperature must stay a number.
constexpr float kGreedyTemperature = 1e-5f;

// Samples rows of logits, each on one thread. Keeps scratch for every thread of the pool.
class Sampler {
 public:
  explicit Sampler(const Cpu& cpu) : cpu_(cpu), scratch_(cpu.pool->threads()) {}

  // Afterwards Sample allocates nothing.
  void Reserve(int32_t vocab_size);

  // See SampleParams. INTERNAL, naming the row, if a row's logits are NaN or infinite or nothing
  // may be sampled; its id is -1 then, and the other rows are done all the same.
  absl::Status Sample(const SampleParams& p);

 private:
  struct Scratch {
    Penalties penalties;
    TokenChoice choice;
  };

  // The row's id, or -1.
  int32_t SampleRowAt(const SampleParams& p, int32_t i, Scratch* scratch) const;

  const Cpu cpu_;
  std::vector<Scratch> scratch_;  // by thread
};

}  // namespace penstock::kernels::cpu
