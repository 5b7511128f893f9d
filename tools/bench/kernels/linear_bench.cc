// How fast the CPU's linear products are: each shape of SmolLM2-135M over batch sizes, with the
// copies of all 30 layers taken in turn so that weights come from memory as they do in a step, all
// the products of a whole step, and oneDNN beside them.
//
//   linear_bench [--threads=N] [--benchmark_filter=REGEX] [other Google Benchmark flags]
//
// Names: product/FORMAT/kernels/M:tokens. The counters best_us and best_GFLOP/s are of the fastest
// iteration, which other work on the machine disturbs least.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstring>
#include <iostream>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "fmt/format.h"
#include "kernels/cpu/dequantize.h"
#include "kernels/cpu/linear.h"
#include "kernels/cpu/linear_kernels.h"
#include "tools/bench/kernels/onednn_peer.h"

namespace penstock::kernels::cpu {
namespace {

constexpr int kLayers = 30;
constexpr int32_t kMaxTokens = 512;
constexpr int32_t kMaxWidth = 1536;

int g_threads = 2;

struct Shape {
  const char* name;
  int64_t rows, cols;
  WeightUse use = WeightUse::kLinear;  // as worker/weights/loader.cc has it
};
constexpr Shape kLayer[] = {{"qkv", 960, 576},
                            {"o", 576, 576, WeightUse::kCoarseLinear},
                            {"gate_up", 3072, 576},
                            {"down", 576, 1536, WeightUse::kCoarseLinear}};
constexpr Shape kHead = {"head", 49152, 576};

using Weights = std::vector<std::unique_ptr<CpuWeight>>;

std::unique_ptr<CpuWeight> RandomWeight(LinearContext& context, WeightFormat format,
                                        const Shape& shape) {
  const FormatInfo& info = GetFormatInfo(format);
  const int64_t row_bytes = shape.cols / info.block_size * info.block_bytes;
  std::vector<std::byte> data(static_cast<size_t>(shape.rows * row_bytes));
  std::mt19937 random(1);
  for (std::byte& b : data)
    b = static_cast<std::byte>(random() & 0x3f);  // small floating numbers of any width
  const WeightSegment segment{format, data.data(), shape.rows, shape.cols, row_bytes};
  return std::move(context.Load({&segment, 1}, shape.use)).value();
}

std::unique_ptr<LinearContext> MakeContext(Mode mode, const LinearKernels& kernels) {
  auto context = MakeLinearContext(mode, g_threads, kernels);
  if (!context->ReserveScratch(kMaxTokens, kMaxWidth).ok()) std::abort();
  return context;
}

std::vector<float> RandomInput(size_t count) {
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  std::vector<float> x(count);
  for (float& v : x) v = normal(random);
  return x;
}

// Runs step() in the benchmark's loop and reports the fastest run: what the machine can do when
// nothing else runs.
template <class Step>
void RunSteps(benchmark::State& state, double products, Step step) {
  using Clock = std::chrono::steady_clock;
  auto best = Clock::duration::max();
  for (auto _ : state) {
    const auto begin = Clock::now();
    step();
    best = std::min(best, Clock::now() - begin);
  }
  const double us = std::chrono::duration<double, std::micro>(best).count();
  state.counters["best_us"] = us;
  state.counters["best_GFLOP/s"] = 2e-3 * products / us;
}

// An iteration is one product with one of the copies.
void BenchShape(benchmark::State& state, Mode mode, LinearKernels kernels, WeightFormat format,
                Shape shape, int32_t m) {
  auto context = MakeContext(mode, kernels);
  Weights copies;
  const int count = shape.rows == kHead.rows ? 2 : kLayers;
  for (int i = 0; i < count; ++i) copies.push_back(RandomWeight(*context, format, shape));
  const auto x = RandomInput(static_cast<size_t>(m * shape.cols));
  std::vector<float> out(static_cast<size_t>(m * shape.rows));
  size_t next = 0;
  RunSteps(state, static_cast<double>(shape.rows) * shape.cols * m, [&] {
    copies[next]->Multiply(x.data(), shape.cols, nullptr, out.data(), m, 1);
    next = (next + 1) % copies.size();
  });
}

// All products of a step: `format` in the layers, Q8_0 in the head, of which `m` rows are wanted.
void BenchStep(benchmark::State& state, Mode mode, LinearKernels kernels, WeightFormat format,
               int32_t m) {
  auto context = MakeContext(mode, kernels);
  Weights weights;
  double products = 0;
  const auto add = [&](WeightFormat f, const Shape& shape) {
    weights.push_back(RandomWeight(*context, f, shape));
    products += static_cast<double>(shape.rows) * shape.cols * m;
  };
  for (int i = 0; i < kLayers; ++i) {
    for (const Shape& shape : kLayer) add(format, shape);
  }
  add(WeightFormat::kQ8_0, kHead);
  const auto x = RandomInput(static_cast<size_t>(m) * kMaxWidth);
  std::vector<float> out(static_cast<size_t>(m * kHead.rows));
  RunSteps(state, products, [&] {
    for (const auto& w : weights) w->Multiply(x.data(), w->cols, nullptr, out.data(), m, 1);
  });
}

// oneDNN's product of the same size, with bfloat16 weights.
void BenchPeer(benchmark::State& state, Shape shape, int32_t m) {
  const int copies = shape.rows == kHead.rows ? 2 : kLayers;
  const auto peer = bench::MakeOneDnnMatmul(shape.rows, shape.cols, m, copies, g_threads);
  RunSteps(state, static_cast<double>(shape.rows) * shape.cols * m, [&] { peer->Multiply(); });
}

std::string Name(std::string_view product, std::string_view variant, int32_t m) {
  return fmt::format("{}/{}/M:{}", product, variant, m);
}

void RegisterPeer() {
  for (const int32_t m : {1, 8, 16, 32, 128, 512}) {
    for (const Shape& shape : kLayer) {
      benchmark::RegisterBenchmark(Name(shape.name, "BF16/onednn", m).c_str(), BenchPeer, shape, m)
          ->UseRealTime();
    }
  }
}

void RegisterAll() {
  for (const LinearKernels& kernels : AvailableKernels()) {
    const bool best = &kernels == &AvailableKernels().back();
    for (const Mode mode : {Mode::kFast, Mode::kFloat32}) {
      for (const WeightFormat format :
           {WeightFormat::kQ4_1, WeightFormat::kQ8_0, WeightFormat::kQ4_K, WeightFormat::kQ6_K,
            WeightFormat::kBF16}) {
        const std::string variant =
            fmt::format("{}/{}{}", GetFormatInfo(format).name,
                        mode == Mode::kFloat32 ? "float32_" : "", kernels.name);
        if ((!best || mode == Mode::kFloat32) && format != WeightFormat::kQ4_1) continue;
        for (const int32_t m : {1, 2, 4, 8, 16, 32, 128, 512}) {
          if (kernels.name == std::string_view("scalar") && m > 8) continue;
          const auto add = [&](const Shape& shape) {
            // The blocks of K-quants are 256 columns long, which 576 isn't a multiple of.
            if (shape.cols % GetFormatInfo(format).block_size != 0) return;
            benchmark::RegisterBenchmark(Name(shape.name, variant, m).c_str(), BenchShape, mode,
                                         kernels, format, shape, m)
                ->UseRealTime();
          };
          for (const Shape& shape : kLayer) add(shape);
          if (m <= 128) add(kHead);
          if (format == WeightFormat::kQ4_1 || format == WeightFormat::kBF16) {
            benchmark::RegisterBenchmark(Name("step", variant, m).c_str(), BenchStep, mode, kernels,
                                         format, m)
                ->UseRealTime()
                ->Unit(benchmark::kMillisecond);
          }
        }
      }
    }
  }
}

}  // namespace
}  // namespace penstock::kernels::cpu

int main(int argc, char** argv) {
  namespace cpu = penstock::kernels::cpu;
  cpu::g_threads = static_cast<int>(std::thread::hardware_concurrency());
  constexpr std::string_view kFlag = "--threads=";
  const auto is_threads = [&](char* arg) { return std::string_view(arg).starts_with(kFlag); };
  for (int i = 1; i < argc; ++i) {
    if (!is_threads(argv[i])) continue;
    const char* value = argv[i] + kFlag.size();
    std::from_chars(value, value + std::strlen(value), cpu::g_threads);
    if (cpu::g_threads < 1) {
      std::cerr << argv[i] << ": give a number of threads, 1 or more\n";
      return 2;
    }
  }
  argc = static_cast<int>(std::remove_if(argv + 1, argv + argc, is_threads) - argv);
  argv[argc] = nullptr;
  cpu::RegisterAll();
  cpu::RegisterPeer();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
