#include "router/api/http/io_thread.h"

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/post.hpp>
#include <utility>

namespace penstock::router {

IoThread::IoThread() {
  thread_ = std::thread([this] { context_.run(); });
}

IoThread::~IoThread() { Stop(); }

void IoThread::Enqueue(std::shared_ptr<Connection> connection) {
  {
    std::lock_guard lock(mutex_);
    ready_.push_back(std::move(connection));
    if (ready_.size() != 1) return;  // a drain is on its way
  }
  boost::asio::post(context_, [this] { Drain(); });
}

void IoThread::Drain() {
  std::vector<std::shared_ptr<Connection>> ready;
  {
    std::lock_guard lock(mutex_);
    ready.swap(ready_);
  }
  for (const auto& connection : ready) connection->Advance();
}

void IoThread::Add(std::shared_ptr<Connection> connection) {
  Connection* key = connection.get();
  connections_[key] = std::move(connection);
  if (connections_.size() == 1) StartTimer();
  key->Start();
}

void IoThread::Remove(Connection* connection) { connections_.erase(connection); }

void IoThread::StartTimer() {
  timer_.expires_after(std::chrono::seconds(1));
  timer_.async_wait([this](const boost::system::error_code& error) {
    if (error) return;
    CheckConnections();
    if (!connections_.empty()) StartTimer();
  });
}

void IoThread::CheckConnections() {
  const auto now = std::chrono::steady_clock::now();
  std::vector<std::shared_ptr<Connection>> connections;
  connections.reserve(connections_.size());
  for (const auto& [key, connection] : connections_) connections.push_back(connection);
  for (const auto& connection : connections) connection->CheckTime(now);
}

void IoThread::CloseIdle() {
  stopping_ = true;
  boost::asio::post(context_, [this] {
    std::vector<std::shared_ptr<Connection>> idle;
    for (const auto& [key, connection] : connections_) {
      if (!connection->responding()) idle.push_back(connection);
    }
    for (const auto& connection : idle) connection->Close();
  });
}

void IoThread::CountResponding(int change) {
  std::lock_guard lock(mutex_);
  num_responding_ += change;
  if (num_responding_ == 0) quiet_.notify_all();
}

bool IoThread::WaitUntilQuiet(std::chrono::steady_clock::time_point deadline) {
  std::unique_lock lock(mutex_);
  return quiet_.wait_until(lock, deadline, [this] { return num_responding_ == 0; });
}

void IoThread::Stop() {
  if (!thread_.joinable()) return;
  boost::asio::post(context_, [this] {
    timer_.cancel();
    const auto connections = std::move(connections_);
    connections_.clear();
    for (const auto& [key, connection] : connections) connection->Close();
    context_.stop();
  });
  thread_.join();
}

}  // namespace penstock::router
