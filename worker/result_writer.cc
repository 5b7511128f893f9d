#include "worker/result_writer.h"

#include <cstring>

#include "common/log.h"

namespace penstock::worker {
namespace {

int NumOutputs(const StepBatch& batch) { return static_cast<int>(batch.outputs().size()); }

// FNV-1a over whole ids.
uint64_t HashIds(const StepBatch& batch) {
  uint64_t hash = 0xcbf29ce484222325;
  for (int i = 0; i < NumOutputs(batch); ++i) {
    if (batch.outputs()[i].is_prompt) continue;
    hash = (hash ^ static_cast<uint32_t>(batch.ids()[i])) * 0x100000001b3;
  }
  return hash;
}

int NumTop(const StepBatch& batch, int i) {
  return batch.sample_rows()[i].num_top < 0 ? 0 : batch.logprobs()[i].num_top;
}

void WritePad(std::byte* at, uint32_t bytes) {
  // A pad may be as short as 8 bytes: no more than the two fields that mark it.
  const uint32_t pad[2] = {bytes, shm::kPadResult};
  std::memcpy(at, pad, sizeof(pad));
}

}  // namespace

uint64_t MaxResultBytes(int max_tokens) {
  return sizeof(shm::ResultHeader) +
         uint64_t{static_cast<uint32_t>(max_tokens)} *
             (sizeof(shm::ResultRow) + shm::kMaxTopLogprobs * sizeof(shm::ResultTop));
}

ResultWriter::ResultWriter(shm::Segment* segment, int rank)
    : segment_(segment),
      rank_(rank),
      ring_(segment->result_ring(rank), &segment->rank(rank).result_tail) {}

bool ResultWriter::TryWrite(uint64_t epoch, uint64_t step, const StepBatch& batch,
                            const StepTimes& times) {
  uint32_t bytes = sizeof(shm::ResultHeader);
  const int num_rows = rank_ == 0 ? NumOutputs(batch) : 0;
  for (int i = 0; i < num_rows; ++i) {
    bytes += sizeof(shm::ResultRow) + NumTop(batch, i) * sizeof(shm::ResultTop);
  }
  const uint64_t cursor = segment_->rank(rank_).result_cursor.load(std::memory_order_acquire);
  std::byte* record = ring_.Reserve(bytes, cursor, WritePad);
  if (record == nullptr) return false;
  shm::ResultHeader header = {};
  header.bytes = bytes;
  header.num_rows = static_cast<uint32_t>(num_rows);
  header.epoch = epoch;
  header.step = step;
  header.ids_hash = HashIds(batch);
  header.plan_ns = times.plan_ns;
  header.begin_ns = times.begin_ns;
  header.end_ns = times.end_ns;
  header.idle_ns = times.idle_ns;
  std::memcpy(record, &header, sizeof(header));
  if (num_rows > 0) {
    CHECK(WriteRows(batch, record + sizeof(header)) == record + bytes);
  }
  ring_.Publish();
  return true;
}

std::byte* ResultWriter::WriteRows(const StepBatch& batch, std::byte* at) {
  for (int i = 0; i < NumOutputs(batch); ++i) {
    const kernels::SampleRow& sample = batch.sample_rows()[i];
    const kernels::SampledLogprobs& logprobs = batch.logprobs()[i];
    const Output& output = batch.outputs()[i];
    const bool with_logprob = sample.num_top >= 0;
    shm::ResultRow row = {};
    row.slot = output.slot;
    row.generation = output.generation;
    row.token_id = output.is_prompt ? sample.target_id : batch.ids()[i];
    row.position = sample.position;
    row.logprob = with_logprob ? logprobs.logprob : 0.0f;
    row.rank = with_logprob ? logprobs.rank : 0;
    row.num_top = static_cast<uint32_t>(NumTop(batch, i));
    row.is_prompt = output.is_prompt ? 1 : 0;
    std::memcpy(at, &row, sizeof(row));
    at += sizeof(row);
    for (uint32_t j = 0; j < row.num_top; ++j) {
      const shm::ResultTop top = {logprobs.top_id[j], logprobs.top_logprob[j]};
      std::memcpy(at, &top, sizeof(top));
      at += sizeof(top);
    }
  }
  return at;
}

}  // namespace penstock::worker
