#include "tests/gpu/attention_case.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <thread>

namespace penstock::kernels::cuda {
namespace {

float Rounded(float x) { return __bfloat162float(__float2bfloat16(x)); }

}  // namespace

AttentionCase::AttentionCase(const CaseShape& shape, uint64_t seed) : shape_(shape) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  const int num_rows = static_cast<int>(shape.rows.size());
  int max_pages = 1, used_pages = 0;
  for (const RowShape& row : shape.rows) {
    const int pages = (row.context + shape.page_size - 1) / shape.page_size;
    max_pages = std::max(max_pages, pages);
    used_pages += pages;
    max_queries_ = std::max(max_queries_, row.tokens);
  }
  const int num_pages = used_pages + 3;
  page_table_stride_ = max_pages + 2;
  slots_.resize(num_rows + 5);
  std::iota(slots_.begin(), slots_.end(), 0);
  std::shuffle(slots_.begin(), slots_.end(), random);
  std::vector<int32_t> pages(num_pages);
  std::iota(pages.begin(), pages.end(), 0);
  std::shuffle(pages.begin(), pages.end(), random);
  // Entries past a row's pages name a page of NaN.
  page_table_.assign(slots_.size() * page_table_stride_, pages[used_pages]);

  const size_t line = shape.head_size;
  const size_t page_elements = line * shape.page_size * shape.num_kv_heads;
  const __nv_bfloat16 nan = __float2bfloat16(std::numeric_limits<float>::quiet_NaN());
  k_.assign(page_elements * num_pages, nan);
  v_.assign(page_elements * num_pages, nan);
  int next_page = 0;
  for (int row = 0; row < num_rows; ++row) {
    for (int position = 0; position < shape.rows[row].context; ++position) {
      const int in_page = position % shape.page_size;
      int32_t& page = page_table_[slots_[row] * page_table_stride_ + position / shape.page_size];
      if (in_page == 0) page = pages[next_page++];
      for (int head = 0; head < shape.num_kv_heads; ++head) {
        const size_t at =
            page * page_elements + (static_cast<size_t>(head) * shape.page_size + in_page) * line;
        for (size_t e = 0; e < line; ++e) {
          k_[at + e] = __float2bfloat16(normal(random));
          v_[at + e] = __float2bfloat16(normal(random));
        }
      }
    }
  }
  q_by_position_.resize(static_cast<size_t>(num_rows) * max_queries_ * shape.num_heads * line);
  for (float& x : q_by_position_) x = Rounded(1.5f * normal(random));
  k_device_ = DeviceArray<__nv_bfloat16>(k_);
  v_device_ = DeviceArray<__nv_bfloat16>(v_);
  page_table_device_ = DeviceArray<int32_t>(page_table_);
  SetRows(shape.rows);
}

void AttentionCase::SetRows(const std::vector<RowShape>& rows) {
  rows_ = rows;
  const int num_rows = static_cast<int>(rows.size());
  const int width = shape_.num_heads * shape_.head_size;
  const int stride = width + 2 * shape_.num_kv_heads * shape_.head_size;
  token_begin_.assign(1, 0);
  context_len_.clear();
  std::vector<int32_t> slot_of_token;
  std::vector<__nv_bfloat16> q;
  int num_single = 0;
  for (int row = 0; row < num_rows; ++row) {
    if (rows[row].tokens == 1 && row == num_single) ++num_single;
    context_len_.push_back(rows[row].context);
    token_begin_.push_back(token_begin_.back() + rows[row].tokens);
    // Query i of the case's row is that of position context - tokens + i of the whole case.
    const int first =
        rows[row].context - rows[row].tokens - (shape_.rows[row].context - shape_.rows[row].tokens);
    for (int token = 0; token < rows[row].tokens; ++token) {
      slot_of_token.push_back(slots_[row]);
      const int query = rows[row].context == 0 ? 0 : first + token;
      const float* from =
          q_by_position_.data() + (static_cast<size_t>(row) * max_queries_ + query) * width;
      for (int i = 0; i < stride; ++i) {
        q.push_back(__float2bfloat16(i < width ? from[i] : NAN));
      }
    }
  }
  q_device_ = DeviceArray<__nv_bfloat16>(q);
  token_begin_device_ = DeviceArray<int32_t>(token_begin_);
  context_device_ = DeviceArray<int32_t>(context_len_);
  slot_device_ = DeviceArray<int32_t>(slot_of_token);
  out_ = DeviceArray<uint16_t>(static_cast<size_t>(token_begin_.back()) * width);
  PoisonOutput();
  batch_.num_rows = num_rows;
  batch_.num_tokens = token_begin_.back();
  batch_.num_single = num_single;
  batch_.token_begin = token_begin_device_.get();
  batch_.context_len = context_device_.get();
  batch_.page_table = page_table_device_.get();
  batch_.page_table_stride = page_table_stride_;
  batch_.slot_of_token = slot_device_.get();
  batch_.host_token_begin = token_begin_.data();
  batch_.host_context_len = context_len_.data();
}

AttentionConfig AttentionCase::Config() const {
  AttentionConfig config;
  config.num_heads = shape_.num_heads;
  config.num_kv_heads = shape_.num_kv_heads;
  config.head_size = shape_.head_size;
  config.page_size = shape_.page_size;
  config.max_rows = batch_.num_rows;
  config.max_tokens = batch_.num_tokens;
  return config;
}

AttentionParams AttentionCase::Params(const BatchRows* batch) const {
  AttentionParams params;
  params.q = q_device_.get();
  params.q_stride = (shape_.num_heads + 2 * shape_.num_kv_heads) * shape_.head_size;
  params.out = out_.get();
  params.num_heads = shape_.num_heads;
  params.num_kv_heads = shape_.num_kv_heads;
  params.head_size = shape_.head_size;
  params.scale = 1 / std::sqrt(static_cast<float>(shape_.head_size));
  params.batch = batch;
  params.kv = {k_device_.get(), v_device_.get(), DType::kBF16, shape_.page_size};
  return params;
}

std::vector<uint16_t> AttentionCase::Output() const { return out_.Get(); }

std::vector<float> AttentionCase::Reference(int row, int token, int head) const {
  const int size = shape_.head_size, width = shape_.num_heads * size;
  const RowShape& r = rows_[row];
  const int last = r.context - r.tokens + token;  // the query's position
  const int query = last - (shape_.rows[row].context - shape_.rows[row].tokens);
  const int kv_head = head / (shape_.num_heads / shape_.num_kv_heads);
  std::vector<double> out(size, 0.0);
  double maximum = -INFINITY, sum = 0;
  for (int position = 0; position <= last; ++position) {
    const int page = page_table_[slots_[row] * page_table_stride_ + position / shape_.page_size];
    const size_t at =
        ((static_cast<size_t>(page) * shape_.num_kv_heads + kv_head) * shape_.page_size +
         position % shape_.page_size) *
        size;
    const float* q = q_by_position_.data() +
                     (static_cast<size_t>(row) * max_queries_ + query) * width + head * size;
    double score = 0;
    for (int e = 0; e < size; ++e)
      score += static_cast<double>(q[e]) * __bfloat162float(k_[at + e]);
    score /= std::sqrt(static_cast<double>(size));
    if (score > maximum) {
      const double shrink = std::exp(maximum - score);
      for (double& x : out) x *= shrink;
      sum *= shrink;
      maximum = score;
    }
    const double weight = std::exp(score - maximum);
    sum += weight;
    for (int e = 0; e < size; ++e) out[e] += weight * __bfloat162float(v_[at + e]);
  }
  std::vector<float> result(size, 0.0f);
  for (int e = 0; e < size && sum > 0; ++e) result[e] = static_cast<float>(out[e] / sum);
  return result;
}

double AttentionCase::WorstError() const {
  const std::vector<uint16_t> out = Output();
  struct Job {
    int row, token;
  };
  std::vector<Job> jobs;
  for (int row = 0; row < batch_.num_rows; ++row) {
    // Of long chunks some tokens: the first, the last, and every 37th.
    for (int token = 0; token < rows_[row].tokens; ++token) {
      if (rows_[row].tokens <= 64 || token % 37 == 0 || token + 1 == rows_[row].tokens) {
        jobs.push_back({row, token});
      }
    }
  }
  std::atomic<size_t> next = 0;
  std::vector<double> worst(std::max(1u, std::thread::hardware_concurrency()), 0.0);
  std::vector<std::thread> threads;
  for (double& mine : worst) {
    threads.emplace_back([&] {
      for (size_t i = next++; i < jobs.size(); i = next++) {
        const auto [row, token] = jobs[i];
        for (int head = 0; head < shape_.num_heads; ++head) {
          const std::vector<float> reference = Reference(row, token, head);
          double error = 0, norm = 0;
          for (int e = 0; e < shape_.head_size; ++e) {
            const size_t at =
                (static_cast<size_t>(token_begin_[row] + token) * shape_.num_heads + head) *
                    shape_.head_size +
                e;
            const uint32_t bits = static_cast<uint32_t>(out[at]) << 16;
            float value;
            std::memcpy(&value, &bits, 4);
            const double difference = static_cast<double>(value) - reference[e];
            error += difference * difference;
            norm += static_cast<double>(reference[e]) * reference[e];
          }
          const double relative = norm > 0 ? std::sqrt(error / norm) : std::sqrt(error);
          if (!(relative <= mine)) mine = std::isnan(relative) ? INFINITY : relative;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return *std::max_element(worst.begin(), worst.end());
}

}  // namespace penstock::kernels::cuda
