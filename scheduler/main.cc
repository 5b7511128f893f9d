// penstock-scheduler: one per engine. Wires flags, metrics, signals and the engine loop together.
#include <prometheus/exposer.h>
#include <pthread.h>
#include <signal.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "common/flags.h"
#include "common/log.h"
#include "scheduler/engine_loop.h"

ABSL_FLAG(std::string, engine_id, "default", "name of the engine; workers are given the same");
ABSL_FLAG(std::string, listen, "tcp://127.0.0.1:5555",
          "engine address for routers: tcp://host:port (port and port + 1) or ipc:///path");
ABSL_FLAG(uint32_t, tensor_parallel_size, 1, "number of worker ranks");
ABSL_FLAG(uint32_t, max_num_seqs, 256, "requests that run at once");
ABSL_FLAG(uint32_t, max_num_batched_tokens, 2048, "tokens of a step, prompts and decodes together");
ABSL_FLAG(double, target_itl_ms, 0,
          "have the tokens of running requests come at most so many milliseconds apart, by fewer "
          "prompt tokens a step where need be; 0: no target");
ABSL_FLAG(uint32_t, max_queued_requests, 4096,
          "requests of a class of priority that may wait; more are refused at once");
ABSL_FLAG(std::string, tenant_weights, "",
          "shares of tenants, name=weight with commas; others have 1: \"a=2,b=0.5\"");
ABSL_FLAG(uint32_t, arena_mb, 64, "shared memory for the ids of running requests, in MiB");
ABSL_FLAG(bool, no_overlap, false, "plan a step only when the one before is complete (debugging)");
ABSL_FLAG(bool, no_enable_prefix_caching, false,
          "compute every prompt whole: no request takes pages that another one filled");
ABSL_FLAG(uint32_t, metrics_port, 0, "port of /metrics; 0: none");
ABSL_FLAG(std::string, metrics_host, "127.0.0.1", "address that /metrics listens on");
ABSL_FLAG(std::string, model_name, "", "label model_name of the metrics");
ABSL_FLAG(bool, check_invariants, false, "check all bookkeeping after every step (slow)");
ABSL_FLAG(
    std::string, record_plans, "",
    "file to record plans and results to, for `penstock replay`; it has the users' token ids");
ABSL_FLAG(bool, log_requests, true, "log a line at the end of every request");
ABSL_FLAG(int64_t, drain_timeout_s, 30, "how long running requests may go on after SIGTERM");
ABSL_FLAG(int64_t, lease_timeout_ms, penstock::net::kLeaseTimeoutMs,
          "a router that is silent for so long is gone");

namespace penstock::scheduler {
namespace {

// Asked for what cannot be had (a port in use, too little shared memory, bad flags): starting anew
// does not help. The launcher knows it.
constexpr int kExitBadInput = 2;

absl::StatusOr<absl::flat_hash_map<std::string, double>> ParseWeights(const std::string& text) {
  absl::flat_hash_map<std::string, double> weights;
  for (const std::string& item :
       std::vector<std::string>(absl::StrSplit(text, ',', absl::SkipEmpty()))) {
    const size_t sign = item.rfind('=');
    double weight = 0;
    if (sign == std::string::npos || !absl::SimpleAtod(item.substr(sign + 1), &weight) ||
        !(weight >= 0.001 && weight <= 1000)) {
      return InvalidArgument("--tenant-weights has \"{}\": give name=weight, 0.001 to 1000", item);
    }
    weights[item.substr(0, sign)] = weight;
  }
  return weights;
}

absl::StatusOr<EngineOptions> OptionsFromFlags() {
  EngineOptions options;
  ASSIGN_OR_RETURN(options.tenant_weights, ParseWeights(absl::GetFlag(FLAGS_tenant_weights)));
  options.engine_id = absl::GetFlag(FLAGS_engine_id);
  options.listen = absl::GetFlag(FLAGS_listen);
  options.num_ranks = absl::GetFlag(FLAGS_tensor_parallel_size);
  options.max_num_seqs = absl::GetFlag(FLAGS_max_num_seqs);
  options.max_num_batched_tokens = absl::GetFlag(FLAGS_max_num_batched_tokens);
  options.target_itl_ms = absl::GetFlag(FLAGS_target_itl_ms);
  options.max_queued_requests = absl::GetFlag(FLAGS_max_queued_requests);
  options.arena_mb = absl::GetFlag(FLAGS_arena_mb);
  options.enable_prefix_caching = !absl::GetFlag(FLAGS_no_enable_prefix_caching);
  options.overlap = !absl::GetFlag(FLAGS_no_overlap);
  options.check_invariants = absl::GetFlag(FLAGS_check_invariants);
  options.record_plans = absl::GetFlag(FLAGS_record_plans);
  options.log_requests = absl::GetFlag(FLAGS_log_requests);
  options.drain_timeout_ms = absl::GetFlag(FLAGS_drain_timeout_s) * 1000;
  options.lease_timeout_ms = absl::GetFlag(FLAGS_lease_timeout_ms);
  return options;
}

absl::StatusOr<std::unique_ptr<prometheus::Exposer>> ExposeMetrics(
    const std::shared_ptr<prometheus::Registry>& registry) {
  const uint32_t port = absl::GetFlag(FLAGS_metrics_port);
  if (port == 0) return nullptr;
  const std::string address = fmt::format("{}:{}", absl::GetFlag(FLAGS_metrics_host), port);
  try {
    auto exposer = std::make_unique<prometheus::Exposer>(address, 1);
    exposer->RegisterCollectable(registry);
    return exposer;
  } catch (const std::exception& error) {
    return Unavailable("cannot serve metrics on {} ({}): choose another --metrics-port", address,
                       error.what());
  }
}

// Blocks the signals that stop us in this thread and all it will start; returns the set to wait
// for.
sigset_t BlockStopSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGUSR1);  // ends the thread that waits for the others
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return signals;
}

absl::Status Main() {
  const sigset_t signals = BlockStopSignals();
  ASSIGN_OR_RETURN(const EngineOptions options, OptionsFromFlags());
  auto registry = std::make_shared<prometheus::Registry>();
  Metrics metrics =
      Metrics::Make(*registry, absl::GetFlag(FLAGS_model_name), absl::GetFlag(FLAGS_engine_id));
  ASSIGN_OR_RETURN(const std::unique_ptr<prometheus::Exposer> exposer, ExposeMetrics(registry));
  ASSIGN_OR_RETURN(const std::unique_ptr<EngineLoop> loop, EngineLoop::Create(options, &metrics));
  spdlog::info("msg=\"scheduler started\" engine={} listen={} ranks={} max_num_seqs={}",
               options.engine_id, options.listen, options.num_ranks, options.max_num_seqs);
  std::thread stopper([&] {
    for (int signal = 0; sigwait(&signals, &signal) == 0 && signal != SIGUSR1;) {
      loop->Stop();
    }
  });
  loop->Run();
  pthread_kill(stopper.native_handle(), SIGUSR1);
  stopper.join();
  return absl::OkStatus();
}

}  // namespace
}  // namespace penstock::scheduler

int main(int argc, char** argv) {
  const std::vector<char*> rest =
      penstock::ParseFlags("schedules one engine; routers and workers connect to it", argc, argv);
  penstock::InitLogging("scheduler");
  if (rest.size() > 1) {
    spdlog::error("msg=\"unexpected argument\" argument=\"{}\"", rest[1]);
    return penstock::scheduler::kExitBadInput;
  }
  if (absl::Status status = penstock::scheduler::Main(); !status.ok()) {
    spdlog::error("msg=\"cannot serve\" reason=\"{}\"", penstock::Message(status));
    return absl::IsInternal(status) ? 1 : penstock::scheduler::kExitBadInput;
  }
  spdlog::shutdown();
  return 0;
}
