// Ends Python code that runs too long, by raising an exception in its thread. Internal to chat/.
#pragma once

#include <pybind11/embed.h>

#include <chrono>
#include <memory>

namespace penstock::router {

// For the time it lives, its thread's Python code may run until the deadline; then `exception` (a
// class) is raised in it, at the next bytecode. Make it, ask it and destroy it with the GIL held.
class RunLimit {
 public:
  RunLimit(std::chrono::milliseconds time, pybind11::handle exception);
  ~RunLimit();
  RunLimit(const RunLimit&) = delete;
  RunLimit& operator=(const RunLimit&) = delete;

  // Whether the deadline has passed while Python ran.
  bool Fired() const;

 private:
  struct Run;
  class Watchdog;

  std::shared_ptr<Run> run_;
};

}  // namespace penstock::router
