#include "router/chat/watchdog.h"

#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

namespace penstock::router {

namespace py = pybind11;
using Clock = std::chrono::steady_clock;

// Its fields belong to whoever holds the GIL.
struct RunLimit::Run {
  unsigned long thread_id;
  py::handle exception;
  bool over = false;
  bool fired = false;
};

// One thread for the process, started with the first run and never stopped. Lock order: the GIL,
// then the mutex; so the thread lets go of the mutex before it takes the GIL.
class RunLimit::Watchdog {
 public:
  static Watchdog& Get() {
    static Watchdog* watchdog = new Watchdog();
    return *watchdog;
  }

  void Add(Clock::time_point deadline, const std::shared_ptr<Run>& run) {
    std::lock_guard lock(mutex_);
    const bool is_first = runs_.empty() || deadline < runs_.begin()->first;
    runs_.emplace(deadline, run);
    if (is_first) changed_.notify_one();
  }

 private:
  Watchdog() {
    std::thread([this] { Watch(); }).detach();
  }

  void Watch() {
    std::unique_lock lock(mutex_);
    while (true) {
      if (runs_.empty()) {
        changed_.wait(lock);
        continue;
      }
      const Clock::time_point deadline = runs_.begin()->first;
      if (Clock::now() < deadline) {
        changed_.wait_until(lock, deadline);
        continue;
      }
      // Most runs are over long before: then nobody holds them but the map.
      const std::shared_ptr<Run> run = runs_.begin()->second.lock();
      runs_.erase(runs_.begin());
      if (run == nullptr) continue;
      lock.unlock();
      Fire(run);
      lock.lock();
    }
  }

  static void Fire(const std::shared_ptr<Run>& run) {
    py::gil_scoped_acquire gil;
    if (run->over) return;
    run->fired = true;
    PyThreadState_SetAsyncExc(run->thread_id, run->exception.ptr());
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::multimap<Clock::time_point, std::weak_ptr<Run>> runs_;
};

RunLimit::RunLimit(std::chrono::milliseconds time, py::handle exception)
    : run_(std::make_shared<Run>(Run{PyThread_get_thread_ident(), exception})) {
  Watchdog::Get().Add(Clock::now() + time, run_);
}

RunLimit::~RunLimit() {
  run_->over = true;
  // The exception may not have been raised yet: it isn't meant for what the thread does next.
  if (run_->fired) PyThreadState_SetAsyncExc(run_->thread_id, nullptr);
}

bool RunLimit::Fired() const { return run_->fired; }

}  // namespace penstock::router
