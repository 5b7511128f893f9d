#include "scheduler/record/recorded_batch.h"

#include "scheduler/record/plan_words.h"

namespace penstock::scheduler {

record::Event* RecordedBatch::Add() {
  results_ = nullptr;
  return recorder_->Add();
}

void RecordedBatch::Reset(uint64_t epoch, const ModelFacts& model,
                          uint32_t max_num_batched_tokens) {
  if (Recording()) {
    record::Reset& reset = *Add()->mutable_reset();
    reset.set_epoch(epoch);
    reset.set_num_pages(model.num_pages);
    reset.set_page_size(model.page_size);
    reset.set_max_model_len(model.max_model_len);
    reset.set_vocab_size(model.vocab_size);
    reset.set_model_max_num_batched_tokens(model.max_num_batched_tokens);
    reset.set_max_num_batched_tokens(max_num_batched_tokens);
  }
  max_tokens_ = max_num_batched_tokens;
  Batch::Reset(model, max_num_batched_tokens);
}

void RecordedBatch::Enqueue(Request* request, const wire::Submit& submit) {
  request->serial = ++last_serial_;
  if (Recording()) {
    record::Enqueue& enqueue = *Add()->mutable_enqueue();
    enqueue.set_serial(request->serial);
    *enqueue.mutable_submit() = submit;
  }
  Batch::Enqueue(request);
}

void RecordedBatch::Remove(Request* request) {
  if (Recording()) Add()->set_remove(request->serial);
  Batch::Remove(request);
}

void RecordedBatch::LearnLength(const Request& request) {
  if (Recording()) Add()->set_learn_length(request.serial);
  Batch::LearnLength(request);
}

void RecordedBatch::SetMaxTokens(uint32_t max_tokens) {
  max_tokens_ = max_tokens;  // goes with the next Compose
  Batch::SetMaxTokens(max_tokens);
}

bool RecordedBatch::Compose(uint64_t step, PlanRecord* record) {
  const bool any = Batch::Compose(step, record);
  if (Recording()) {
    record::Compose& compose = *Add()->mutable_compose();
    compose.set_step(step);
    compose.set_max_tokens(max_tokens_);
    PutPlan(*record, &compose);
    for (const shm::PlanSlot& bind : record->binds) {
      compose.add_bound(Find(bind.slot, bind.generation)->serial);
    }
  }
  return any;
}

void RecordedBatch::CompleteStep(uint64_t step) {
  if (Recording()) Add()->set_complete_step(step);
  Batch::CompleteStep(step);
}

void RecordedBatch::LoseRanks(std::vector<Request*>* failed) {
  record::LoseRanks* lose = nullptr;
  if (Recording()) lose = Add()->mutable_lose_ranks();
  Batch::LoseRanks(failed);
  if (lose == nullptr) return;
  for (const Request* request : *failed) lose->add_failed(request->serial);
}

void RecordedBatch::BeginResults(const shm::ResultHeader& step) {
  if (!Recording()) return;
  record::Results* results = Add()->mutable_results();
  results->set_step(step.step);
  results->set_begin_ns(step.begin_ns);
  results->set_end_ns(step.end_ns);
  results->set_idle_ns(step.idle_ns);
  results->mutable_rows()->Reserve(static_cast<int>(step.num_rows) * kWordsOf<RecordedId>);
  results_ = results;
}

void RecordedBatch::NoteResult(const shm::ResultRow& row) {
  if (!Recording() || row.is_prompt != 0) return;
  if (results_ == nullptr) results_ = Add()->mutable_results();
  const uint32_t words[] = {row.slot, row.generation, static_cast<uint32_t>(row.token_id),
                            static_cast<uint32_t>(row.position)};
  results_->mutable_rows()->Add(std::begin(words), std::end(words));
}

}  // namespace penstock::scheduler
