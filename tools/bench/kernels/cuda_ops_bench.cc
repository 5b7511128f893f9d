// Times the GPU's simple ops and its sampler at Llama-3.1-8B's shape; a JSON line a measurement:
// microseconds a launch in a chain of launches of one op (programmatic dependent launch), captured
// in a graph. Small inputs come from the L2 cache, as in a step; bytes_per_us is of what an op must
// read and write.
//
//   cuda_ops_bench [ops] [sampler]   (both by default)
#include <cuda_bf16.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/cuda/ops.h"
#include "kernels/cuda/sampler.h"
#include "tests/gpu/device_array.h"

namespace {

using namespace penstock::kernels;
using namespace penstock::kernels::cuda;
using Bf16 = __nv_bfloat16;

constexpr int kHidden = 4096, kHeads = 32, kKvHeads = 8, kHeadSize = 128, kWidth = 14336;
constexpr int kVocab = 128256, kPageSize = 16, kMaxPosition = 4096, kSlots = 256;

void MustBeOk(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  std::exit(1);
}
#define CHECK_CUDA(x) cuda::MustBeOk((x), #x)

// Microseconds a call of `launch(stream, i)`, the median of a few replays of a graph of `chain`.
double TimeChain(int chain, const std::function<absl::Status(cudaStream_t, int)>& launch) {
  cudaStream_t stream;
  CHECK_CUDA(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  CHECK_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < chain; ++i) MustBeOk(launch(stream, i));
  cudaGraph_t graph;
  CHECK_CUDA(cudaStreamEndCapture(stream, &graph));
  cudaGraphExec_t executable;
  CHECK_CUDA(cudaGraphInstantiate(&executable, graph, 0));
  cudaEvent_t begin, end;
  CHECK_CUDA(cudaEventCreate(&begin));
  CHECK_CUDA(cudaEventCreate(&end));
  std::vector<float> times;
  constexpr int kWarmUp = 2, kReplays = 7;
  for (int i = 0; i < kWarmUp + kReplays; ++i) {
    float ms = 0;
    CHECK_CUDA(cudaEventRecord(begin, stream));
    CHECK_CUDA(cudaGraphLaunch(executable, stream));
    CHECK_CUDA(cudaEventRecord(end, stream));
    CHECK_CUDA(cudaEventSynchronize(end));
    CHECK_CUDA(cudaEventElapsedTime(&ms, begin, end));
    if (i >= kWarmUp) times.push_back(ms);
  }
  std::nth_element(times.begin(), times.begin() + kReplays / 2, times.end());
  CHECK_CUDA(cudaEventDestroy(begin));
  CHECK_CUDA(cudaEventDestroy(end));
  CHECK_CUDA(cudaGraphExecDestroy(executable));
  CHECK_CUDA(cudaGraphDestroy(graph));
  CHECK_CUDA(cudaStreamDestroy(stream));
  return times[kReplays / 2] * 1000.0 / chain;
}

void Print(const std::string& op, int rows, double us, double bytes) {
  std::printf("{\"op\": \"%s\", \"rows\": %d, \"us\": %.2f, \"bytes_per_us\": %.0f}\n", op.c_str(),
              rows, us, bytes / us);
  std::fflush(stdout);
}

void BenchOps() {
  constexpr int kMax = 2048, kQkv = (kHeads + 2 * kKvHeads) * kHeadSize, kChain = 128;
  const DeviceVector<Bf16> a(size_t{kMax} * 2 * kWidth), b(size_t{kMax} * kWidth);
  const DeviceVector<Bf16> c(size_t{kMax} * kHidden), table(size_t{kVocab} * kHidden);
  for (const auto* v : {&a, &b, &c, &table}) {
    const size_t count = v == &a   ? size_t{kMax} * 2 * kWidth
                         : v == &b ? size_t{kMax} * kWidth
                         : v == &c ? size_t{kMax} * kHidden
                                   : size_t{kVocab} * kHidden;
    MustBeOk(FillRandomWeight(nullptr, v->get(), static_cast<int64_t>(count), 1, 0));
  }
  const DeviceVector<float> weight(std::vector<float>(kHidden, 0.5f));
  const DeviceVector<float> angles(std::vector<float>(kMaxPosition * kHeadSize, 0.7f));
  std::mt19937 random(3);
  std::vector<int32_t> slots(kMax), positions(kMax), pages(kSlots * kMaxPosition / kPageSize);
  std::vector<int32_t> ids(kSlots * kMaxPosition);
  for (int t = 0; t < kMax; ++t) slots[t] = t % kSlots, positions[t] = t / kSlots * 300;
  for (size_t i = 0; i < pages.size(); ++i) pages[i] = static_cast<int32_t>(i % 8192);
  std::shuffle(pages.begin(), pages.end(), random);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % kVocab);
  const DeviceVector<int32_t> device_slots(slots), device_positions(positions);
  const DeviceVector<int32_t> device_pages(pages), device_ids(ids);
  const size_t cache = size_t{8192} * kPageSize * kKvHeads * kHeadSize;
  const DeviceVector<Bf16> k(cache), v(cache);
  for (const int rows : {1, 32, 256, 2048}) {
    BatchRows batch;
    batch.num_tokens = rows;
    batch.page_table = device_pages.get();
    batch.page_table_stride = kMaxPosition / kPageSize;
    batch.slot_of_token = device_slots.get();
    batch.position_of_token = device_positions.get();
    const double row_bytes = 2.0 * rows;
    Print("add_rms_norm", rows,
          TimeChain(kChain,
                    [&](cudaStream_t stream, int) {
                      return AddRmsNorm(stream, {.x = b.get(),
                                                 .residual = c.get(),
                                                 .weight = weight.get(),
                                                 .out = a.get(),
                                                 .num_tokens = rows,
                                                 .hidden = kHidden});
                    }),
          row_bytes * kHidden * 4);
    Print("rope_kv_write", rows,
          TimeChain(kChain,
                    [&](cudaStream_t stream, int) {
                      return RopeKvWrite(stream,
                                         {.qkv = a.get(),
                                          .num_heads = kHeads,
                                          .num_kv_heads = kKvHeads,
                                          .head_size = kHeadSize,
                                          .rotary_size = kHeadSize,
                                          .cos_sin = angles.get(),
                                          .batch = &batch,
                                          .kv = {k.get(), v.get(), DType::kBF16, kPageSize}});
                    }),
          row_bytes * (2.0 * kQkv + kKvHeads * kHeadSize));
    Print("gated_activation", rows,
          TimeChain(kChain,
                    [&](cudaStream_t stream, int) {
                      return GatedActivation(
                          stream,
                          {.x = a.get(), .out = b.get(), .num_tokens = rows, .width = kWidth});
                    }),
          row_bytes * kWidth * 3);
    Print("embed (plain launch)", rows,
          TimeChain(
              kChain,
              [&](cudaStream_t stream, int) {
                return Embed(
                    stream, table.get(), kVocab, kHidden,
                    {.tokens = {device_ids.get(), kMaxPosition}, .batch = &batch, .out = c.get()});
              }),
          row_bytes * kHidden * 2);
    Print("gather_rows", rows,
          TimeChain(kChain,
                    [&](cudaStream_t stream, int) {
                      return GatherRows(stream, {.x = c.get(),
                                                 .index = device_slots.get(),
                                                 .out = b.get(),
                                                 .count = rows,
                                                 .hidden = kHidden});
                    }),
          row_bytes * kHidden * 2);
  }
  const int64_t weights = int64_t{kVocab} * kHidden;
  Print("random_weight", kVocab,
        TimeChain(2, [&](cudaStream_t stream,
                         int i) { return FillRandomWeight(stream, table.get(), weights, i, 0); }),
        2.0 * static_cast<double>(weights));
}

void BenchSampler() {
  constexpr int kMaxRows = 256, kPosition = 2000, kPromptLen = 1000, kDistinct = 8;
  std::mt19937 random(4);
  std::normal_distribution<float> normal(0, 3);
  std::vector<float> some(size_t{kDistinct} * kVocab);
  for (float& logit : some) logit = normal(random);
  std::vector<float> logits;
  for (int i = 0; i < kMaxRows / kDistinct; ++i) {
    logits.insert(logits.end(), some.begin(), some.end());
  }
  std::vector<int32_t> table(kMaxRows * kMaxPosition);
  for (int32_t& id : table) id = static_cast<int32_t>(random() % kVocab);
  const DeviceVector<float> device_logits(logits);
  const DeviceVector<int32_t> device_table(table), side(1), ids(kMaxRows);
  const DeviceVector<SampledLogprobs> logprobs(kMaxRows);
  const auto plan = PlanSampler(kVocab);
  MustBeOk(plan.status());
  const DeviceVector<char> workspace(kMaxRows * plan->workspace_bytes_per_row);
  const struct {
    const char* name;
    SamplingParams params;
    int num_top = -1;
  } kinds[] = {
      {"greedy", {.temperature = 0}},
      {"temperature", {.temperature = 0.8f}},
      {"top_k 50, top_p 0.9", {.temperature = 0.8f, .top_k = 50, .top_p = 0.9f}},
      {"top_p 0.9", {.temperature = 0.8f, .top_p = 0.9f}},
      {"top_k 1000", {.temperature = 0.8f, .top_k = 1000}},
      {"penalties, greedy",
       {.temperature = 0, .repetition_penalty = 1.1f, .frequency_penalty = 0.2f}},
      {"greedy, logprobs 20", {.temperature = 0}, 20},
      {"top_p 0.9, penalties, logprobs 5",
       {.temperature = 0.8f, .top_p = 0.9f, .presence_penalty = 0.2f},
       5},
  };
  for (const auto& kind : kinds) {
    for (const int rows : {1, 64, 256}) {
      std::vector<SampleRow> sample_rows;
      for (int i = 0; i < rows; ++i) {
        sample_rows.push_back({.params = &kind.params,
                               .slot = i,
                               .position = kPosition,
                               .prompt_len = kPromptLen,
                               .num_top = kind.num_top});
      }
      std::vector<DeviceSampleRow> packed(rows);
      int32_t none = 0;
      MustBeOk(PackSampleRows(sample_rows, packed, {&none, 1}).status());
      const DeviceVector<DeviceSampleRow> device_rows(packed);
      const double us = TimeChain(rows == 1 ? 64 : 8, [&](cudaStream_t stream, int) {
        return Sample(stream, *plan,
                      {.logits = device_logits.get(),
                       .count = rows,
                       .rows = device_rows.get(),
                       .side = side.get(),
                       .tokens = {device_table.get(), kMaxPosition},
                       .ids_out = ids.get(),
                       .logprobs_out = logprobs.get(),
                       .workspace = workspace.get()});
      });
      Print(std::string("sample: ") + kind.name, rows, us, 4.0 * rows * kVocab);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: no GPU here\n");
    return 0;
  }
  const auto wanted = [&](std::string_view part) {
    return argc == 1 || std::any_of(argv + 1, argv + argc, [&](char* arg) { return part == arg; });
  };
  if (wanted("ops")) BenchOps();
  if (wanted("sampler")) BenchSampler();
}
