// Crew: threads that wait for the next piece of work together, because starting some for every load takes longer than a load.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

#include "runtime/base/fork.hpp"

namespace q4::gpu {

/// One run() at a time. Threads start with the first run that wants them; between runs they look for work for a moment
/// and then sleep. In a child after fork(), where they do not exist, the caller works alone.
class Crew {
 public:
  Crew() = default;
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;
  ~Crew() { stop(); }

  /// body(thread) for each thread in [0, threads), 0 in the calling thread; returns when all have ended. Fewer threads
  /// take part where no more can be started: bodies share their work by themselves. They must not throw.
  template <class Body>
  void run(int threads, const Body& body) {
    if (home_.left()) return body(0);
    start(threads - 1);
    call_ = [](const void* self, int thread) { (*static_cast<const Body*>(self))(thread); };
    body_ = &body, wanted_ = threads;
    left_.store(static_cast<std::uint32_t>(threads_.size()), std::memory_order_relaxed);
    turn_.fetch_add(1, std::memory_order_release);
    turn_.notify_all();
    body(0);
    for (std::uint32_t left; (left = left_.load(std::memory_order_acquire)) != 0;) wait_while(left_, left);
  }

  /// Ends the threads; the next run() starts others.
  void stop() {
    call_ = nullptr;
    if (!home_.left()) {
      turn_.fetch_add(1, std::memory_order_release);
      turn_.notify_all();
    }
    for (std::thread& thread : threads_) home_.left() ? thread.detach() : thread.join();
    threads_.clear();
  }

 private:
  void start(int others) {
    try {
      while (static_cast<int>(threads_.size()) < others)
        threads_.emplace_back(
            [this, number = static_cast<int>(threads_.size()) + 1, seen = turn_.load()] { serve(number, seen); });
    } catch (const std::system_error&) {  // fewer have to do
    }
  }

  /// Every thread answers every turn, so that none can meet two at once.
  void serve(int number, std::uint32_t seen) {
    for (;;) {
      wait_while(turn_, seen);
      seen = turn_.load(std::memory_order_acquire);
      if (call_ == nullptr) return;
      if (number < wanted_) call_(body_, number);
      if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) left_.notify_all();
    }
  }

  static void wait_while(const std::atomic<std::uint32_t>& value, std::uint32_t old) {
    constexpr std::chrono::microseconds kLook{1000};  // until the next load; waking takes long
    const auto end = std::chrono::steady_clock::now() + kLook;
    do {
      for (int look = 0; look < 64; ++look)
        if (value.load(std::memory_order_acquire) != old) return;
    } while (std::chrono::steady_clock::now() < end);
    value.wait(old, std::memory_order_acquire);
  }

  HomeProcess home_;
  std::vector<std::thread> threads_;
  void (*call_)(const void* body, int thread) = nullptr;  ///< null: end
  const void* body_ = nullptr;
  int wanted_ = 0;
  std::atomic<std::uint32_t> turn_{0}, left_{0};
};

}  // namespace q4::gpu
