#include "tools/penstock/bench/load.h"

#include <algorithm>
#include <ctime>
#include <utility>

namespace penstock::bench {
namespace {

using std::chrono::duration;

constexpr auto kProgressInterval = std::chrono::milliseconds(200);

double Seconds(Clock::duration time) { return duration<double>(time).count(); }
double Milliseconds(Clock::duration time) { return duration<double, std::milli>(time).count(); }

double CpuSeconds() {
  timespec used = {};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
  return static_cast<double>(used.tv_sec) + 1e-9 * static_cast<double>(used.tv_nsec);
}

class Driver {
 public:
  Driver(Transport& transport, const std::vector<Prompt>& prompts, const LoadOptions& options)
      : transport_(transport), prompts_(prompts), options_(options) {
    const size_t limit = static_cast<size_t>(std::max(0, options.max_concurrency));
    max_open_ = limit == 0 ? prompts.size() : limit;
    result_.requests.resize(prompts.size());
    times_.resize(prompts.size());
  }

  absl::StatusOr<LoadResult> Run() {
    const double cpu_before = CpuSeconds();
    begin_ = last_event_ = Clock::now();
    next_progress_ = begin_ + kProgressInterval;
    while (num_ended_ < prompts_.size()) {
      RETURN_IF_ERROR(StartDue());
      events_.clear();
      RETURN_IF_ERROR(transport_.Poll(WakeTime(), &events_));
      for (const Event& event : events_) Take(event);
      RETURN_IF_ERROR(CheckStalled());
      ShowProgress();
    }
    result_.duration_s = prompts_.empty() ? 0 : Seconds(last_event_ - begin_);
    result_.client_cpu_s = CpuSeconds() - cpu_before;
    if (options_.progress) options_.progress(num_ended_, num_tokens_, result_.duration_s);
    return std::move(result_);
  }

 private:
  struct Times {
    Clock::time_point sent, last;
    bool any = false;
  };

  size_t num_open() const { return next_ - num_ended_; }

  Clock::time_point DueTime() const {
    return begin_ +
           std::chrono::duration_cast<Clock::duration>(duration<double>(options_.arrivals[next_]));
  }

  absl::Status StartDue() {
    while (next_ < prompts_.size() && num_open() < max_open_ && DueTime() <= Clock::now()) {
      const Clock::time_point now = Clock::now();
      times_[next_].sent = now;
      result_.requests[next_].sent_ms = Milliseconds(now - begin_);
      result_.requests[next_].prompt_tokens = static_cast<int>(prompts_[next_].ids.size());
      RETURN_IF_ERROR(transport_.Start(next_, prompts_[next_]));
      ++next_;
      last_event_ = now;
    }
    result_.max_open = std::max(result_.max_open, static_cast<int>(num_open()));
    return absl::OkStatus();
  }

  Clock::time_point WakeTime() const {
    const bool more = next_ < prompts_.size() && num_open() < max_open_;
    return more ? std::min(next_progress_, DueTime()) : next_progress_;
  }

  void Take(const Event& event) {
    RequestRecord& record = result_.requests[event.request];
    Times& times = times_[event.request];
    last_event_ = std::max(last_event_, event.at);
    record.output_tokens += event.num_tokens;
    num_tokens_ += event.num_tokens;
    if (event.has_output) {
      if (times.any) {
        record.gaps_ms.push_back(Milliseconds(event.at - times.last));
      } else {
        record.ttft_ms = Milliseconds(event.at - times.sent);
      }
      times.any = true;
      times.last = event.at;
    }
    if (!event.end) return;
    ++num_ended_;
    record.e2e_ms = Milliseconds((times.any ? times.last : event.at) - times.sent);
    record.status = event.error;
    if (event.prompt_tokens >= 0) record.prompt_tokens = event.prompt_tokens;
    if (event.total_tokens >= 0) {
      num_tokens_ += event.total_tokens - record.output_tokens;
      record.output_tokens = event.total_tokens;
    }
  }

  absl::Status CheckStalled() {
    if (num_open() == 0 || Seconds(Clock::now() - last_event_) < options_.stall_timeout_s) {
      return absl::OkStatus();
    }
    return DeadlineExceeded("{} requests are open and nothing came for {} s", num_open(),
                            options_.stall_timeout_s);
  }

  void ShowProgress() {
    const Clock::time_point now = Clock::now();
    if (now < next_progress_) return;
    next_progress_ = now + kProgressInterval;
    if (options_.progress) options_.progress(num_ended_, num_tokens_, Seconds(now - begin_));
  }

  Transport& transport_;
  const std::vector<Prompt>& prompts_;
  const LoadOptions& options_;
  size_t max_open_ = 0;
  LoadResult result_;
  std::vector<Times> times_;
  std::vector<Event> events_;
  Clock::time_point begin_, last_event_, next_progress_;
  size_t next_ = 0;       // to be started
  size_t num_ended_ = 0;  // of those before it
  int64_t num_tokens_ = 0;
};

}  // namespace

absl::StatusOr<LoadResult> RunLoad(Transport& transport, const std::vector<Prompt>& prompts,
                                   const LoadOptions& options) {
  return Driver(transport, prompts, options).Run();
}

LoadFigures Figures(const LoadResult& result) {
  LoadFigures figures;
  std::vector<double> ttft, tpot, itl, e2e;
  for (const RequestRecord& record : result.requests) {
    if (!record.status.ok() || record.ttft_ms < 0) {
      if (figures.failed++ == 0) {
        figures.first_error = record.status.ok() ? "no output came" : Message(record.status);
      }
      continue;
    }
    ++figures.completed;
    figures.input_tokens += record.prompt_tokens;
    figures.output_tokens += record.output_tokens;
    ttft.push_back(record.ttft_ms);
    e2e.push_back(record.e2e_ms);
    if (record.output_tokens > 1) {
      tpot.push_back((record.e2e_ms - record.ttft_ms) / (record.output_tokens - 1));
    }
    itl.insert(itl.end(), record.gaps_ms.begin(), record.gaps_ms.end());
  }
  figures.duration_s = result.duration_s;
  figures.max_open = result.max_open;
  if (result.duration_s > 0) {
    const double seconds = result.duration_s;
    figures.requests_per_s = static_cast<double>(figures.completed) / seconds;
    figures.output_tokens_per_s = static_cast<double>(figures.output_tokens) / seconds;
    figures.total_tokens_per_s =
        static_cast<double>(figures.input_tokens + figures.output_tokens) / seconds;
    figures.client_cpu_share = result.client_cpu_s / seconds;
  }
  figures.ttft_ms = Summarise(std::move(ttft));
  figures.tpot_ms = Summarise(std::move(tpot));
  figures.itl_ms = Summarise(std::move(itl));
  figures.e2e_ms = Summarise(std::move(e2e));
  return figures;
}

}  // namespace penstock::bench
