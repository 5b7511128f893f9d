// A few threads for what takes longer than an I/O thread may: JSON, templates, tokenising.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace penstock::router {

class WorkerPool {
 public:
  // Tasks wait in a queue of at most max_queued.
  WorkerPool(int num_threads, size_t max_queued);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  // Any thread. False if the queue is full or the pool has stopped: the task is dropped.
  bool Post(std::function<void()> task);
  // Runs what is queued, then joins. Idempotent; not from a task.
  void Stop();

 private:
  void Run();

  const size_t max_queued_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> queue_;
  bool stopped_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace penstock::router
