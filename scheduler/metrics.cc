#include "scheduler/metrics.h"

namespace penstock::scheduler {

Metrics Metrics::Make(prometheus::Registry& registry, const std::string& model_name,
                      const std::string& engine) {
  const prometheus::Labels labels{{"model_name", model_name}, {"engine", engine}};
  auto gauge = [&](const char* name, const char* help) {
    return &prometheus::BuildGauge().Name(name).Help(help).Labels(labels).Register(registry).Add(
        {});
  };
  auto counter = [&](const char* name, const char* help) {
    return &prometheus::BuildCounter().Name(name).Help(help).Labels(labels).Register(registry).Add(
        {});
  };
  auto histogram = [&](const char* name, const char* help,
                       const prometheus::Histogram::BucketBoundaries& buckets) {
    return &prometheus::BuildHistogram()
                .Name(name)
                .Help(help)
                .Labels(labels)
                .Register(registry)
                .Add({}, buckets);
  };
  const prometheus::Histogram::BucketBoundaries seconds{
      0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5};
  Metrics m;
  m.num_requests_running = gauge("vllm:num_requests_running", "Requests in execution.");
  m.num_requests_waiting = gauge("vllm:num_requests_waiting", "Requests waiting for admission.");
  m.kv_cache_usage_perc = gauge("vllm:kv_cache_usage_perc", "KV pages in use; 1 means all.");
  m.device_idle_ratio =
      gauge("penstock_device_idle_ratio", "Share of time the device waited though there was work.");
  m.step_token_budget =
      gauge("penstock_step_token_budget", "Tokens that the last step planned might have.");
  m.num_preemptions = counter("vllm:num_preemptions_total", "Requests put back to be recomputed.");
  m.prompt_tokens = counter("vllm:prompt_tokens_total", "Prompt tokens of admitted requests.");
  m.generation_tokens = counter("vllm:generation_tokens_total", "Tokens generated.");
  m.discarded_tokens = counter("penstock_discarded_tokens_total",
                               "Tokens of requests that ended while a step was under way.");
  m.worker_restarts =
      counter("penstock_worker_restarts_total", "Times the group of ranks was lost.");
  m.prefix_cache_queries =
      counter("vllm:prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache.");
  m.prefix_cache_hits =
      counter("vllm:prefix_cache_hits_total", "Prompt tokens found in the prefix cache.");
  m.iteration_tokens = histogram("vllm:iteration_tokens_total", "Tokens of a step.",
                                 {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384});
  m.request_queue_seconds =
      histogram("vllm:request_queue_time_seconds", "Time from arrival to first admission.",
                {0.001, 0.005, 0.01, 0.05, 0.1, 0.3, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300});
  m.step_seconds = histogram("penstock_step_seconds", "Time of a step on the device.", seconds);
  m.plan_seconds =
      histogram("penstock_plan_seconds", "Time to make and publish a plan.",
                {0.000005, 0.00001, 0.00002, 0.00004, 0.00006, 0.0001, 0.00025, 0.001, 0.01});
  m.cache_config_info = &prometheus::BuildGauge()
                             .Name("vllm:cache_config_info")
                             .Help("Facts of the KV cache, as labels.")
                             .Labels(labels)
                             .Register(registry);
  return m;
}

void Metrics::SetCacheConfig(uint32_t page_size, uint32_t num_pages) {
  if (cache_config != nullptr) cache_config_info->Remove(cache_config);
  cache_config = &cache_config_info->Add(
      {{"block_size", std::to_string(page_size)}, {"num_gpu_blocks", std::to_string(num_pages)}});
  cache_config->Set(1);
}

}  // namespace penstock::scheduler
