// Independent jobs side by side on the host's cores.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <exception>
#include <limits>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace q4 {

inline std::size_t hardware_threads() { return std::max(1u, std::thread::hardware_concurrency()); }

/// body(index) for each index in [0, count), begun in ascending order by at most `threads` threads. Returns when all have
/// ended. Once a body has thrown no further index is begun, and of what was thrown the exception of the smallest index is
/// thrown here. The calling thread only waits, so that what it has set for itself (a stream that it captures, its
/// priority) does not concern the bodies; only where no thread can be started does it run them.
template <class Body>
void run_jobs(std::size_t count, std::size_t threads, const Body& body) {
  std::atomic<std::size_t> next{0};
  std::mutex mutex;  // of what follows
  std::exception_ptr failure;
  std::size_t failed = std::numeric_limits<std::size_t>::max();
  const auto work = [&] {
    for (std::size_t i; (i = next.fetch_add(1)) < count;) try {
        body(i);
      } catch (...) {
        next = count;
        const std::lock_guard lock(mutex);
        if (i < failed) failed = i, failure = std::current_exception();
      }
  };
  {
    std::vector<std::jthread> workers;
    workers.reserve(std::min(count, threads));
    try {
      while (workers.size() < std::min(count, threads)) workers.emplace_back(work);
    } catch (const std::system_error&) {  // fewer have to do
    }
    if (workers.empty()) work();
  }
  if (failure) std::rethrow_exception(failure);
}

}  // namespace q4
