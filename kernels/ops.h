// The op set: everything a decoder asks of a device, at fused grain.
//
// Rules that hold for every op and backend (cpu, cuda, null):
//  - Params are plain structs of pointers, sizes and strides; pointers are device pointers (host
//  memory on the
//    CPU). The caller owns all memory and keeps it alive until WaitStep() of the step returns.
//  - No op allocates or blocks on the device (the CPU backend runs an op to its end inside the
//  call;
//    scratch is sized in Reserve()). Ops run in call order.
//  - One thread drives a backend. Errors are bugs or lost devices, not user input: sizes were
//  checked at load.
//  - Activations are float32 on the CPU, `Backend::activation_dtype()` elsewhere.
//
// Letters: T tokens in a step, R rows (one per request in the step), D hidden size, H query heads,
// G KV heads, E head size, F MLP width, V vocabulary, P tokens a KV page. Under tensor parallelism
// H, G, F and the V of the output head are this rank's share; D and embeddings are whole.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/collective.h"
#include "kernels/sampling_params.h"

namespace penstock::kernels {

// How a matrix is stored. The quantised ones are GGUF's block formats, as in ggml's type table.
enum class WeightFormat : uint8_t {
  kF32,
  kF16,
  kBF16,
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ8_0,
  kQ4_K,
  kQ5_K,
  kQ6_K,
};

enum class DType : uint8_t { kF32, kF16, kBF16 };
constexpr size_t DTypeSize(DType type) { return type == DType::kF32 ? 4 : 2; }

// Rows [0, rows) of a row-major [rows, cols] matrix in host memory, `row_bytes` apart. Under tensor
// parallelism a column shard is a segment that starts inside a row (at a block border), so
// row_bytes may exceed a row's own bytes.
struct WeightSegment {
  WeightFormat format = WeightFormat::kF32;
  const std::byte* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_bytes = 0;
};

// How a weight is used: fixes the layout the backend packs it to. kCoarseLinear is a linear whose
// input a backend that rounds inputs to integers may round to 8 bits; those of the other linears
// it must keep to 15.
enum class WeightUse : uint8_t { kLinear, kCoarseLinear, kEmbedding, kEmbeddingAndLinear };

// A weight on the device, packed by the backend that made it; only that backend may use it.
class Weight {
 public:
  virtual ~Weight() = default;
  int64_t rows = 0;  // N: output features (or vocabulary)
  int64_t cols = 0;  // K: input features
};

// Device memory, freed with the object. The backend must outlive it.
class Buffer {
 public:
  virtual ~Buffer() = default;
  void* data = nullptr;
  size_t bytes = 0;
  template <typename T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

// The device's table of every slot's ids, prompt and output alike: ids[slot * stride + position].
// Bind writes the known ids, Sample writes the next one, Embed reads: so a step is launched before
// the last one's ids are known on the host.
struct TokenTable {
  int32_t* ids = nullptr;
  int64_t stride = 0;
};

// One layer's KV pages. A page holds P positions of G heads of E elements, of K at k and of V at v:
// page i starts at element i * G * P * E of both. How they lie inside a page is the backend's own
// (the CPU's K is transposed in blocks of 16 positions, say), the same for every layer and step, so
// pages can be moved whole.
struct KvLayer {
  void* k = nullptr;
  void* v = nullptr;
  DType dtype = DType::kF32;
  int32_t page_size = 0;  // P
};

struct PageCopy {
  int32_t from = 0;
  int32_t to = 0;
};

struct CopyPagesParams {  // page `to` becomes what page `from` is, K and V of all layers
  std::span<const KvLayer> layers;
  int64_t page_elements = 0;         // of K, and of V: G * P * E
  std::span<const PageCopy> copies;  // no page that one of them writes is another's
};

// The rows of a step. Row r has tokens [token_begin[r], token_begin[r+1]) of the T flattened ones,
// all of one slot; after the step it holds context_len[r] tokens, this step's included. Rows of one
// token come first, so that token r is row r for r < num_single. Page i of slot s is
// page_table[s * page_table_stride + i].
struct BatchRows {
  int32_t num_rows = 0;
  int32_t num_tokens = 0;
  int32_t num_single = 0;                // rows of one token
  const int32_t* token_begin = nullptr;  // [R + 1]
  const int32_t* context_len = nullptr;  // [R]
  const int32_t* page_table = nullptr;   // [slots, page_table_stride]
  int64_t page_table_stride = 0;
  const int32_t* slot_of_token = nullptr;      // [T]
  const int32_t* position_of_token = nullptr;  // [T], 0-based
  // token_begin and context_len in host memory, for backends that plan their launches there.
  const int32_t* host_token_begin = nullptr;
  const int32_t* host_context_len = nullptr;
};

struct EmbedParams {              // out[t] = table[ids of (slot, position) of token t]
  const Weight* table = nullptr;  // [V, D], kEmbedding
  TokenTable tokens;
  const BatchRows* batch = nullptr;
  void* out = nullptr;  // [T, D]
  float scale = 1.0f;
};

struct AddRmsNormParams {
  // residual += all-reduced x (x may be null: nothing is added); out = residual / rms(residual) *
  // weight. With a group, x is this rank's part of a row-parallel product: x[num_k_segments, T, D],
  // summed over ranks in rank order and over segments in segment order, so that every rank gets the
  // same bits.
  const void* x = nullptr;
  int32_t num_k_segments = 1;
  Collective* group = nullptr;    // null: one rank
  void* residual = nullptr;       // [T, D], in and out
  const float* weight = nullptr;  // [D]
  void* out = nullptr;            // [T, D]; null: only the residual is updated
  int32_t num_tokens = 0;
  int32_t hidden = 0;
  float epsilon = 1e-5f;
};

struct LinearParams {
  // out = x * weight^T + bias. With num_k_segments = S > 1, K is cut in S equal parts whose
  // products are written apart, out[S, T, N] (bias in the first): the float32 mode uses it to sum
  // in one order whatever the number of ranks.
  const void* x = nullptr;  // [T, K], row stride x_stride elements
  int64_t x_stride = 0;
  const Weight* weight = nullptr;  // [N, K]
  const float* bias = nullptr;     // [N] or null
  void* out = nullptr;             // [T, N] or [S, T, N], packed
  int32_t num_tokens = 0;
  int32_t num_k_segments = 1;
};

struct RopeKvWriteParams {
  // Rotates q and k of qkv[T, (H + 2G) * E] (q heads, then k, then v) in place by the angle table,
  // then writes k and v to their pages: token t of row r at position p goes to page page_table[r][p
  // / P], line p % P.
  void* qkv = nullptr;
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_size = 0;
  int32_t rotary_size = 0;   // leading elements of a head that rotate; even
  bool interleaved = false;  // pairs (2i, 2i+1) as in GGUF's llama; else (i, i + rotary_size/2)
  const float* cos_sin =
      nullptr;  // [max_position, rotary_size]: rotary_size/2 cosines, then as many sines
  const BatchRows* batch = nullptr;
  KvLayer kv;
};

struct AttentionParams {    // causal attention over the pages; this step's k and v are already
                            // written
  const void* q = nullptr;  // first E of token t's head h at q + t * q_stride + h * E
  int64_t q_stride = 0;
  void* out = nullptr;  // [T, H * E]
  int32_t num_heads = 0;
  int32_t num_kv_heads = 0;
  int32_t head_size = 0;
  float scale = 0;  // on q.k, usually 1/sqrt(E)
  const BatchRows* batch = nullptr;
  KvLayer kv;
};

struct GatedActivationParams {  // out[t][f] = silu(x[t][f]) * x[t][F + f]
  const void* x = nullptr;      // [T, 2F]
  void* out = nullptr;          // [T, F]
  int32_t num_tokens = 0;
  int32_t width = 0;
};

struct GatedLinearParams {  // Linear without bias, then GatedActivation
  const void* x = nullptr;  // [T, K]
  int64_t x_stride = 0;
  const Weight* weight = nullptr;  // [2F, K]: gate above up
  void* product = nullptr;         // [T, 2F]: scratch, for backends that do one after the other
  void* out = nullptr;             // [T, F]
  int32_t num_tokens = 0;
};

struct GatherRowsParams {          // out[i] = x[index[i]]
  const void* x = nullptr;         // [T, D]
  const int32_t* index = nullptr;  // [count], host memory; in a step, a part of its outputs' tokens
  void* out = nullptr;             // [count, D]
  int32_t count = 0;
  int32_t hidden = 0;
};

struct LogitsParams {       // float32 logits of the gathered rows, whole vocabulary on every rank
  const void* x = nullptr;  // [count, D]
  const Weight* head = nullptr;  // [V / ranks, D]
  Collective* group = nullptr;
  float* out = nullptr;  // [count, V]
  int32_t count = 0;
  int32_t vocab_size = 0;  // V, whole
};

// One row of logits to sample from. Sampling is a pure function of (params, ids so far, position,
// logits): the random number is Philox4x32-10(key = seed, counter = position) (Salmon et al.,
// 2011), so ranks, batches and restarts agree.
struct SampleRow {
  const SamplingParams* params = nullptr;
  int32_t slot = 0;
  int32_t position = 0;    // of the id to be sampled; ids [0, position) are in the token table
  int32_t prompt_len = 0;  // ids [0, prompt_len) are the prompt, for the penalties
  int32_t target_id = -1;  // >= 0: sample nothing, report this id (a prompt's log-probability);
                           // writes no table entry
  int32_t num_top = -1;    // -1: no log-probability; else the id's own and the num_top best
};

constexpr int kMaxTopLogprobs = 20;

struct SampledLogprobs {  // of the raw logits (log-softmax before penalties and temperature), as
                          // vLLM and OpenAI report
  float logprob = 0;
  int32_t rank = 0;  // 1 = the most likely
  int32_t num_top = 0;
  int32_t top_id[kMaxTopLogprobs];
  float top_logprob[kMaxTopLogprobs];
};

struct SampleParams {
  float* logits = nullptr;  // [count, V]; overwritten
  int32_t count = 0;
  int32_t vocab_size = 0;
  const SampleRow* rows = nullptr;  // [count], host memory; in a step, a part of its outputs
  TokenTable tokens;                // read for penalties; the sampled id goes to (slot, position)
  // [count], host memory, in a step parts of its ids and logprobs. -1 where the row can't be
  // sampled (NaN, all masked): then Sample, or the step's WaitStep, is INTERNAL.
  int32_t* ids_out = nullptr;
  SampledLogprobs* logprobs_out = nullptr;  // written where num_top >= 0
};

// A step: rows of tokens, and outputs, each sampled (or a target's log-probability) after one of
// the tokens. All host memory.
struct StepInputs {
  BatchRows rows;
  std::span<const int32_t> output_token;  // [O]: index of the token among the step's
  std::span<const SampleRow> outputs;     // [O]
  std::span<int32_t> ids;                 // [O], out
  std::span<SampledLogprobs> logprobs;    // [O], out
};

// How a step ran, in nanoseconds of the device's clock.
struct StepReport {
  int64_t run_ns = 0;
  int64_t idle_ns = 0;  // between the end of the step before it and its begin
};

// What the backend must have scratch for.
struct ReserveParams {
  int32_t max_tokens = 0;  // T of the largest step
  int32_t max_rows = 0;    // R
  int32_t max_logits = 0;  // rows of logits in a step
  int32_t max_width = 0;   // largest K or N of a linear but the output head's
  int32_t vocab_size = 0;
  int32_t num_heads = 0;  // H, G: this rank's
  int32_t num_kv_heads = 0;
  int32_t head_size = 0;
  int32_t page_size = 0;  // P
  int32_t hidden = 0;     // D
  int32_t mlp_width = 0;  // F: this rank's
};

struct DeviceMemory {
  int64_t free = 0;  // bytes
  int64_t total = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string_view name() const = 0;
  virtual DType activation_dtype() const = 0;
  // True if the results of a token are the same bits whatever else is in its batch.
  virtual bool batch_invariant() const = 0;
  // False if this backend reads no weights (null), so that none need be loaded.
  virtual bool needs_weights() const = 0;

  // Zeroed memory. RESOURCE_EXHAUSTED says how much was asked for.
  virtual absl::StatusOr<std::unique_ptr<Buffer>> Allocate(size_t bytes) = 0;
  // Packs the segments, stacked by rows, into one weight. The host data may go once this returns.
  virtual absl::StatusOr<std::unique_ptr<Weight>> LoadWeight(
      std::span<const WeightSegment> segments, WeightUse use) = 0;
  // A [rows, cols] weight in F32, F16 or BF16 whose elements are RandomWeightValue(seed, row * cols
  // + col) of random_weight.h, made on the device: no host data. INVALID_ARGUMENT for another
  // format.
  virtual absl::StatusOr<std::unique_ptr<Weight>> RandomWeight(WeightFormat format, int64_t rows,
                                                               int64_t cols, WeightUse use,
                                                               uint64_t seed) = 0;
  // A weight over rows [begin, begin + count) of one that was loaded for any use but
  // kEmbedding, sharing its memory (tied output heads, vocabulary shards). `weight` must outlive
  // it.
  virtual absl::StatusOr<std::unique_ptr<Weight>> WeightRows(const Weight& weight, int64_t begin,
                                                             int64_t count) = 0;
  // Memory of the device; none where it is the host's.
  virtual absl::StatusOr<std::optional<DeviceMemory>> Memory() const {
    return std::optional<DeviceMemory>();
  }
  // After the weights are loaded.
  virtual absl::Status Reserve(const ReserveParams& params) = 0;
  // A request takes the slot: copies its known ids to (slot, 0 ..) of the token table, before the
  // next step runs. The host data may go once this returns. The slot's pages of before are
  // forgotten.
  virtual absl::Status BindTokens(TokenTable table, int32_t slot, std::span<const int32_t> ids) = 0;
  // Between steps: what earlier steps wrote is copied, later ones find it. The params' memory may
  // go once this returns.
  virtual absl::Status CopyPages(const CopyPagesParams& p) = 0;
  // Copies host memory to a buffer's beginning; the host data may go once this returns.
  virtual absl::Status Upload(const Buffer& buffer, const void* data, size_t bytes) = 0;

  // A step is BeginStep, its ops, EndStep: on a device of its own all of them return before it has
  // run. WaitStep, once for every step and in their order, returns when it has; then its ids and
  // logprobs are there. It may be called on another thread than the rest. At most
  // max_steps_in_flight() steps may have been begun and not waited for; the inputs' memory lives
  // until then. The defaults are those of a device that runs an op inside its call.
  struct BegunStep {
    BatchRows rows;         // as the step's ops want them; perhaps padded with empty rows
    bool replayed = false;  // all of its ops are queued already: only EndStep is to be called
  };
  virtual int max_steps_in_flight() const { return 1; }
  virtual absl::StatusOr<BegunStep> BeginStep(const StepInputs& inputs) {
    return BegunStep{.rows = inputs.rows};
  }
  virtual absl::Status EndStep() { return absl::OkStatus(); }
  virtual absl::StatusOr<StepReport> WaitStep() { return StepReport{}; }

  // Sizes of steps of single-token rows that are worth capturing, so that BeginStep can replay them
  // with one launch, ascending. To capture: BeginCapture, the ops over its rows as in a step with
  // its outputs, EndCapture. Before the first capture every size should have run once.
  virtual std::vector<int32_t> CaptureSizes() const { return {}; }
  virtual absl::StatusOr<StepInputs> BeginCapture(int32_t) {
    return absl::UnimplementedError("this device captures nothing");
  }
  virtual absl::Status EndCapture() { return absl::OkStatus(); }

  virtual absl::Status Embed(const EmbedParams& p) = 0;
  virtual absl::Status AddRmsNorm(const AddRmsNormParams& p) = 0;
  virtual absl::Status Linear(const LinearParams& p) = 0;
  // In how many segments (LinearParams::num_k_segments) a product is best cut that AddRmsNorm takes
  // up: at most kMaxKSegments, and 1 for more than kMaxSegmentedTokens.
  static constexpr int32_t kMaxKSegments = 4;
  static constexpr int32_t kMaxSegmentedTokens = 512;
  virtual int32_t KSegments(const Weight&, int32_t num_tokens) const {
    static_cast<void>(num_tokens);
    return 1;
  }
  virtual absl::Status RopeKvWrite(const RopeKvWriteParams& p) = 0;
  virtual absl::Status Attention(const AttentionParams& p) = 0;
  virtual absl::Status GatedActivation(const GatedActivationParams& p) = 0;
  // Backends without weights (`weight` null) override it.
  virtual absl::Status GatedLinear(const GatedLinearParams& p) {
    absl::Status multiplied = Linear({.x = p.x,
                                      .x_stride = p.x_stride,
                                      .weight = p.weight,
                                      .out = p.product,
                                      .num_tokens = p.num_tokens});
    if (!multiplied.ok()) return multiplied;
    return GatedActivation({.x = p.product,
                            .out = p.out,
                            .num_tokens = p.num_tokens,
                            .width = static_cast<int32_t>(p.weight->rows / 2)});
  }
  virtual absl::Status GatherRows(const GatherRowsParams& p) = 0;
  virtual absl::Status Logits(const LogitsParams& p) = 0;
  virtual absl::Status Sample(const SampleParams& p) = 0;
};

}  // namespace penstock::kernels
