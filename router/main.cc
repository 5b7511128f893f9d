// penstock-router: text in, text out. Flags may be spelt with dashes or underscores.
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <string>
#include <vector>

#include "absl/flags/flag.h"
#include "common/flags.h"
#include "common/log.h"
#include "common/notify.h"
#include "router/api/grpc/server.h"
#include "router/api/http/http_server.h"
#include "router/api/http/routes.h"
#include "router/service/load_model.h"
#include "router/service/service.h"

ABSL_FLAG(std::vector<std::string>, engine, {},
          "engines' addresses: tcp://host:port or ipc:///path, separated by commas; repeatable");
ABSL_FLAG(std::string, model, "",
          "the model the engines serve: a GGUF file or the folder of a Hugging Face checkpoint");
ABSL_FLAG(std::string, load_format, "auto",
          "dummy: the checkpoint's folder may lack a tokeniser; clients then send token ids");
ABSL_FLAG(std::string, generation_config, "auto",
          "auto: what requests leave out is as the checkpoint's generation_config.json says; none: "
          "as for any model");
ABSL_FLAG(std::vector<std::string>, served_model_name, {},
          "names clients may ask for, separated by commas; default: the file's or folder's");
ABSL_FLAG(std::string, host, "127.0.0.1", "address to listen on");
ABSL_FLAG(int, port, 8000, "HTTP port");
ABSL_FLAG(int, grpc_port, 50051, "gRPC port; 0: none");
ABSL_FLAG(std::string, api_key, "", "clients must send it as a bearer token; PENSTOCK_API_KEY");
ABSL_FLAG(int, max_body_mb, 8, "largest request, in MiB");
ABSL_FLAG(int, threads, 1, "threads for HTTP connections");
ABSL_FLAG(int, workers, 2, "threads for JSON, templates and tokenising");
ABSL_FLAG(bool, grpc_message_per_token, false, "never put two tokens into one gRPC message");
ABSL_FLAG(int, engine_timeout_s, 60, "how long a stream waits for an engine that is gone");
ABSL_FLAG(int, drain_timeout_s, 30, "how long running streams may take to end on SIGTERM");
ABSL_FLAG(bool, die_with_parent, false, "end when the process that started this one does");

namespace penstock::router {
namespace {

constexpr int kExitBadInput = 2;  // a flag, the model or a port: trying again won't help
constexpr size_t kMaxQueuedTasks = 8192;

// --engine=A --engine B -> --engine=A,B: Abseil would take the last one only.
std::vector<std::string> WithOneEngineFlag(int argc, char** argv) {
  std::vector<std::string> args = {argv[0]};
  std::string engines;
  for (int i = 1; i < argc; ++i) {
    std::string arg = argv[i];
    if (arg == "--engine" && i + 1 < argc) arg = fmt::format("--engine={}", argv[++i]);
    if (arg.starts_with("--engine=")) {
      if (!engines.empty()) engines += ',';
      engines += arg.substr(9);
    } else {
      args.push_back(std::move(arg));
    }
  }
  if (!engines.empty()) args.push_back(fmt::format("--engine={}", engines));
  return args;
}

absl::StatusOr<ServedModel> LoadServedModel() {
  LoadModelOptions options;
  options.path = absl::GetFlag(FLAGS_model);
  if (options.path.empty()) {
    return InvalidArgument(
        "--model is missing: give a GGUF file or the folder of a Hugging Face checkpoint");
  }
  const std::string format = absl::GetFlag(FLAGS_load_format);
  if (format != "auto" && format != "dummy") {
    return InvalidArgument("--load-format {} must be auto or dummy", format);
  }
  const std::string generation_config = absl::GetFlag(FLAGS_generation_config);
  if (generation_config != "auto" && generation_config != "none") {
    return InvalidArgument("--generation-config {} must be auto or none", generation_config);
  }
  options.use_generation_config = generation_config == "auto";
  options.names = absl::GetFlag(FLAGS_served_model_name);
  options.tokenizer_optional = format == "dummy";
  return LoadModel(options);
}

std::string ApiKey() {
  const std::string flag = absl::GetFlag(FLAGS_api_key);
  const char* variable = std::getenv("PENSTOCK_API_KEY");
  return !flag.empty() || variable == nullptr ? flag : variable;
}

// Tells health checks and the supervisor when readiness changes; returns at a stop signal.
// `changed` is an eventfd that the engines' links write to, `stop` a signalfd.
void WatchUntilSignal(int stop, int changed, const RouterService& service, GrpcServer* grpc) {
  bool ready = false;
  std::string reason;
  pollfd events[] = {{.fd = stop, .events = POLLIN, .revents = 0},
                     {.fd = changed, .events = POLLIN, .revents = 0}};
  while (true) {
    const absl::Status now = service.Ready();
    if (now.ok() != ready || Message(now) != reason) {
      ready = now.ok();
      reason = Message(now);
      if (grpc != nullptr) grpc->SetServing(ready);
      if (ready) {
        spdlog::info("msg=\"ready\" model={}", service.model().names.front());
        NotifySupervisor("READY=1");
      } else {
        NotifySupervisor("STATUS=" + reason);
      }
    }
    if (poll(events, 2, -1) < 0) continue;  // EINTR
    if (events[0].revents != 0) return;
    eventfd_t count;
    eventfd_read(changed, &count);
  }
}

void Drain(RouterService& service, EnginePool& engines, HttpServer& http, GrpcServer* grpc) {
  const auto now = std::chrono::steady_clock::now();
  const auto deadline = now + std::chrono::seconds(absl::GetFlag(FLAGS_drain_timeout_s));
  spdlog::info("msg=\"draining\" timeout_s={}", absl::GetFlag(FLAGS_drain_timeout_s));
  NotifySupervisor("STOPPING=1");
  service.StartDraining();
  if (grpc != nullptr) grpc->SetServing(false);
  if (!service.WaitUntilIdle(deadline)) {
    spdlog::warn("msg=\"streams are cut off\" reason=\"the drain timeout has passed\"");
  }
  engines.Stop(Unavailable("the server ends"));
  // Last bytes to clients that read.
  http.Stop(std::chrono::steady_clock::now() + std::chrono::seconds(2));
  if (grpc != nullptr) grpc->Stop(std::chrono::system_clock::now() + std::chrono::seconds(2));
}

absl::Status Run(int stop) {
  ASSIGN_OR_RETURN(const ServedModel model, LoadServedModel());
  Metrics metrics(model.names.front());
  const int changed = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  LinkOptions link;
  link.on_change = [changed] { eventfd_write(changed, 1); };
  link.router_id = fmt::format("router-{:016x}", RandomU64());
  link.timeout_ms = absl::GetFlag(FLAGS_engine_timeout_s) * 1000;
  ASSIGN_OR_RETURN(const std::unique_ptr<EnginePool> engines,
                   EnginePool::Connect(absl::GetFlag(FLAGS_engine), link));
  WorkerPool workers(std::max(1, absl::GetFlag(FLAGS_workers)), kMaxQueuedTasks);
  RouterService service(model, *engines, metrics, workers);
  const std::string api_key = ApiKey();
  const int max_body_bytes = std::clamp(absl::GetFlag(FLAGS_max_body_mb), 1, 1024) << 20;
  Routes routes(service, api_key);
  HttpOptions http_options{.host = absl::GetFlag(FLAGS_host),
                           .port = absl::GetFlag(FLAGS_port),
                           .num_threads = std::max(1, absl::GetFlag(FLAGS_threads)),
                           .limits = {}};
  http_options.limits.max_body_bytes = static_cast<size_t>(max_body_bytes);
  ASSIGN_OR_RETURN(const std::unique_ptr<HttpServer> http, HttpServer::Start(routes, http_options));
  std::unique_ptr<GrpcServer> grpc;
  if (absl::GetFlag(FLAGS_grpc_port) != 0) {
    ASSIGN_OR_RETURN(
        grpc, GrpcServer::Start(
                  service, {.host = absl::GetFlag(FLAGS_host),
                            .port = absl::GetFlag(FLAGS_grpc_port),
                            .api_key = api_key,
                            .max_body_bytes = max_body_bytes,
                            .message_per_token = absl::GetFlag(FLAGS_grpc_message_per_token)}));
  }
  spdlog::info("msg=\"listening\" http={}:{} grpc_port={} model={} router_id={}", http_options.host,
               http->port(), absl::GetFlag(FLAGS_grpc_port), model.names.front(), link.router_id);
  WatchUntilSignal(stop, changed, service, grpc.get());
  Drain(service, *engines, *http, grpc.get());
  workers.Stop();
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  std::vector<std::string> args = WithOneEngineFlag(argc, argv);
  std::vector<char*> pointers;
  pointers.reserve(args.size());
  for (std::string& arg : args) pointers.push_back(arg.data());
  const std::vector<char*> rest = ParseFlags("gRPC and HTTP in, engines behind it",
                                             static_cast<int>(pointers.size()), pointers.data());
  InitLogging("router");
  if (rest.size() > 1) {
    spdlog::error("msg=\"unexpected argument\" argument=\"{}\"", rest[1]);
    return kExitBadInput;
  }
  if (absl::GetFlag(FLAGS_die_with_parent)) {
    const pid_t parent = getppid();
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent || parent == 1) return 0;  // it died before the line above
  }
  // Every thread inherits the mask, so that the signals reach Run alone, as something to read.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  const absl::Status status = Run(signalfd(-1, &signals, SFD_CLOEXEC));
  if (!status.ok()) {
    spdlog::error("msg=\"router cannot start\" reason=\"{}\"", Message(status));
    return kExitBadInput;
  }
  spdlog::info("msg=\"router ended\"");
  return 0;
}

}  // namespace
}  // namespace penstock::router

int main(int argc, char** argv) { return penstock::router::Main(argc, argv); }
