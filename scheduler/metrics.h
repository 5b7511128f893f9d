// What the scheduler tells Prometheus. Names follow vLLM's where it has a word; labels model_name
// and engine. The engine thread updates, prometheus-cpp's own threads read.
#pragma once

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <cstdint>
#include <string>

namespace penstock::scheduler {

struct Metrics {
  prometheus::Gauge* num_requests_running;
  prometheus::Gauge* num_requests_waiting;
  prometheus::Gauge* kv_cache_usage_perc;  // 0..1, as vLLM's
  prometheus::Gauge* device_idle_ratio;    // 0..1, over the last second or so
  prometheus::Gauge* step_token_budget;    // of the last step planned: --target-itl-ms
  prometheus::Counter* num_preemptions;
  prometheus::Counter* prompt_tokens;
  prometheus::Counter* generation_tokens;
  prometheus::Counter* discarded_tokens;  // of requests that had ended or been cancelled
  prometheus::Counter* worker_restarts;
  prometheus::Counter* prefix_cache_queries;                 // tokens
  prometheus::Counter* prefix_cache_hits;                    // tokens
  prometheus::Histogram* iteration_tokens;                   // tokens of a step
  prometheus::Histogram* request_queue_seconds;              // from Submit to the first admission
  prometheus::Histogram* step_seconds;                       // of the device
  prometheus::Histogram* plan_seconds;                       // to make a plan and publish it
  prometheus::Family<prometheus::Gauge>* cache_config_info;  // value 1, facts as labels
  prometheus::Gauge* cache_config = nullptr;                 // the one there is

  // All registered with `registry`, which must outlive them.
  static Metrics Make(prometheus::Registry& registry, const std::string& model_name,
                      const std::string& engine);
  void SetCacheConfig(uint32_t page_size, uint32_t num_pages);
};

}  // namespace penstock::scheduler
