// The router's metrics: vLLM's names where vLLM has one, else penstock_*. Thread-safe.
#pragma once

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <string>
#include <vector>

#include "router/engine/engine_link.h"

namespace penstock::router {

class Metrics {
 public:
  explicit Metrics(const std::string& model_name);

  // All seconds.
  prometheus::Histogram& time_to_first_token;
  prometheus::Histogram& inter_token_latency;
  prometheus::Histogram& time_per_output_token;
  prometheus::Histogram& e2e_latency;
  prometheus::Counter& prompt_tokens;
  prometheus::Counter& generation_tokens;
  prometheus::Gauge& open_streams;
  prometheus::Family<prometheus::Counter>& grpc_requests;  // labels method, code

  // vllm:request_success_total; reason: stop, length, abort, error.
  void CountEnd(const std::string& reason);
  void CountHttp(const std::string& path, int code);
  void CountGrpc(const std::string& method, const std::string& code);

  // The Prometheus text format, engines' gauges among it.
  std::string Render(const std::vector<EngineState>& engines);

 private:
  Metrics(const std::string& model_name, std::shared_ptr<prometheus::Registry> registry);

  const std::string model_name_;
  const std::shared_ptr<prometheus::Registry> registry_;
  prometheus::Family<prometheus::Counter>& ends_;
  prometheus::Family<prometheus::Counter>& http_requests_;
};

}  // namespace penstock::router
