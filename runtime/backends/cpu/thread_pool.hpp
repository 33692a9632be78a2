// ThreadPool: persistent threads, or an embedder's, that share the chunks of a job.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <q4/runtime.hpp>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

namespace q4::cpu {

/// run() from several threads at once is safe: the jobs take turns, each with the whole pool. Threads start at
/// ready() or the first job, spin for some tens of microseconds between jobs and then sleep. In a child process after
/// fork(), where the threads do not exist, jobs run in the calling thread; so do jobs that a job starts. Threads keep
/// the affinity mask that the pool was made under, whichever thread runs the first job.
///
/// With an embedder's parallel_for there are no threads here, no lock and no turns: each run() hands it up to threads()
/// tasks, which share the chunks.
class ThreadPool {
 public:
  /// `threads`: at least 1; the caller of run() is one of them.
  explicit ThreadPool(int threads, ParallelFor parallel_for = {});
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }
  bool embedded() const { return static_cast<bool>(parallel_for_); }

  /// Starts the threads: run() allocates nothing from then on.
  void ready();

  /// body(index, worker) for each index in [0, count), 0 <= worker < threads(). Returns when all are done. The body
  /// must not throw. `most`: threads that take part, 0: all.
  template <class Body>
  void run(std::int64_t count, Body&& body, int most = 0) {
    const int threads = most > 0 && most < threads_ ? most : threads_;
    run(
        count, threads,
        [](void* self, std::int64_t index, int worker) {
          (*static_cast<std::remove_reference_t<Body>*>(self))(index, worker);
        },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  using Chunk = void (*)(void* self, std::int64_t index, int worker);
  void run(std::int64_t count, int threads, Chunk chunk, void* self);
  void run_embedded(std::int64_t count, int threads, Chunk chunk, void* self);
  void start();
  void serve(int worker);
  void share(std::uint32_t job, int worker);

  const int threads_;
  const int process_;
  const ParallelFor parallel_for_;
  std::vector<unsigned char> affinity_;  // a cpu_set_t, empty where there is none
  std::mutex mutex_;                     // held for a job
  std::vector<std::thread> workers_;

  // A job is numbered; a ticket is its number and the next index to take. Fields change only while every taken index is
  // done and the ticket is void, so a late worker that reads them then fails its compare-exchange on the old ticket.
  static constexpr int kIndexBits = 40;
  static constexpr std::uint64_t kIndex = (std::uint64_t(1) << kIndexBits) - 1;
  std::atomic<std::uint64_t> ticket_{0};
  std::atomic<std::uint64_t> count_{0};
  std::atomic<Chunk> chunk_{nullptr};
  std::atomic<void*> self_{nullptr};
  std::atomic<int> taking_part_{0};                 // workers below this number
  alignas(64) std::atomic<std::uint32_t> job_{0};   // what workers wait for
  alignas(64) std::atomic<std::uint64_t> done_{0};  // indices finished
  std::atomic<bool> stop_{false};
};

/// Threads that this process may use: the calling thread's affinity mask, bounded by the cgroup's CPU quota.
int usable_threads();
/// CPUs that the cgroups of this process allow (v1 and v2, their parents too), `limit` where they do not. `root` stands
/// before /proc and /sys, for tests.
double cgroup_cpus(const std::string& root, double limit);

}  // namespace q4::cpu
