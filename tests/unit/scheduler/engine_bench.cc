// What the scheduler costs: real scheduler and null worker, `streams` requests of `tokens` ids each
// over the wire. Prints JSON: tokens a second, and CPU microseconds a step of each of the
// scheduler's threads, the worker and this client. Scheduler flags follow the two numbers.
#include <dirent.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "common/shm/segment.h"
#include "tests/unit/scheduler/processes.h"
#include "tests/unit/scheduler/router_client.h"

namespace penstock::scheduler {
namespace {

// CPU nanoseconds of each thread of a process, by "name.index".
std::map<std::string, double> ThreadCpuNs(pid_t pid) {
  std::map<std::string, double> cpu;
  const std::string tasks = fmt::format("/proc/{}/task", pid);
  DIR* directory = opendir(tasks.c_str());
  while (const dirent* entry = readdir(directory)) {
    if (entry->d_name[0] == '.') continue;
    std::string name;
    std::ifstream(fmt::format("{}/{}/comm", tasks, entry->d_name)) >> name;
    std::ifstream(fmt::format("{}/{}/schedstat", tasks, entry->d_name)) >>
        cpu[fmt::format("{}.{}", name, std::atoi(entry->d_name) - pid)];
  }
  closedir(directory);
  return cpu;
}

int Run(int num_streams, int num_tokens, const std::vector<std::string>& flags) {
  const std::string engine_id = fmt::format("engine-bench-{}", getpid());
  const std::string address = "ipc:///tmp/penstock-" + engine_id;
  ChildProcess scheduler = StartScheduler(engine_id, address, flags);
  ChildProcess worker = StartNullWorker(
      engine_id, 0, {"--max-model-len=8192", "--num-kv-pages=400000", "--block-size=16"});
  zmq::context_t context;
  RouterClient client(context, address, "bench");
  if (!client.WaitReady()) return 1;
  client.check_ids = false;
  std::vector<wire::Submit> submits;
  for (int id = 1; id <= num_streams; ++id) {
    submits.push_back(RouterClient::MakeSubmit(id, 16, num_tokens));
  }
  const auto before = ThreadCpuNs(scheduler.pid());
  const auto worker_before = ThreadCpuNs(worker.pid());
  const uint64_t messages = client.num_messages;
  const int64_t begin_ns = shm::MonotonicNs();
  client.Submit(submits);
  if (!client.PumpUntil([&] { return client.num_ended == static_cast<size_t>(num_streams); },
                        600'000)) {
    return 1;
  }
  const double seconds = 1e-9 * static_cast<double>(shm::MonotonicNs() - begin_ns);
  const double steps = num_tokens;
  std::printf(
      "{\"streams\": %d, \"tokens\": %d, \"tokens_per_s\": %.0f, \"us_a_step\": %.1f, "
      "\"messages\": %lu, \"cpu_us_a_step\": {",
      num_streams, num_tokens, num_streams * num_tokens / seconds, 1e6 * seconds / steps,
      client.num_messages - messages);
  for (const auto& [name, ns] : ThreadCpuNs(scheduler.pid())) {
    const auto found = before.find(name);
    const double used = ns - (found == before.end() ? 0 : found->second);
    std::printf("\"%s\": %.1f, ", name.c_str(), 1e-3 * used / steps);
  }
  double worker_ns = 0;
  for (const auto& [name, ns] : ThreadCpuNs(worker.pid())) worker_ns += ns;
  for (const auto& [name, ns] : worker_before) worker_ns -= ns;
  std::printf("\"worker\": %.1f}}\n", 1e-3 * worker_ns / steps);
  scheduler.Kill();
  worker.Kill();
  for (const char* suffix : {"", ".deltas"}) unlink((address.substr(6) + suffix).c_str());
  return shm::Segment::Remove(engine_id).ok() ? 0 : 1;
}

}  // namespace
}  // namespace penstock::scheduler

int main(int argc, char** argv) {
  const int num_streams = argc > 1 ? std::atoi(argv[1]) : 256;
  const int num_tokens = argc > 2 ? std::atoi(argv[2]) : 8000;
  std::vector<std::string> flags = {"--nocheck-invariants"};
  for (int i = 3; i < argc; ++i) flags.emplace_back(argv[i]);
  return penstock::scheduler::Run(num_streams, num_tokens, flags);
}
