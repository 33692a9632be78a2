// ThreadPool: persistent threads, or an embedder's, that share the chunks of a job.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <q4/runtime.hpp>
#include <string>
#include <thread>
#include <type_traits>
#include <vector>

namespace q4::cpu {

/// Each job's indices are split into one contiguous range a thread, so that a thread meets the same weights each time;
/// who is done takes what is left of others' ranges, one index at a time. Threads start at ready() or the first job,
/// spin for about 100 us between jobs and then sleep.
///
/// run() from two threads at once is safe: both jobs run, the first threads prefer the one, the last threads the other,
/// and each caller works on its own. More callers wait for one of the two places. In a child process after fork(),
/// where the threads do not exist, jobs run in the calling thread; so do jobs that a job starts. Threads keep the
/// affinity mask that the pool was made under, whichever thread runs the first job; where there are as many as the mask
/// has processors, each but the caller keeps to one. Linux wakes several threads on one processor while others idle, and
/// threads that spin stay there for milliseconds.
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
    const auto each = [&](std::int64_t begin, std::int64_t end, int worker) {
      for (; begin < end; ++begin) body(begin, worker);
    };
    run_grains(count, 1, each, most);
  }

  /// body(begin, end, worker) for all of [0, count): a thread takes `grain` indices at a time, a power of two, from one
  /// multiple of it to the next; of the last of its range half a grain, half of that and single ones, so that it never
  /// takes more than half of what is left; and single ones of others' ranges.
  template <class Body>
  void run_grains(std::int64_t count, int grain, Body&& body, int most = 0) {
    const int threads = most > 0 && most < threads_ ? most : threads_;
    run(
        count, grain, threads,
        [](void* self, std::int64_t begin, std::int64_t end, int worker) {
          (*static_cast<std::remove_reference_t<Body>*>(self))(begin, end, worker);
        },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  using Chunk = void (*)(void* self, std::int64_t begin, std::int64_t end, int worker);
  // A job is numbered; a ticket is its number and the next index to take of one thread's range. A job's fields change
  // only while every taken index is done and the tickets are void, so a late worker that reads them then fails its
  // compare-exchange on the old ticket.
  static constexpr int kIndexBits = 40, kJobs = 2;
  static constexpr std::uint64_t kIndex = (std::uint64_t(1) << kIndexBits) - 1;
  struct alignas(64) Range {
    std::atomic<std::uint64_t> ticket{0};
  };
  struct Job {
    std::mutex mutex;  // held for a job
    std::unique_ptr<Range[]> ranges;
    std::uint32_t number = 0;  // of the job that the mutex's owner runs
    alignas(64) std::atomic<std::uint64_t> count{0};
    std::atomic<Chunk> chunk{nullptr};
    std::atomic<void*> self{nullptr};
    std::atomic<int> grain{1};
    std::atomic<int> taking_part{0};                 // workers below this number
    alignas(64) std::atomic<std::uint64_t> done{0};  // indices finished
  };

  void run(std::int64_t count, int grain, int threads, Chunk chunk, void* self);
  void run_embedded(std::int64_t count, int grain, int threads, Chunk chunk, void* self);
  void run_job(Job& job, std::uint64_t count, int grain, int threads, Chunk chunk, void* self);
  void start();
  void serve(int worker);
  static void take_own(Job& job, int worker, std::uint64_t& done);
  static bool take(Job& job, int worker, std::uint64_t& done);
  static bool take_from(Job& job, Range& range, int owner, int worker, std::uint64_t& done);
  static void flush(Job& job, std::uint64_t& done);

  const int threads_;
  const int process_;
  const ParallelFor parallel_for_;
  std::vector<unsigned char> affinity_;  // a cpu_set_t, empty where there is none
  std::vector<int> homes_;               // a processor a thread, the caller's first; empty: all may run on any
  std::mutex starting_;
  std::atomic<bool> started_{false};
  std::vector<std::thread> workers_;
  Job jobs_[kJobs];
  alignas(64) std::atomic<std::uint32_t> posted_{0};  // jobs so far: what workers wait for
  std::atomic<bool> stop_{false};
};

}  // namespace q4::cpu
