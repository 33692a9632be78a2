// A pool of threads that the example's own loops and q4 share: two pools would fight for the same cores.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace generate {

class Threads {
 public:
  explicit Threads(int count) {
    for (int i = 1; i < count; ++i) workers_.emplace_back([this] { serve(); });
  }
  ~Threads() {
    stop_ = true;
    job_.fetch_add(1);
    job_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }
  Threads(const Threads&) = delete;
  Threads& operator=(const Threads&) = delete;

  int size() const { return static_cast<int>(workers_.size()) + 1; }

  /// Calls task(0) ... task(count - 1) from all threads, the caller among them, and returns when all have returned.
  /// This is what q4::RuntimeOptions::parallel_for wants. `task` must not throw.
  void run(int count, const std::function<void(int)>& task) {
    const std::unique_lock alone(running_, std::try_to_lock);
    if (count == 1 || workers_.empty() || !alone) {
      for (int i = 0; i < count; ++i) task(i);
      return;
    }
    task_ = &task;
    count_ = count;
    next_ = 0;  // from here on whoever takes part sees this job
    job_.fetch_add(1);
    job_.notify_all();
    work();
    next_ = kNone;  // a thread that comes late finds nothing to do, and nobody waits for it
    wait_until([this] { return inside_ == 0; }, inside_);
  }

  /// Splits [0, count) into a range for each thread, a multiple of `step` long: body(begin, end).
  template <class Body>
  void ranges(std::int64_t count, std::int64_t step, Body&& body) {
    const std::int64_t each = (count + size() * step - 1) / (size() * step) * step;
    run(static_cast<int>((count + each - 1) / each), [&](int i) { body(i * each, std::min(count, (i + 1) * each)); });
  }

 private:
  /// Looks for some microseconds, because the next job of a token comes soon, and then sleeps until `word` changes.
  template <class Done>
  static void wait_until(Done&& done, std::atomic<int>& word) {
    for (int look = 0; look < 5000; ++look) {
      if (done()) return;
      pause();
    }
    for (int value = word.load(); !done(); value = word.load()) word.wait(value);
  }

  /// Leaves the core's other thread, or the hypervisor's other guests, some room.
  static void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  void work() {
    for (int i = next_.fetch_add(1); i < count_; i = next_.fetch_add(1)) (*task_)(i);
  }

  void serve() {
    for (int seen = 0;;) {
      wait_until([&] { return job_ != seen; }, job_);
      seen = job_;
      if (stop_) return;
      inside_.fetch_add(1);
      work();
      if (inside_.fetch_sub(1) == 1) inside_.notify_all();
    }
  }

  static constexpr int kNone = 1 << 30;  ///< of next_: beyond every count
  std::vector<std::thread> workers_;
  std::mutex running_;
  std::atomic<const std::function<void(int)>*> task_{nullptr};
  std::atomic<int> count_{0}, next_{kNone}, inside_{0}, job_{0};
  std::atomic<bool> stop_{false};
};

}  // namespace generate
