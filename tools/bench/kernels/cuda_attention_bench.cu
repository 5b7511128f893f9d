// Times the CUDA attention kernels at Llama-3.1-8B's shape; a JSON line a measurement. KV pages are
// random, in random order, and so many layers of them that the L2 cache holds none from one replay
// to the next.
//
//   cuda_attention_bench [decode] [prefill]   (both by default)
#include <cuda_bf16.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <string_view>
#include <vector>

#include "kernels/cuda/attention.h"

namespace {

using namespace penstock::kernels;
using namespace penstock::kernels::cuda;

constexpr int kHeads = 32, kKvHeads = 8, kHeadSize = 128, kPageSize = 16;
constexpr int kQueryStride = (kHeads + 2 * kKvHeads) * kHeadSize;
constexpr size_t kPageElements = size_t{kPageSize} * kKvHeads * kHeadSize;

void Check(cudaError_t error, int line) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "line %d: %s\n", line, cudaGetErrorString(error));
  std::exit(1);
}
void Check(const absl::Status& status, int line) {
  if (status.ok()) return;
  std::fprintf(stderr, "line %d: %s\n", line, std::string(status.message()).c_str());
  std::exit(1);
}
#define CHECK_OK(x) Check((x), __LINE__)

// Values in +-1 from a hash of the index.
__global__ void Fill(__nv_bfloat16* to, size_t count) {
  const size_t step = size_t{gridDim.x} * blockDim.x;
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u + static_cast<uint32_t>(i >> 32);
    x ^= x >> 16;
    x *= 0x85ebca6bu;
    x ^= x >> 13;
    to[i] = __float2bfloat16(static_cast<int32_t>(x) * (1.0f / 2147483648.0f));
  }
}

template <typename T>
T* Upload(const std::vector<T>& values) {
  T* data = nullptr;
  CHECK_OK(cudaMalloc(&data, std::max<size_t>(1, values.size()) * sizeof(T)));
  CHECK_OK(cudaMemcpy(data, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
  return data;
}

struct Pool {
  __nv_bfloat16* data = nullptr;
  size_t elements = 0;
};

// `rows` rows of `tokens` new tokens each, all of one context length.
struct Problem {
  Problem(const Pool& pool, int rows, int context, int tokens) {
    const int pages_per_row = (context + kPageSize - 1) / kPageSize;
    pages = rows * pages_per_row;
    std::vector<int32_t> table(pages), slots(rows * tokens);
    std::iota(table.begin(), table.end(), 0);
    std::shuffle(table.begin(), table.end(), std::mt19937(1));
    begin.resize(rows + 1);
    lengths.assign(rows, context);
    for (int i = 0; i <= rows; ++i) begin[i] = i * tokens;
    for (int i = 0; i < rows * tokens; ++i) slots[i] = i / tokens;
    batch.num_rows = rows;
    batch.num_tokens = rows * tokens;
    batch.num_single = tokens == 1 ? rows : 0;
    batch.token_begin = Upload(begin);
    batch.context_len = Upload(lengths);
    batch.page_table = Upload(table);
    batch.page_table_stride = pages_per_row;
    batch.slot_of_token = Upload(slots);
    batch.host_token_begin = begin.data();
    batch.host_context_len = lengths.data();
    CHECK_OK(cudaMalloc(&q, size_t{2} * batch.num_tokens * kQueryStride));
    CHECK_OK(cudaMalloc(&out, size_t{2} * batch.num_tokens * kHeads * kHeadSize));
    Fill<<<1024, 256>>>(q, static_cast<size_t>(batch.num_tokens) * kQueryStride);
    layers_fit =
        static_cast<int>(std::min<size_t>(1024, pool.elements / (2 * pages * kPageElements)));
    base = pool.data;
  }
  ~Problem() {
    for (const void* p :
         {static_cast<const void*>(batch.token_begin), static_cast<const void*>(batch.context_len),
          static_cast<const void*>(batch.page_table), static_cast<const void*>(batch.slot_of_token),
          static_cast<const void*>(q), static_cast<const void*>(out)}) {
      cudaFree(const_cast<void*>(p));
    }
  }
  Problem(const Problem&) = delete;
  Problem& operator=(const Problem&) = delete;

  AttentionParams Layer(int layer) const {
    AttentionParams params;
    __nv_bfloat16* k = base + size_t{2} * (layer % layers_fit) * pages * kPageElements;
    params.q = q;
    params.q_stride = kQueryStride;
    params.out = out;
    params.num_heads = kHeads;
    params.num_kv_heads = kKvHeads;
    params.head_size = kHeadSize;
    params.scale = 1 / std::sqrt(static_cast<float>(kHeadSize));
    params.batch = &batch;
    params.kv = {k, k + pages * kPageElements, DType::kBF16, kPageSize};
    return params;
  }
  AttentionConfig Config() const {
    AttentionConfig config{kHeads, kKvHeads, kHeadSize, kPageSize};
    config.max_rows = batch.num_rows;
    config.max_tokens = batch.num_tokens;
    return config;
  }

  BatchRows batch;
  std::vector<int32_t> begin, lengths;
  size_t pages = 0;
  int layers_fit = 0;
  __nv_bfloat16 *q = nullptr, *out = nullptr, *base = nullptr;
};

float Median(std::vector<float> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// Milliseconds of `work` on `stream`.
template <typename Work>
float Time(cudaStream_t stream, int repeats, Work work) {
  cudaEvent_t begin, end;
  CHECK_OK(cudaEventCreate(&begin));
  CHECK_OK(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < repeats + 1; ++i) {  // the first warms up
    CHECK_OK(cudaEventRecord(begin, stream));
    work();
    CHECK_OK(cudaEventRecord(end, stream));
    CHECK_OK(cudaStreamSynchronize(stream));
    float ms = 0;
    CHECK_OK(cudaEventElapsedTime(&ms, begin, end));
    if (i > 0) times.push_back(ms);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return Median(times);
}

void TimeDecode(const Pool& pool, int rows, int context, int variant, int snap_tokens,
                cudaStream_t stream) {
  Problem problem(pool, rows, context, 1);
  AttentionConfig config = problem.Config();
  config.decode_variant = variant;
  config.decode_snap_tokens = snap_tokens;
  auto attention = Attention::Create(config);
  CHECK_OK(attention.status());
  const double bytes = 4.0 * rows * context * kKvHeads * kHeadSize;
  const int layers = std::max(32, std::min(problem.layers_fit, static_cast<int>(6e8 / bytes)));
  CHECK_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  CHECK_OK((*attention)->Plan(problem.batch, stream));
  for (int layer = 0; layer < layers; ++layer) {
    CHECK_OK((*attention)->Run(problem.Layer(layer), stream));
  }
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CHECK_OK(cudaStreamEndCapture(stream, &graph));
  CHECK_OK(cudaGraphInstantiate(&exec, graph, 0));
  const float ms = Time(stream, 5, [&] { CHECK_OK(cudaGraphLaunch(exec, stream)); });
  const double us = 1e3 * ms / layers;
  const DecodeVariant& v = DecodeVariants()[variant];
  std::printf(
      "{\"op\":\"decode\",\"batch\":%d,\"context\":%d,\"warps\":%d,\"stages\":%d,\"blocks\":%d,"
      "\"snap\":%d,\"layers\":%d,\"us\":%.2f,\"tb_s\":%.2f}\n",
      rows, context, v.num_warps, v.num_stages, v.blocks_per_sm, snap_tokens, layers, us,
      bytes / us * 1e-6);
  std::fflush(stdout);
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
}

void TimePrefill(const Pool& pool, int rows, int tokens, PrefillPath path, cudaStream_t stream) {
  Problem problem(pool, rows, tokens, tokens);
  AttentionConfig config = problem.Config();
  config.prefill = path;
  auto attention = Attention::Create(config);
  if (absl::IsUnimplemented(attention.status())) return;
  CHECK_OK(attention.status());
  constexpr int kLayers = 8;
  CHECK_OK((*attention)->Plan(problem.batch, stream));
  const float ms = Time(stream, 3, [&] {
    for (int layer = 0; layer < kLayers; ++layer) {
      CHECK_OK((*attention)->Run(problem.Layer(layer), stream));
    }
  });
  const double us = 1e3 * ms / kLayers;
  const double flops = 4.0 * rows * kHeads * kHeadSize * (0.5 * tokens * (tokens + 1.0));
  std::printf(
      "{\"op\":\"prefill\",\"kernel\":\"%s\",\"rows\":%d,\"tokens\":%d,\"us\":%.1f,"
      "\"tflop_s\":%.0f}\n",
      (*attention)->uses_flash_prefill() ? "flash" : "portable", rows, tokens, us,
      flops / us * 1e-6);
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  bool decode = argc == 1, prefill = argc == 1;
  for (int i = 1; i < argc; ++i) {
    decode |= std::string_view(argv[i]) == "decode";
    prefill |= std::string_view(argv[i]) == "prefill";
  }
  size_t free_bytes = 0, total_bytes = 0;
  if (cudaMemGetInfo(&free_bytes, &total_bytes) != cudaSuccess) {
    std::printf("skipped: no GPU here\n");
    return 0;
  }
  Pool pool;
  pool.elements = std::min<size_t>(free_bytes / 3, size_t{40} << 30) / 2;
  CHECK_OK(cudaMalloc(&pool.data, pool.elements * 2));
  Fill<<<2048, 256>>>(pool.data, pool.elements);
  cudaStream_t stream;
  CHECK_OK(cudaStreamCreate(&stream));
  CHECK_OK(cudaDeviceSynchronize());
  if (decode) {
    for (const int rows : {1, 8, 32, 64, 128, 256}) {
      for (const int context : {128, 192, 1024, 4096}) {
        for (int variant = 0; variant < static_cast<int>(DecodeVariants().size()); ++variant) {
          for (const int snap_tokens : {0, 128}) {
            TimeDecode(pool, rows, context, variant, snap_tokens, stream);
          }
        }
      }
    }
  }
  if (prefill) {
    for (const PrefillPath path : {PrefillPath::kFlash, PrefillPath::kPortable}) {
      TimePrefill(pool, 1, 512, path, stream);
      TimePrefill(pool, 1, 2048, path, stream);
      TimePrefill(pool, 16, 2048, path, stream);
    }
  }
  return 0;
}
