// A thread that runs the I/O of its connections, and only that: nothing on it blocks.
#pragma once

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "router/api/http/connection.h"

namespace penstock::router {

class IoThread {
 public:
  IoThread();
  ~IoThread();
  IoThread(const IoThread&) = delete;
  IoThread& operator=(const IoThread&) = delete;

  boost::asio::io_context& context() { return context_; }

  // Any thread: the connection's response has something to write. One wake-up serves all that are
  // queued before the thread comes round to it.
  void Enqueue(std::shared_ptr<Connection> connection);

  // On this thread.
  void Add(std::shared_ptr<Connection> connection);
  void Remove(Connection* connection);
  void CountResponding(int change);

  // Any thread. Closes connections without a response in the making, and others when theirs ends.
  void CloseIdle();
  bool stopping() const { return stopping_; }
  // Waits until no response is in the making or on its way out. False at the deadline.
  bool WaitUntilQuiet(std::chrono::steady_clock::time_point deadline);
  // Closes all and joins. Idempotent; not on this thread.
  void Stop();

 private:
  void Drain();
  void StartTimer();  // it runs as long as there are connections
  void CheckConnections();

  boost::asio::io_context context_{1};
  boost::asio::steady_timer timer_{context_};
  std::unordered_map<Connection*, std::shared_ptr<Connection>> connections_;
  std::atomic<bool> stopping_{false};

  std::mutex mutex_;  // of what follows
  std::vector<std::shared_ptr<Connection>> ready_;
  int num_responding_ = 0;
  std::condition_variable quiet_;

  std::thread thread_;
};

}  // namespace penstock::router
