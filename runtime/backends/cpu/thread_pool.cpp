// ThreadPool and the number of threads that a process may use.
#include "runtime/backends/cpu/thread_pool.hpp"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>
#include <utility>

namespace q4::cpu {
namespace {

thread_local bool working = false;  // inside a job's body: jobs that it starts run in this thread

constexpr int kSpins = 2000;  // of a pause, some tens of nanoseconds each

void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

template <class T>
void wait_while(const std::atomic<T>& value, T old) {
  for (int spin = 0; spin < kSpins; ++spin) {
    if (value.load(std::memory_order_acquire) != old) return;
    pause();
  }
  value.wait(old, std::memory_order_acquire);
}

/// CPUs that a quota of `folder` and its parents allows, rounded up; `limit` when there is none.
double quota_limit(const std::string& root, std::string folder, bool v2, double limit) {
  for (;;) {
    double quota = 0, period = 0;
    if (v2) {
      std::ifstream(root + folder + "/cpu.max") >> quota >> period;  // "max 100000": quota stays 0
    } else {
      std::ifstream(root + folder + "/cpu.cfs_quota_us") >> quota;
      std::ifstream(root + folder + "/cpu.cfs_period_us") >> period;
    }
    if (quota > 0 && period > 0) limit = std::min(limit, quota / period);
    const std::size_t slash = folder.rfind('/');
    if (slash == std::string::npos) return limit;
    folder.resize(slash);
  }
}

}  // namespace

double cgroup_cpus(const std::string& root, double limit) {
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // "4:cpu,cpuacct:/path" or "0::/path"
    std::istringstream fields(line);
    std::string id, controllers, path;
    std::getline(std::getline(std::getline(fields, id, ':'), controllers, ':'), path);
    if (path == "/") path.clear();
    const bool cpu = ("," + controllers + ",").find(",cpu,") != std::string::npos;
    if (controllers.empty()) limit = quota_limit(root + "/sys/fs/cgroup", path, true, limit);
    if (cpu) limit = quota_limit(root + "/sys/fs/cgroup/cpu", path, false, limit);
  }
  return limit;
}

int usable_threads() {
  double limit = std::max(1u, std::thread::hardware_concurrency());
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) limit = CPU_COUNT(&set);
  limit = cgroup_cpus("", limit);
#endif
  return std::max(1, int(limit + 0.999));
}

ThreadPool::ThreadPool(int threads, ParallelFor parallel_for)
    : threads_(std::max(1, threads)), process_(getpid()), parallel_for_(std::move(parallel_for)) {
#if defined(__linux__)
  affinity_.resize(sizeof(cpu_set_t));
  if (sched_getaffinity(0, affinity_.size(), reinterpret_cast<cpu_set_t*>(affinity_.data())) != 0) affinity_.clear();
#endif
}

ThreadPool::~ThreadPool() {
  const bool here = getpid() == process_;
  stop_.store(true, std::memory_order_relaxed);
  job_.fetch_add(1, std::memory_order_release);
  if (here) job_.notify_all();
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
  const std::lock_guard lock(mutex_);
  if (workers_.empty()) start();
}

void ThreadPool::start() {
  workers_.reserve(std::size_t(threads_ - 1));
  for (int worker = 1; worker < threads_; ++worker) workers_.emplace_back([this, worker] { serve(worker); });
}

void ThreadPool::run(std::int64_t count, int threads, Chunk chunk, void* self) {
  if (count <= 1 || threads == 1 || working || (getpid() != process_ && !parallel_for_)) {
    for (std::int64_t index = 0; index < count; ++index) chunk(self, index, 0);
    return;
  }
  if (parallel_for_) return run_embedded(count, threads, chunk, self);
  const std::lock_guard lock(mutex_);
  if (workers_.empty()) start();
  const std::uint32_t job = job_.load(std::memory_order_relaxed) + 1;
  const std::uint64_t first = std::uint64_t(job) << kIndexBits;
  ticket_.store(first | kIndex, std::memory_order_relaxed);  // no index to take while the fields change
  count_.store(std::uint64_t(count), std::memory_order_release);
  chunk_.store(chunk, std::memory_order_release);
  self_.store(self, std::memory_order_release);
  taking_part_.store(threads, std::memory_order_release);
  done_.store(0, std::memory_order_relaxed);
  ticket_.store(first, std::memory_order_release);
  job_.store(job, std::memory_order_release);
  job_.notify_all();
  share(job, 0);
  for (std::uint64_t done; (done = done_.load(std::memory_order_acquire)) != std::uint64_t(count);)
    wait_while(done_, done);
}

void ThreadPool::run_embedded(std::int64_t count, int threads, Chunk chunk, void* self) {
  struct Job {
    std::atomic<std::int64_t> next{0};
    std::int64_t count;
    Chunk chunk;
    void* self;
    void share(int worker) {
      for (std::int64_t index; (index = next.fetch_add(1, std::memory_order_relaxed)) < count;) {
        const bool before = std::exchange(working, true);
        chunk(self, index, worker);
        working = before;
      }
    }
  } job{{}, count, chunk, self};
  parallel_for_(int(std::min<std::int64_t>(threads, count)), [&job](int worker) { job.share(worker); });
  job.share(0);  // what is left if some task was not called
}

void ThreadPool::share(std::uint32_t job, int worker) {
  const std::uint64_t number = (std::uint64_t(job) << kIndexBits) >> kIndexBits;  // as much as a ticket keeps of it
  std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
  while (ticket >> kIndexBits == number) {
    const std::uint64_t index = ticket & kIndex, count = count_.load(std::memory_order_acquire);
    const Chunk chunk = chunk_.load(std::memory_order_acquire);
    void* const self = self_.load(std::memory_order_acquire);
    if (index >= count || worker >= taking_part_.load(std::memory_order_acquire)) return;
    if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel, std::memory_order_acquire))
      continue;
    working = true;
    chunk(self, std::int64_t(index), worker);
    working = false;
    if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == count) done_.notify_one();
    ticket = ticket_.load(std::memory_order_acquire);
  }
}

void ThreadPool::serve(int worker) {
#if defined(__linux__)
  if (!affinity_.empty())
    sched_setaffinity(0, affinity_.size(), reinterpret_cast<const cpu_set_t*>(affinity_.data()));  // advice
#endif
  std::uint32_t seen = 0;
  for (;;) {
    wait_while(job_, seen);
    if (stop_.load(std::memory_order_acquire)) return;
    seen = job_.load(std::memory_order_acquire);
    share(seen, worker);
  }
}

}  // namespace q4::cpu
