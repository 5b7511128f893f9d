#include "router/service/metrics.h"

#include <prometheus/text_serializer.h>

#include <algorithm>
#include <utility>

namespace penstock::router {
namespace {

using prometheus::BuildCounter;
using prometheus::BuildGauge;
using prometheus::BuildHistogram;
using prometheus::Registry;

// vLLM's buckets, so that its dashboards fit.
const prometheus::Histogram::BucketBoundaries kFirstToken = {
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5,
    0.75,  1,     2.5,  5,    7.5,  10,   20,   40,  80,   160};
const prometheus::Histogram::BucketBoundaries kPerToken = {
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2,
    0.3,    0.4,   0.5,    0.75,  1,    2.5,   5,    7.5,   10,  20};
const prometheus::Histogram::BucketBoundaries kWhole = {
    0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480};

prometheus::Histogram& AddHistogram(Registry& registry, const std::string& model,
                                    const std::string& name, const std::string& help,
                                    const prometheus::Histogram::BucketBoundaries& buckets) {
  return BuildHistogram().Name(name).Help(help).Register(registry).Add({{"model_name", model}},
                                                                       buckets);
}

prometheus::Counter& AddCounter(Registry& registry, const std::string& model,
                                const std::string& name, const std::string& help) {
  return BuildCounter().Name(name).Help(help).Register(registry).Add({{"model_name", model}});
}

}  // namespace

Metrics::Metrics(const std::string& model_name)
    : Metrics(model_name, std::make_shared<Registry>()) {}

Metrics::Metrics(const std::string& model, std::shared_ptr<Registry> registry)
    : time_to_first_token(AddHistogram(*registry, model, "vllm:time_to_first_token_seconds",
                                       "From a request's arrival to its first token", kFirstToken)),
      inter_token_latency(AddHistogram(*registry, model, "vllm:inter_token_latency_seconds",
                                       "Between a request's tokens", kPerToken)),
      time_per_output_token(AddHistogram(*registry, model,
                                         "vllm:request_time_per_output_token_seconds",
                                         "A request's mean time between tokens", kPerToken)),
      e2e_latency(AddHistogram(*registry, model, "vllm:e2e_request_latency_seconds",
                               "From a request's arrival to its end", kWhole)),
      prompt_tokens(AddCounter(*registry, model, "vllm:prompt_tokens_total", "Tokens of prompts")),
      generation_tokens(
          AddCounter(*registry, model, "vllm:generation_tokens_total", "Tokens generated")),
      open_streams(BuildGauge()
                       .Name("penstock_router_open_streams")
                       .Help("Requests in flight at this router")
                       .Register(*registry)
                       .Add({{"model_name", model}})),
      grpc_requests(BuildCounter()
                        .Name("penstock_router_grpc_requests_total")
                        .Help("gRPC calls ended")
                        .Register(*registry)),
      model_name_(model),
      registry_(std::move(registry)),
      ends_(BuildCounter()
                .Name("vllm:request_success_total")
                .Help("Requests ended, by reason")
                .Register(*registry_)),
      http_requests_(BuildCounter()
                         .Name("penstock_router_http_requests_total")
                         .Help("HTTP requests answered")
                         .Register(*registry_)) {
  for (const char* reason : {"stop", "length", "abort", "error"}) {
    ends_.Add({{"model_name", model_name_}, {"finished_reason", reason}});
  }
}

void Metrics::CountEnd(const std::string& reason) {
  ends_.Add({{"model_name", model_name_}, {"finished_reason", reason}}).Increment();
}

void Metrics::CountHttp(const std::string& path, int code) {
  http_requests_.Add({{"path", path}, {"code", std::to_string(code)}}).Increment();
}

void Metrics::CountGrpc(const std::string& method, const std::string& code) {
  grpc_requests.Add({{"method", method}, {"code", code}}).Increment();
}

std::string Metrics::Render(const std::vector<EngineState>& engines) {
  // Engines' values are snapshots: a registry of the moment holds them.
  Registry moment;
  const auto gauge = [&](const std::string& name, const std::string& help, auto value) {
    auto& family = BuildGauge().Name(name).Help(help).Register(moment);
    for (size_t i = 0; i < engines.size(); ++i) {
      family.Add({{"model_name", model_name_}, {"engine", std::to_string(i)}})
          .Set(static_cast<double>(value(engines[i])));
    }
  };
  const auto counter = [&](const std::string& name, const std::string& help, auto value) {
    auto& family = BuildCounter().Name(name).Help(help).Register(moment);
    for (size_t i = 0; i < engines.size(); ++i) {
      family.Add({{"model_name", model_name_}, {"engine", std::to_string(i)}})
          .Increment(static_cast<double>(value(engines[i])));
    }
  };
  using E = EngineState;
  gauge("vllm:num_requests_running", "Requests in the batch",
        [](const E& e) { return e.status.num_running(); });
  gauge("vllm:num_requests_waiting", "Requests queued",
        [](const E& e) { return e.status.num_waiting(); });
  gauge("vllm:kv_cache_usage_perc", "KV pages in use, 0 to 1",
        [](const E& e) { return e.status.kv_cache_usage(); });
  gauge("penstock_router_engine_usable", "1: takes requests", [](const E& e) { return e.usable; });
  gauge("penstock_router_engine_in_flight", "This router's requests there",
        [](const E& e) { return e.in_flight; });
  gauge("penstock_device_idle_ratio", "Part of the time the device waits between steps",
        [](const E& e) { return e.status.device_idle_ratio(); });
  counter("vllm:num_preemptions_total", "Requests preempted",
          [](const E& e) { return e.status.num_preemptions(); });
  counter("vllm:prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache",
          [](const E& e) { return e.status.prefix_queries(); });
  counter("vllm:prefix_cache_hits_total", "Prompt tokens found in the prefix cache",
          [](const E& e) { return e.status.prefix_hits(); });
  counter("penstock_worker_restarts_total", "Worker groups started anew after a death",
          [](const E& e) { return e.status.worker_restarts(); });
  counter("penstock_router_resubmissions_total", "Requests an engine was given again",
          [](const E& e) { return e.resubmissions; });
  counter("penstock_router_gaps_total", "Messages of an engine that were lost and sent again",
          [](const E& e) { return e.gaps; });
  auto& config = BuildGauge()
                     .Name("vllm:cache_config_info")
                     .Help("The KV cache: pages and their size in tokens")
                     .Register(moment);
  for (size_t i = 0; i < engines.size(); ++i) {
    config
        .Add({{"model_name", model_name_},
              {"engine", std::to_string(i)},
              {"block_size", std::to_string(engines[i].status.page_size())},
              {"num_gpu_blocks", std::to_string(engines[i].status.num_pages())}})
        .Set(1);
  }
  std::vector<prometheus::MetricFamily> families = registry_->Collect();
  std::vector<prometheus::MetricFamily> more = moment.Collect();
  std::move(more.begin(), more.end(), std::back_inserter(families));
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace penstock::router
