// Watches an engine's steps in its shared memory while somebody else gives it work, and prints one
// JSON object. It only reads, ten times a second; the engine does not know of it. Used by
// step_gap.py, which says what the figures are.
//
//   step-gaps ENGINE_ID [--steps N] [--skip N] [--timeout-s N]
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "common/shm/layout.h"
#include "common/shm/ring.h"
#include "common/shm/segment.h"
#include "tools/penstock/bench/statistics.h"

namespace penstock::bench {
namespace {

struct Options {
  std::string engine_id;
  uint64_t steps = 2000;
  uint64_t skip = 200;  // of the first
  int64_t timeout_s = 120;
};

struct Samples {
  std::vector<double> gap_us;    // the device idled before the step though there was work
  std::vector<double> ahead_us;  // the plan was there so long before the device was free for it
  std::vector<double> late_us;  // between two steps' ends as the scheduler sees them, less the step
  uint64_t rows = 0;
  uint64_t first_ns = 0, last_ns = 0;  // ends
};

class Watcher {
 public:
  // The engine's segment, mapped for reading; null: there is none of this version.
  static const shm::SegmentHeader* Map(const std::string& engine_id) {
    const int fd = open(shm::Segment::Path(engine_id).c_str(), O_RDONLY | O_CLOEXEC);
    struct stat file = {};
    if (fd < 0 || fstat(fd, &file) != 0) return nullptr;
    void* memory = mmap(nullptr, file.st_size, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (memory == MAP_FAILED) return nullptr;
    const auto* header = static_cast<const shm::SegmentHeader*>(memory);
    const bool ours = header->magic == shm::kMagic && header->layout_version == shm::kLayoutVersion;
    return ours ? header : nullptr;
  }

  Watcher(const shm::SegmentHeader& header, uint64_t skip)
      : skip_(skip),
        rank_(*At<shm::RankArea>(header, header.ranks_offset)),
        ring_(
            {At<std::byte>(header, header.result_rings_offset), header.geometry.result_ring_bytes}),
        reader_(ring_, &rank_.result_tail, rank_.result_tail.load()) {}

  // False: steps were written over before they were read.
  bool Read(Samples* samples) {
    while (const std::byte* record = reader_.Next()) {
      const auto& step = *reinterpret_cast<const shm::ResultHeader*>(record);
      if (step.num_rows != shm::kPadResult && step.num_rows > 0) Take(step, samples);
      if (rank_.result_tail.load() - reader_.cursor() > ring_.size() / 2) return false;
    }
    return true;
  }

 private:
  template <typename T>
  static const T* At(const shm::SegmentHeader& header, uint64_t offset) {
    return reinterpret_cast<const T*>(reinterpret_cast<const std::byte*>(&header) + offset);
  }

  void Take(const shm::ResultHeader& step, Samples* samples) {
    const uint64_t last_end_ns = std::exchange(last_end_ns_, step.end_ns);
    if (num_seen_++ < std::max<uint64_t>(skip_, 1)) {
      samples->first_ns = step.end_ns;
      return;
    }
    const double begin_ns = static_cast<double>(step.begin_ns);
    samples->gap_us.push_back(1e-3 * static_cast<double>(step.idle_ns));
    samples->ahead_us.push_back(1e-3 * (begin_ns - static_cast<double>(step.plan_ns)));
    samples->late_us.push_back(1e-3 * (begin_ns - static_cast<double>(last_end_ns)));
    samples->rows += step.num_rows;
    samples->last_ns = step.end_ns;
  }

  const uint64_t skip_;
  const shm::RankArea& rank_;
  std::span<const std::byte> ring_;
  shm::RingReader reader_;
  uint64_t num_seen_ = 0;
  uint64_t last_end_ns_ = 0;
};

std::string Json(std::vector<double> samples) {
  const Summary s = Summarise(std::move(samples));
  return fmt::format(
      R"({{"mean": {:.2f}, "min": {:.2f}, "p50": {:.2f}, "p99": {:.2f}, "max": {:.2f}}})", s.mean,
      s.min, s.p50, s.p99, s.max);
}

int Fail(const std::string& what) {
  fmt::print(stderr, "step-gaps: {}\n", what);
  return 1;
}

int Watch(const Options& options) {
  const shm::SegmentHeader* header = Watcher::Map(options.engine_id);
  if (header == nullptr) return Fail("no engine " + options.engine_id + " of this version");
  Watcher watcher(*header, options.skip);
  Samples samples;
  const int64_t deadline_ns = shm::MonotonicNs() + options.timeout_s * 1'000'000'000;
  while (samples.gap_us.size() < options.steps) {
    if (shm::MonotonicNs() > deadline_ns) {
      return Fail(fmt::format("{} steps in {} s", samples.gap_us.size(), options.timeout_s));
    }
    usleep(100'000);
    if (!watcher.Read(&samples)) return Fail("the ring was written over: steps are too short");
  }
  const double seconds = 1e-9 * static_cast<double>(samples.last_ns - samples.first_ns);
  const auto steps = static_cast<double>(samples.gap_us.size());
  fmt::print(R"({{"steps": {}, "seconds": {:.3f}, "steps_per_s": {:.2f}, "rows_a_step": {:.1f}, )"
             R"("gap_us": {}, "plan_ahead_us": {}, "between_us": {}}})"
             "\n",
             samples.gap_us.size(), seconds, steps / seconds,
             static_cast<double>(samples.rows) / steps, Json(std::move(samples.gap_us)),
             Json(std::move(samples.ahead_us)), Json(std::move(samples.late_us)));
  return 0;
}

int Main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string_view name = argv[i];
    if (!name.starts_with("--")) {
      options.engine_id = name;
    } else if (i + 1 == argc) {
      return Fail("a flag without its value");
    } else if (name == "--steps") {
      options.steps = std::strtoull(argv[++i], nullptr, 10);
    } else if (name == "--skip") {
      options.skip = std::strtoull(argv[++i], nullptr, 10);
    } else if (name == "--timeout-s") {
      options.timeout_s = std::strtoll(argv[++i], nullptr, 10);
    } else {
      return Fail(fmt::format("unknown flag {}", name));
    }
  }
  if (options.engine_id.empty()) return Fail("give the engine's id");
  return Watch(options);
}

}  // namespace
}  // namespace penstock::bench

int main(int argc, char** argv) { return penstock::bench::Main(argc, argv); }
