#include "router/service/service.h"

#include <utility>

#include "router/tokenizer/utf8.h"

namespace penstock::router {
namespace {

constexpr char kDrains[] = "this server drains: send the request to another one";

}  // namespace

std::string MakeRequestId(const std::string& prefix) {
  return fmt::format("{}-{:016x}{:016x}", prefix, RandomU64(), RandomU64());
}

RouterService::RouterService(const ServedModel& model, EnginePool& engines, Metrics& metrics,
                             WorkerPool& workers)
    : model_(model), engines_(engines), metrics_(metrics), workers_(workers) {}

ModelLimits RouterService::limits() const {
  const int32_t loaded = static_cast<int32_t>(engines_.max_model_len());
  return {.names = model_.names,
          .vocab_size = model_.vocab_size,
          .max_model_len = loaded != 0 ? loaded : model_.context_length,
          .defaults = model_.defaults};
}

absl::StatusOr<std::shared_ptr<Generation>> RouterService::Prepare(
    RequestFields fields, std::weak_ptr<OutputListener> listener, Delivery delivery) {
  const ModelLimits limits = this->limits();
  ASSIGN_OR_RETURN(GenerationRequest request, Validate(std::move(fields), limits));
  RETURN_IF_ERROR(CheckText(&request));
  if (draining_) return Unavailable("{}", kDrains);
  if (request.deadline && *request.deadline <= std::chrono::steady_clock::now()) {
    return DeadlineExceeded("the request's time was up when it was read: give it more");
  }
  RETURN_IF_ERROR(engines_.Accepts());
  ASSIGN_OR_RETURN(std::vector<int32_t> ids, PromptIds(request));
  RETURN_IF_ERROR(FitToContext(static_cast<int64_t>(ids.size()), limits, &request));
  if (!request.ignore_eos) {
    for (const int32_t id : model_.tokenizer->eos_ids()) request.sampling.add_stop_ids(id);
  }
  if (!request.has_seed) request.sampling.set_seed(RandomU64());
  if (request.request_id.empty()) request.request_id = MakeRequestId("req");
  return std::make_shared<Generation>(std::move(request), std::move(ids), *model_.tokenizer,
                                      metrics_, std::move(listener), delivery);
}

void RouterService::Submit(const std::shared_ptr<Generation>& generation) {
  const GenerationRequest& request = generation->request();
  {
    std::lock_guard lock(mutex_);
    ++num_open_;
  }
  metrics_.open_streams.Increment();
  const auto on_end = [this] {
    metrics_.open_streams.Decrement();
    std::lock_guard lock(mutex_);
    if (--num_open_ == 0) idle_.notify_all();
  };
  if (!generation->Open(on_end)) return on_end();
  metrics_.prompt_tokens.Increment(generation->prompt_tokens());
  std::vector<std::shared_ptr<OpenRequest>> choices;
  for (int i = 0; i < generation->num_choices(); ++i) {
    choices.push_back(std::make_shared<OpenRequest>());
    wire::Submit& submit = choices.back()->submit;
    submit.set_request_id(generation->num_choices() == 1
                              ? request.request_id
                              : fmt::format("{}-{}", request.request_id, i));
    submit.mutable_ids()->Assign(generation->prompt_ids().begin(), generation->prompt_ids().end());
    submit.set_prompt_len(generation->prompt_tokens());
    *submit.mutable_sampling() = request.sampling;
    submit.mutable_sampling()->set_seed(ChoiceSeed(request.sampling.seed(), i));
    submit.set_priority(request.priority);
    submit.set_tenant(request.tenant);
    submit.set_cache_salt(request.cache_salt);
    submit.set_skip_prefix_cache(request.skip_prefix_cache);
    choices.back()->deadline = request.deadline;
    choices.back()->sink = generation->Sink(i);
  }
  const absl::StatusOr<std::vector<uint64_t>> ids = engines_.Submit(choices);
  if (!ids.ok()) {
    generation->Fail(ids.status());
    generation->Flush();
    return;
  }
  generation->SetCanceller([this, ids = *ids] { engines_.Cancel(ids); });
}

absl::Status RouterService::NeedsText(const std::string& field) const {
  if (model_.tokenizer->has_text()) return absl::OkStatus();
  return FieldError(field, "this model has no tokenizer: send token ids, as prompt");
}

absl::Status RouterService::CheckText(GenerationRequest* request) const {
  if (model_.tokenizer->has_text()) return absl::OkStatus();
  if (std::holds_alternative<ChatPrompt>(request->prompt)) return NeedsText("messages");
  if (std::holds_alternative<std::string>(request->prompt)) return NeedsText("prompt");
  if (!request->stop.empty()) {
    return FieldError("stop", "this model has no tokenizer: give stop_token_ids instead of stop");
  }
  // There is nothing else to return: without them no output would be seen before the last.
  request->return_token_ids = true;
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> RouterService::PromptIds(
    const GenerationRequest& request) const {
  if (const auto* text = std::get_if<std::string>(&request.prompt)) {
    return Tokenize(*text, request.add_special_tokens);
  }
  if (const auto* messages = std::get_if<ChatPrompt>(&request.prompt)) {
    return TokenizeChat(*messages, request.add_generation_prompt);
  }
  const auto& ids = std::get<TokenPrompt>(request.prompt);
  return std::vector<int32_t>(ids.begin(), ids.end());
}

absl::StatusOr<std::vector<int32_t>> RouterService::Tokenize(
    const std::string& text, std::optional<bool> add_special_tokens) const {
  RETURN_IF_ERROR(NeedsText("prompt"));
  if (!IsValidUtf8(text)) return FieldError("prompt", "prompt is not valid UTF-8");
  return Known(model_.tokenizer->EncodePrompt(text, add_special_tokens.value_or(true)), "prompt");
}

absl::StatusOr<std::vector<int32_t>> RouterService::Known(std::vector<int32_t> ids,
                                                          const char* field) const {
  for (const int32_t id : ids) {
    if (id < model_.vocab_size) continue;
    return FieldError(
        field, fmt::format("{} has \"{}\", token id {}, but the model knows ids up to "
                           "{} alone: leave it out",
                           field, model_.tokenizer->TokenBytes(id), id, model_.vocab_size - 1));
  }
  return ids;
}

absl::StatusOr<std::vector<int32_t>> RouterService::TokenizeChat(const ChatPrompt& messages,
                                                                 bool add_generation_prompt) const {
  RETURN_IF_ERROR(NeedsText("messages"));
  if (model_.chat_template == nullptr) {
    return FailedPrecondition("{} serves completions alone: {}", model_.names.front(),
                              model_.why_no_chat);
  }
  ChatTemplate::Json turns = ChatTemplate::Json::array();
  for (const ChatTurn& turn : messages) {
    if (!IsValidUtf8(turn.role) || !IsValidUtf8(turn.content)) {
      return FieldError("messages", "messages has text that is not valid UTF-8");
    }
    turns.push_back({{"role", turn.role}, {"content", turn.content}});
  }
  ASSIGN_OR_RETURN(const std::string text,
                   model_.chat_template->Render(turns, nullptr, add_generation_prompt, nullptr));
  return Known(model_.tokenizer->Encode(text, /*parse_special=*/true), "messages");
}

absl::StatusOr<std::string> RouterService::Detokenize(const std::vector<int64_t>& ids) const {
  RETURN_IF_ERROR(NeedsText("tokens"));
  std::vector<int32_t> tokens;
  const int32_t size = model_.vocab_size;
  for (const int64_t id : ids) {
    if (id < 0 || id >= size) {
      return FieldError("tokens",
                        fmt::format("tokens has id {}: the model's ids are 0 to {}", id, size - 1));
    }
    tokens.push_back(static_cast<int32_t>(id));
  }
  return model_.tokenizer->Decode(tokens, /*skip_special=*/false);
}

absl::Status RouterService::Ready() const {
  if (draining_) return Unavailable("{}", kDrains);
  return engines_.Ready();
}

void RouterService::StartDraining() { draining_ = true; }

bool RouterService::WaitUntilIdle(std::chrono::steady_clock::time_point deadline) {
  std::unique_lock lock(mutex_);
  return idle_.wait_until(lock, deadline, [this] { return num_open_ == 0; });
}

}  // namespace penstock::router
