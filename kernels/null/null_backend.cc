#include "kernels/null/null_backend.h"

#include <time.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdlib>
#include <utility>

#include "common/status.h"

namespace penstock::kernels::null {
namespace {

constexpr int64_t kNanosPerSecond = 1'000'000'000;

// Zeroed, and no page is in memory before it is touched.
class NullBuffer : public Buffer {
 public:
  explicit NullBuffer(size_t size) {
    data = std::calloc(std::max<size_t>(size, 1), 1);
    bytes = size;
  }
  ~NullBuffer() override { std::free(data); }
};

class NullWeight : public Weight {
 public:
  NullWeight(int64_t num_rows, int64_t num_cols) {
    rows = num_rows;
    cols = num_cols;
  }
};

int64_t NowNanos() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * kNanosPerSecond + now.tv_nsec;
}

class NullBackend : public Backend {
 public:
  explicit NullBackend(const NullOptions& options) : options_(options) {}

  std::string_view name() const override { return "null"; }
  DType activation_dtype() const override { return DType::kF32; }
  bool batch_invariant() const override { return true; }
  bool needs_weights() const override { return false; }

  absl::StatusOr<std::unique_ptr<Buffer>> Allocate(size_t bytes) override {
    auto buffer = std::make_unique<NullBuffer>(bytes);
    if (buffer->data == nullptr) {
      return ResourceExhausted("out of memory: {} bytes were asked for; lower the KV cache's size",
                               bytes);
    }
    return std::unique_ptr<Buffer>(std::move(buffer));
  }

  absl::StatusOr<std::unique_ptr<Weight>> LoadWeight(std::span<const WeightSegment> segments,
                                                     WeightUse) override {
    int64_t rows = 0;
    for (const WeightSegment& segment : segments) rows += segment.rows;
    return std::make_unique<NullWeight>(rows, segments.empty() ? 0 : segments[0].cols);
  }

  absl::StatusOr<std::unique_ptr<Weight>> RandomWeight(WeightFormat, int64_t rows, int64_t cols,
                                                       WeightUse, uint64_t) override {
    return std::make_unique<NullWeight>(rows, cols);
  }

  absl::StatusOr<std::unique_ptr<Weight>> WeightRows(const Weight& weight, int64_t,
                                                     int64_t count) override {
    return std::make_unique<NullWeight>(count, weight.cols);
  }

  absl::Status Reserve(const ReserveParams&) override { return absl::OkStatus(); }
  absl::Status BindTokens(TokenTable, int32_t, std::span<const int32_t>) override {
    return absl::OkStatus();
  }

  absl::Status CopyPages(const CopyPagesParams&) override { return absl::OkStatus(); }
  absl::Status Upload(const Buffer&, const void*, size_t) override { return absl::OkStatus(); }

  absl::Status Embed(const EmbedParams&) override { return absl::OkStatus(); }
  absl::Status AddRmsNorm(const AddRmsNormParams&) override { return absl::OkStatus(); }
  absl::Status Linear(const LinearParams&) override { return absl::OkStatus(); }
  absl::Status RopeKvWrite(const RopeKvWriteParams&) override { return absl::OkStatus(); }
  absl::Status Attention(const AttentionParams&) override { return absl::OkStatus(); }
  absl::Status GatedActivation(const GatedActivationParams&) override { return absl::OkStatus(); }
  absl::Status GatedLinear(const GatedLinearParams&) override { return absl::OkStatus(); }
  absl::Status GatherRows(const GatherRowsParams&) override { return absl::OkStatus(); }
  absl::Status Logits(const LogitsParams&) override { return absl::OkStatus(); }

  absl::Status Sample(const SampleParams& p) override {
    for (int32_t i = 0; i < p.count; ++i) {
      const SampleRow& row = p.rows[i];
      const int32_t id = row.target_id >= 0
                             ? row.target_id
                             : NullToken(row.params->seed, row.position, options_.vocab_size);
      p.ids_out[i] = id;
      if (row.num_top >= 0) FillLogprobs(id, row.num_top, &p.logprobs_out[i]);
    }
    return absl::OkStatus();
  }

  int max_steps_in_flight() const override { return options_.step_us > 0 ? kMaxStepsInFlight : 1; }

  absl::StatusOr<BegunStep> BeginStep(const StepInputs& inputs) override {
    const int64_t now_ns = NowNanos();
    Run& run = runs_[num_begun_++ % kMaxStepsInFlight];
    run.idle_ns = last_end_ns_ == 0 ? 0 : std::max<int64_t>(0, now_ns - last_end_ns_);
    run.end_ns = std::max(now_ns, last_end_ns_) + options_.step_us * 1000;
    last_end_ns_ = run.end_ns;
    return BegunStep{.rows = inputs.rows};
  }

  absl::StatusOr<StepReport> WaitStep() override {
    const Run& run = runs_[num_waited_++ % kMaxStepsInFlight];
    if (options_.step_us > 0) SleepUntil(run.end_ns);
    return StepReport{.run_ns = options_.step_us * 1000, .idle_ns = run.idle_ns};
  }

 private:
  static constexpr int kMaxStepsInFlight = 2;
  struct Run {
    int64_t end_ns = 0;
    int64_t idle_ns = 0;
  };

  static void SleepUntil(int64_t end_ns) {
    const timespec deadline = {.tv_sec = end_ns / kNanosPerSecond,
                               .tv_nsec = end_ns % kNanosPerSecond};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &deadline, nullptr) == EINTR) {
    }
  }

  static void FillLogprobs(int32_t id, int32_t num_top, SampledLogprobs* out) {
    out->logprob = 0;
    out->rank = 1;
    out->num_top = std::min(num_top, kMaxTopLogprobs);
    for (int32_t i = 0; i < out->num_top; ++i) {
      out->top_id[i] = id;
      out->top_logprob[i] = 0;
    }
  }

  const NullOptions options_;
  std::array<Run, kMaxStepsInFlight> runs_;  // of step n at n % kMaxStepsInFlight
  int64_t last_end_ns_ = 0;
  uint64_t num_begun_ = 0, num_waited_ = 0;
};

}  // namespace

int32_t NullToken(uint64_t seed, int32_t position, int32_t vocab_size) {
  constexpr int32_t kFirst = 100;
  constexpr int32_t kEnd = 1100;
  // Neighbouring positions are far apart: a multiplicative hash (Knuth).
  const uint32_t hash =
      (static_cast<uint32_t>(position) * 2654435761u + static_cast<uint32_t>(seed) * 40503u) >> 8;
  const int32_t end = std::min(vocab_size, kEnd);
  if (end <= kFirst) return static_cast<int32_t>(hash % std::max(vocab_size, 1));
  return kFirst + static_cast<int32_t>(hash % (end - kFirst));
}

std::unique_ptr<Backend> MakeNullBackend(const NullOptions& options) {
  return std::make_unique<NullBackend>(options);
}

}  // namespace penstock::kernels::null
