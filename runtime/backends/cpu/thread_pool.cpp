// ThreadPool.
#include "runtime/backends/cpu/thread_pool.hpp"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <string>
#include <utility>

namespace q4::cpu {
namespace {

thread_local bool working = false;  // inside a job's body: jobs that it starts run in this thread

constexpr std::chrono::microseconds kSpin{100};  // before a thread sleeps

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Looks often and pauses seldom: hypervisors take a thread that does little but pause off its core.
template <class T>
void wait_while(const std::atomic<T>& value, T old) {
  constexpr int kLooks = 64;
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int look = 0; look < kLooks; ++look)
      if (value.load(std::memory_order_acquire) != old) return;
    pause();
  } while (std::chrono::steady_clock::now() < end);
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

ThreadPool::ThreadPool(int threads, ParallelFor parallel_for)
    : threads_(std::max(1, threads)), process_(getpid()), parallel_for_(std::move(parallel_for)) {
#if defined(__linux__)
  affinity_.resize(sizeof(cpu_set_t));
  auto* const mask = reinterpret_cast<cpu_set_t*>(affinity_.data());
  if (sched_getaffinity(0, affinity_.size(), mask) != 0) affinity_.clear();
  if (!affinity_.empty() && threads_ > 1 && CPU_COUNT(mask) == threads_)
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu)
      if (CPU_ISSET(cpu, mask)) homes_.push_back(cpu);
#endif
  for (Job& job : jobs_) job.ranges = std::make_unique<Range[]>(std::size_t(threads_));
}

ThreadPool::~ThreadPool() {
  const bool here = getpid() == process_;
  stop_.store(true, std::memory_order_relaxed);
  posted_.fetch_add(1, std::memory_order_release);
  if (here) posted_.notify_all();
  for (std::thread& worker : workers_) {
    if (here) {
      worker.join();
    } else {
      worker.detach();  // it exists in the parent only
    }
  }
}

void ThreadPool::ready() {
  if (threads_ == 1 || embedded() || getpid() != process_) return;
  if (!started_.load(std::memory_order_acquire)) start();
}

void ThreadPool::start() {
  const std::lock_guard lock(starting_);
  if (started_.load(std::memory_order_relaxed)) return;
#if defined(__linux__)
  const auto here = std::find(homes_.begin(), homes_.end(), sched_getcpu());
  if (here != homes_.end()) std::iter_swap(homes_.begin(), here);  // the first is nobody's: the caller's
#endif
  workers_.reserve(std::size_t(threads_ - 1));
  for (int worker = 1; worker < threads_; ++worker) workers_.emplace_back([this, worker] { serve(worker); });
  started_.store(true, std::memory_order_release);
}

void ThreadPool::run(std::int64_t count, int grain, int threads, Chunk chunk, void* self) {
  if (count <= 1 || threads == 1 || working || (getpid() != process_ && !parallel_for_)) {
    for (std::int64_t begin = 0; begin < count; begin += grain) chunk(self, begin, std::min(begin + grain, count), 0);
    return;
  }
  if (parallel_for_) return run_embedded(count, grain, threads, chunk, self);
  ready();
  for (Job& job : jobs_) {
    const std::unique_lock lock(job.mutex, std::try_to_lock);
    if (lock.owns_lock()) return run_job(job, std::uint64_t(count), grain, threads, chunk, self);
  }
  const std::lock_guard lock(jobs_[0].mutex);
  run_job(jobs_[0], std::uint64_t(count), grain, threads, chunk, self);
}

void ThreadPool::run_job(Job& job, std::uint64_t count, int grain, int threads, Chunk chunk, void* self) {
  const std::uint64_t tag = std::uint64_t(++job.number) << kIndexBits;
  for (int i = 0; i < threads_; ++i)  // no index to take while the fields change
    job.ranges[std::size_t(i)].ticket.store(tag | kIndex, std::memory_order_relaxed);
  job.count.store(count, std::memory_order_release);
  job.chunk.store(chunk, std::memory_order_release);
  job.self.store(self, std::memory_order_release);
  job.grain.store(grain, std::memory_order_release);
  job.taking_part.store(threads, std::memory_order_release);
  job.done.store(0, std::memory_order_relaxed);
  for (std::uint64_t i = 0; i < std::uint64_t(threads); ++i)
    job.ranges[i].ticket.store(tag | (i * count / std::uint64_t(threads)), std::memory_order_release);
  posted_.fetch_add(1, std::memory_order_release);
  posted_.notify_all();
  std::uint64_t done = 0;
  take_own(job, 0, done);
  while (take(job, 0, done)) {}
  flush(job, done);
  while ((done = job.done.load(std::memory_order_acquire)) != count) wait_while(job.done, done);
  job.taking_part.store(0, std::memory_order_release);
}

void ThreadPool::run_embedded(std::int64_t count, int grain, int threads, Chunk chunk, void* self) {
  struct Job {
    std::atomic<std::int64_t> next{0};
    std::int64_t count, grain;
    Chunk chunk;
    void* self;
    void share(int worker) {
      for (std::int64_t begin; (begin = next.fetch_add(grain, std::memory_order_relaxed)) < count;) {
        const bool before = std::exchange(working, true);
        chunk(self, begin, std::min(begin + grain, count), worker);
        working = before;
      }
    }
  } job{{}, count, grain, chunk, self};
  parallel_for_(int(std::min<std::int64_t>(threads, count)), [&job](int worker) { job.share(worker); });
  job.share(0);  // what is left if some task was not called
}

/// A grain of one's own range, or a part of it at the end; one index of another's.
bool ThreadPool::take_from(Job& job, Range& range, int owner, int worker, std::uint64_t& done) {
  std::uint64_t ticket = range.ticket.load(std::memory_order_acquire);
  for (;;) {
    const std::uint64_t index = ticket & kIndex, count = job.count.load(std::memory_order_acquire);
    const Chunk chunk = job.chunk.load(std::memory_order_acquire);
    void* const self = job.self.load(std::memory_order_acquire);
    const auto threads = std::uint64_t(job.taking_part.load(std::memory_order_acquire));
    if (index == kIndex || worker >= int(threads)) return false;
    const std::uint64_t end = std::uint64_t(owner + 1) * count / threads;
    if (index >= end) return false;
    const auto grain = std::uint64_t(job.grain.load(std::memory_order_acquire));
    std::uint64_t some = 1;
    if (owner == worker) {
      const std::uint64_t past = index % grain;
      some = past ? past & (~past + 1) : grain;
      while (some > 1 && 2 * some > end - index) some /= 2;
    }
    if (!range.ticket.compare_exchange_weak(ticket, ticket + some, std::memory_order_acq_rel,
                                            std::memory_order_acquire))
      continue;
    working = true;
    chunk(self, std::int64_t(index), std::int64_t(index + some), worker);
    working = false;
    done += some;
    return true;
  }
}

/// All of one's own range, and says so before looking at the others': their tickets are in others' caches, and whoever
/// waits for the end would wait for those looks.
void ThreadPool::take_own(Job& job, int worker, std::uint64_t& done) {
  while (take_from(job, job.ranges[std::size_t(worker)], worker, worker, done)) {}
  flush(job, done);
}

/// From one's own range, else from the others'.
bool ThreadPool::take(Job& job, int worker, std::uint64_t& done) {
  const int threads = job.taking_part.load(std::memory_order_acquire);
  for (int i = 0, owner = worker; i < threads && worker < threads; ++i, owner = owner + 1 < threads ? owner + 1 : 0)
    if (take_from(job, job.ranges[std::size_t(owner)], owner, worker, done)) return true;
  return false;
}

void ThreadPool::flush(Job& job, std::uint64_t& done) {
  if (done == 0) return;
  const std::uint64_t all = job.count.load(std::memory_order_relaxed);  // which stays until all are done
  if (job.done.fetch_add(done, std::memory_order_acq_rel) + done == all) job.done.notify_one();
  done = 0;
}

void ThreadPool::serve(int worker) {
#if defined(__linux__)
  cpu_set_t mask;
  if (!affinity_.empty()) std::memcpy(&mask, affinity_.data(), sizeof mask);
  if (!homes_.empty()) {
    CPU_ZERO(&mask);
    CPU_SET(homes_[std::size_t(worker)], &mask);
  }
  if (!affinity_.empty()) sched_setaffinity(0, sizeof mask, &mask);  // advice
#endif
  const bool low = worker < (threads_ + 1) / 2;
  Job &mine = jobs_[low ? 0 : 1], &other = jobs_[low ? 1 : 0];
  for (std::uint32_t seen = 0;;) {
    wait_while(posted_, seen);
    if (stop_.load(std::memory_order_acquire)) return;
    seen = posted_.load(std::memory_order_acquire);
    std::uint64_t done_mine = 0, done_other = 0;
    take_own(mine, worker, done_mine);
    do {
      while (take(mine, worker, done_mine)) flush(other, done_other);
      flush(mine, done_mine);
    } while (take(other, worker, done_other));
    flush(other, done_other);
  }
}

}  // namespace q4::cpu
