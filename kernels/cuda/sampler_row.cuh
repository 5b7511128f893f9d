// One row, from logits to id and log-probabilities. The steps and their order are those of
// kernels/cpu/sampler.cc, penalties.cc and token_choice.cc.
#pragma once

#include <cmath>

#include "kernels/cuda/sampler.h"
#include "kernels/cuda/sampler_search.cuh"
#include "kernels/philox.h"

namespace penstock::kernels::cuda {

constexpr float kLowest = -__builtin_huge_valf();
constexpr float kGreedyTemperature = 1e-5f;  // as on the CPU: below it, greedy

struct Best {
  float value;
  int32_t id;
  int32_t bad;  // not 0 if any logit is NaN or infinite
};

__device__ __forceinline__ Best Better(const Best& a, const Best& b) {
  const bool first = a.value > b.value || (a.value == b.value && a.id < b.id);
  return {first ? a.value : b.value, first ? a.id : b.id, a.bad | b.bad};
}

// The best of the values it is shown, ids rising.
class BestSoFar {
 public:
  __device__ __forceinline__ void Show(float value, int id) {
    if (value > value_) {
      value_ = value;
      id_ = id;
    }
    odd_ = fmaf(value, 0.0f, odd_);  // stays 0 as long as all are finite
  }
  __device__ __forceinline__ Best best() const { return {value_, id_, odd_ == 0 ? 0 : 1}; }

 private:
  float value_ = kLowest;
  int id_ = INT_MAX;
  float odd_ = 0;
};

// This block's slice of a row, copied to team.values; the best of what this thread copied.
template <typename Team>
__device__ Best LoadSlice(Team& team, const float* logits, bool aligned) {
  constexpr int kInFlight = 4;
  BestSoFar best;
  const float* from = logits + team.begin;
  if (!aligned) {
    for (int i = team.thread; i < team.size; i += kSamplerThreads) {
      team.values[i] = from[i];
      best.Show(from[i], team.begin + i);
    }
    return best.best();
  }
  const int vectors = team.size / 4;
#pragma unroll 1
  for (int first = team.thread; first < vectors; first += kInFlight * kSamplerThreads) {
    float4 loaded[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      const int i = first + u * kSamplerThreads;
      if (i < vectors) loaded[u] = reinterpret_cast<const float4*>(from)[i];
    }
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) {
      const int i = first + u * kSamplerThreads;
      if (i >= vectors) break;
      reinterpret_cast<float4*>(team.values)[i] = loaded[u];
      const int id = team.begin + 4 * i;
      best.Show(loaded[u].x, id);
      best.Show(loaded[u].y, id + 1);
      best.Show(loaded[u].z, id + 2);
      best.Show(loaded[u].w, id + 3);
    }
  }
  return best.best();
}

template <typename Team>
__device__ void AddBiases(Team& team, const int32_t* biases, int count) {
  for (int i = team.thread; i < count; i += kSamplerThreads) {
    const int id = biases[2 * i];
    const int at = id - team.begin;
    if (at < 0 || at >= team.size) continue;
    // The first entry of an id adds the later ones too, in order.
    bool first = true;
    for (int j = 0; j < i && first; ++j) first = biases[2 * j] != id;
    if (!first) continue;
    float value = team.values[at];
    for (int j = i; j < count; ++j) {
      if (biases[2 * j] == id) value += __int_as_float(biases[2 * j + 1]);
    }
    team.values[at] = value;
  }
  __syncthreads();
}

// `uses`: twice the times in the output, plus 1 if in the prompt. Rounds as the CPU does: no fused
// multiply-adds.
__device__ __forceinline__ float Penalised(const DeviceSampleRow& row, float logit, int uses) {
  logit = logit > 0 ? __fdiv_rn(logit, row.repetition_penalty)
                    : __fmul_rn(logit, row.repetition_penalty);
  const int outputs = uses / 2;
  logit = __fsub_rn(logit, __fmul_rn(row.frequency_penalty, static_cast<float>(outputs)));
  return outputs > 0 ? __fsub_rn(logit, row.presence_penalty) : logit;
}

template <typename Team>
__device__ void Penalise(Team& team, const DeviceSampleRow& row, const int32_t* ids) {
  int32_t* counts = team.scratch.counts;
  // Presence and frequency look at the output alone.
  const int first = row.repetition_penalty != 1.0f ? 0 : row.prompt_len;
  for (int window = 0; window < team.size; window += kCountWindow) {
    const int width = min(kCountWindow, team.size - window);
    for (int i = team.thread; i < width; i += kSamplerThreads) counts[i] = 0;
    __syncthreads();
    for (int i = first + team.thread; i < row.position; i += kSamplerThreads) {
      const int at = ids[i] - team.begin - window;
      if (at < 0 || at >= width) continue;
      if (i >= row.prompt_len) {
        atomicAdd(&counts[at], 2);
      } else {
        atomicOr(&counts[at], 1);
      }
    }
    __syncthreads();
    for (int i = team.thread; i < width; i += kSamplerThreads) {
      if (counts[i] == 0) continue;
      team.values[window + i] = Penalised(row, team.values[window + i], counts[i]);
    }
    __syncthreads();
  }
}

// Logit bias, min_tokens mask, penalties. Returns whether the row asks for any.
template <typename Team>
__device__ bool ChangeLogits(Team& team, const DeviceSampleRow& row, const int32_t* side,
                             const int32_t* ids) {
  if (row.bias_count > 0) AddBiases(team, side + row.bias_begin, row.bias_count);
  if (row.stop_count > 0) {
    for (int i = team.thread; i < row.stop_count; i += kSamplerThreads) {
      const int at = side[row.stop_begin + i] - team.begin;
      if (at >= 0 && at < team.size) team.values[at] = kLowest;
    }
    __syncthreads();
  }
  const bool penalties = row.repetition_penalty != 1.0f || row.presence_penalty != 0.0f ||
                         row.frequency_penalty != 0.0f;
  if (penalties) Penalise(team, row, ids);
  return penalties || row.bias_count > 0 || row.stop_count > 0;
}

// All threads: the key of the last id that is needed for `mass`, values being weights, `count` of
// them not 0.
template <typename Team>
__device__ uint64_t FindCut(Team& team, double mass, int count) {
  const uint32_t none = OrderOf(0.0f);
  const auto guess = [none](uint32_t low, uint32_t high) {
    if (low == none) return OrderOf(ValueOf(high) * 0.01f);
    return low + (high - low) / 2;  // about the geometric mean
  };
  const KeyWindow all = {MakeKey(none, kAllIds), MakeKey(OrderOf(1.0f), kAllIds), count, 0, 0};
  const KeyWindow window = Narrow<true>(team, all, mass, /*to_top=*/false, guess);
  const int n = CollectSorted(team, window.low, window.high);
  SamplerScratch& scratch = team.scratch;
  uint64_t cut = window.low;
  if (team.rank == 0) {
    // Rounding may leave the mass a hair out of reach: all stay, then.
    if (team.thread == 0) scratch.first = max(n - 1, 0);
    const bool listed = team.thread < n;
    const double upto = team.BlockScan(listed ? ValueOfKey(scratch.sorted[team.thread]) : 0.0);
    if (listed && window.mass_high + upto >= mass) atomicMin(&scratch.first, team.thread);
    __syncthreads();
    if (n > 0) cut = scratch.sorted[scratch.first];
  }
  return team.Broadcast(cut, team.rank == 0 && team.thread == 0);
}

// All threads: the id that `uniform` falls on, in the order of ids, values being weights; `strip`
// is the sum of this thread's.
template <typename Team>
__device__ int Pick(Team& team, double strip, double uniform, int fallback) {
  SamplerScratch& scratch = team.scratch;
  if (team.thread == 0) {
    scratch.first = INT_MAX;
    scratch.last = 0;
  }
  const double upto = team.BlockScan(strip);
  if (team.thread == kSamplerThreads - 1) scratch.partial[0] = upto;
  __syncthreads();
  const double* totals = team.Gather(scratch.partial[0]);
  double total = 0;
  for (int r = 0; r < Team::kNumBlocks; ++r) total += totals[r];
  const double target = uniform * total;
  double before = 0;  // of the owner, the block that the target falls on; rounding: the last
  double sum = 0;
  int owner = 0;
  for (int r = 0; r < Team::kNumBlocks && sum <= target; ++r) {
    if (totals[r] == 0) continue;
    owner = r;
    before = sum;
    sum += totals[r];
  }
  bool mine = false;
  if (team.rank == owner) {
    if (strip > 0) {
      if (before + upto > target) atomicMin(&scratch.first, team.thread);
      atomicMax(&scratch.last, team.thread);
    }
    __syncthreads();
    mine = team.thread == (scratch.first != INT_MAX ? scratch.first : scratch.last);
  }
  int id = fallback;
  if (mine) {
    double at = before + (upto - strip);
    for (int i = team.strip_begin; i < team.strip_end && at <= target; ++i) {
      if (team.values[i] == 0) continue;
      at += team.values[i];
      id = team.begin + i;
    }
  }
  return static_cast<int>(team.Broadcast(id, mine));
}

// All threads: draws from the values, which become weights. `best` has the greatest of them.
template <typename Team>
__device__ int Draw(Team& team, const DeviceSampleRow& row, int vocab_size, const Best& best) {
  float least = kLowest;
  if (row.top_k > 0 && row.top_k < vocab_size) {
    const KeyWindow window = NarrowToKth(team, vocab_size, row.top_k, best.value, false);
    CollectSorted(team, window.low, window.high);
    const bool mine = team.rank == 0 && team.thread == 0;
    const uint64_t kth = mine ? team.scratch.sorted[row.top_k - 1 - window.count_high] : 0;
    least = ValueOfKey(team.Broadcast(kth, mine));
  }
  const float factor = 1.0f / row.temperature;
  float strip = 0;
  int count = 0;
  for (int i = team.strip_begin; i < team.strip_end; ++i) {
    const float x = team.values[i];
    float weight = x >= least ? expf((x - best.value) * factor) : 0.0f;
    if (weight < row.min_p) weight = 0;
    team.values[i] = weight;
    strip += weight;
    count += weight > 0;
  }
  if (row.top_p < 1.0f) {
    const Above all = team.Reduce(Above{strip, count}, [](const Above& a, const Above& b) {
      return Above{a.mass + b.mass, a.count + b.count};
    });
    const uint64_t cut = FindCut(team, row.top_p * all.mass, all.count);
    strip = 0;
    for (int i = team.strip_begin; i < team.strip_end; ++i) {
      if (KeyOf(team.values[i], team.begin + i) < cut) team.values[i] = 0;
      strip += team.values[i];
    }
  }
  return Pick(team, strip, UniformAt(row.seed, row.position), best.id);
}

// All threads: log-probabilities; values are the raw logits, `best` has the greatest.
template <typename Team>
__device__ void Report(Team& team, const DeviceSampleRow& row, int vocab_size, const Best& best,
                       int id, float logit, SampledLogprobs* out) {
  float strip = 0;
  for (int i = team.strip_begin; i < team.strip_end; ++i) {
    strip += expf(team.values[i] - best.value);
  }
  const double sum =
      team.Reduce(static_cast<double>(strip), [](double a, double b) { return a + b; });
  const double log_total = best.value + static_cast<double>(logf(static_cast<float>(sum)));
  const int likelier = SumAbove<false>(team, KeyOf(logit, id)).count;
  const int num_top = min(min(row.num_top, kMaxTopLogprobs), vocab_size);
  if (num_top > 0) {
    const KeyWindow window = NarrowToKth(team, vocab_size, num_top, best.value, true);
    CollectSorted(team, window.low, ~uint64_t{0});
    if (team.rank == 0 && team.thread < num_top) {
      const uint64_t key = team.scratch.sorted[team.thread];
      out->top_id[team.thread] = IdOfKey(key);
      out->top_logprob[team.thread] = static_cast<float>(ValueOfKey(key) - log_total);
    }
  }
  if (team.rank == 0 && team.thread == 0) {
    out->logprob = static_cast<float>(logit - log_total);
    out->rank = 1 + likelier;
    out->num_top = num_top;
  }
}

struct SampleArgs {
  const float* logits;
  const DeviceSampleRow* rows;
  const int32_t* side;
  int32_t* ids;
  int64_t ids_stride;
  int32_t* ids_out;
  SampledLogprobs* logprobs_out;
  float* workspace;
  int vocab_size;
};

template <typename Team>
__device__ void SampleOneRow(Team& team, const DeviceSampleRow& row, const SampleArgs& args,
                             int64_t index) {
  const int vocab_size = args.vocab_size;
  const float* logits = args.logits + index * vocab_size;
  const bool aligned = vocab_size % 4 == 0;
  if (team.thread == 0) team.scratch.num_candidates = 0;
  // All blocks of the team must be running before one writes to another's memory.
  Team::Blocks::Arrive();
  Best raw_best = LoadSlice(team, logits, aligned);
  Team::Blocks::Wait();
  raw_best = team.Reduce(raw_best, Better);

  int id = row.target_id < vocab_size ? row.target_id : -1;
  bool changed = false;  // the values are not the raw logits any more
  if (raw_best.bad != 0) {
    id = -1;
  } else if (row.target_id < 0) {
    int32_t* ids = args.ids + row.slot * args.ids_stride;
    Best best = raw_best;
    changed = ChangeLogits(team, row, args.side, ids);
    if (changed) {
      BestSoFar again;
      for (int i = team.strip_begin; i < team.strip_end; ++i) {
        again.Show(team.values[i], team.begin + i);
      }
      best = team.Reduce(again.best(), Better);
    }
    id = isfinite(best.value) ? best.id : -1;
    if (id >= 0 && row.temperature >= kGreedyTemperature) {
      id = Draw(team, row, vocab_size, best);
      changed = true;
    }
    if (id >= 0 && team.rank == 0 && team.thread == 0) ids[row.position] = id;
  }
  if (team.rank == 0 && team.thread == 0) args.ids_out[index] = id;
  if (id < 0 || row.num_top < 0) return;
  if (changed) {
    team.Barrier();
    LoadSlice(team, logits, aligned);
    team.Barrier();
  }
  Report(team, row, vocab_size, raw_best, id, logits[id], args.logprobs_out + index);
}

}  // namespace penstock::kernels::cuda
