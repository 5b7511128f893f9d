#include "tools/bench/simulate/engine.h"

#include <algorithm>
#include <limits>

#include "common/log.h"

namespace penstock::simulate {
namespace {

constexpr uint32_t kVocabulary = 1 << 17;

// Ids that depend on both numbers, of which no two prompts share a page but those of one prefix.
int32_t MakeId(uint64_t text, uint64_t position) {
  uint64_t bits = (text * 0x9e3779b97f4a7c15u) ^ (position * 0xc2b2ae3d27d4eb4fu);
  bits ^= bits >> 29;
  return static_cast<int32_t>((bits * 0xbf58476d1ce4e5b9u) >> 47);
}
static_assert(kVocabulary == 1 << (64 - 47));

}  // namespace

Engine::Engine(const DeviceModel& device, const EngineConfig& config, const SetUp& set_up)
    : device_(device),
      config_(config),
      model_{config.num_pages, device.page_size(), device.max_model_len(), kVocabulary,
             config.max_num_batched_tokens},
      slots_(config.max_num_seqs),
      // Room for the ids of all that may run: never what admission waits for.
      arena_(uint64_t{config.max_num_seqs} * device.max_model_len() * 4 + (1 << 20)),
      batch_(slots_, arena_,
             config.share_prefixes ? std::optional(scheduler::KeySecret{1, 2}) : std::nullopt),
      step_budget_(config.target_itl_s, config.max_num_batched_tokens) {
  batch_.Reset(model_, config.max_num_batched_tokens);
  before_step_ = set_up(batch_);
}

bool Engine::Submit(const TraceItem& item, const TraceSpec& trace, double now_s) {
  const std::string tenant = trace.one_queue ? "" : std::to_string(item.tenant);
  if (batch_.queue().IsFull(0, tenant, config_.max_queued_requests)) return false;
  if (unused_.empty()) unused_.push_back(&requests_.emplace_back());
  SimRequest& request = *unused_.back();
  unused_.pop_back();
  std::vector<int32_t> ids = std::move(request.ids);
  request = SimRequest();
  request.ids = std::move(ids);
  request.ids.clear();
  request.id = ++next_id_;
  for (uint32_t i = 0; i < item.prompt_len; ++i) {
    const bool shared = i < item.prefix_len;
    request.ids.push_back(MakeId(shared ? item.prefix : (uint64_t{1} << 32) + request.id, i));
  }
  request.prompt_len = item.prompt_len;
  request.sampling.set_max_tokens(static_cast<int32_t>(trace.max_tokens));
  request.output_len = item.output_len;
  request.tenant = tenant;
  request.arrived_s = now_s;
  batch_.Enqueue(&request);
  return true;
}

void Engine::Publish(double now_s) {
  while (in_flight_.size() < 2) {
    if (before_step_) before_step_(batch_.PageUsage());
    batch_.SetMaxTokens(step_budget_.Tokens(batch_.num_decodes()));
    if (!batch_.Compose(num_steps_ + 1, &record_)) return;
    Step step = {++num_steps_, 0, scheduler::StepShape::Of(record_.rows), 0, {}};
    if (!spare_.empty()) {
      step.samples = std::move(spare_.back());
      spare_.pop_back();
      step.samples.clear();
    }
    uint64_t num_read = 0;
    for (const shm::PlanRow& row : record_.rows) {
      if (row.num_tokens == 1) num_read += row.start + 1;
      if ((row.flags & shm::kRowSample) == 0) continue;
      step.samples.push_back({row.slot, slots_[row.slot].generation});
    }
    device_free_s_ = std::max(device_free_s_, now_s);
    if (!record_.rows.empty()) {
      const double noise = std::max(-0.5, config_.step_noise * normal_(random_));
      step.seconds = (1 + noise) * device_.StepSeconds(step.shape.num_decodes, num_read,
                                                       step.shape.num_prompt_tokens);
      device_free_s_ += step.seconds;
    }
    step.end_s = device_free_s_;
    in_flight_.push_back(std::move(step));
  }
}

double Engine::NextCompletion() const {
  return in_flight_.empty() ? std::numeric_limits<double>::infinity() : in_flight_.front().end_s;
}

void Engine::Complete(const std::function<void(const SimRequest&)>& done, LogHistogram* itl_s) {
  Step step = std::move(in_flight_.front());
  in_flight_.pop_front();
  step_budget_.Observe(step.shape, step.seconds);
  for (const shm::PlanSlot& row : step.samples) {
    auto* request = static_cast<SimRequest*>(batch_.Find(row.slot, row.generation));
    if (request == nullptr) continue;
    request->ids.push_back(static_cast<int32_t>(request->ids.size() % kVocabulary));
    if (request->num_outputs() == 1) {
      request->first_s = step.end_s;
    } else if (itl_s != nullptr) {
      itl_s->Add(step.end_s - request->last_s);
    }
    request->last_s = step.end_s;
    if (request->num_outputs() < request->output_len &&
        request->ids.size() < LengthLimit(*request, model_)) {
      continue;
    }
    batch_.LearnLength(*request);
    batch_.Remove(request);
    done(*request);
    unused_.push_back(request);
  }
  batch_.CompleteStep(step.number);
  spare_.push_back(std::move(step.samples));
}

}  // namespace penstock::simulate
