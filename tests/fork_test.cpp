// fork() while threads hold the library's locks: the child finds them free, and what ForkSafeMutex guards whole.
#include "runtime/base/fork.hpp"

#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <thread>
#include <vector>

namespace q4::test {
namespace {

/// Forks while `work` runs in some threads, and gives how many children did not end with 0 within seconds.
template <class Work, class Child>
int failures(Work work, Child child) {
  constexpr int kForks = 100, kThreads = 3;
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i)
    threads.emplace_back([&] {
      while (!stop) work();
    });
  int failed = 0;
  for (int i = 0; i < kForks; ++i) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::alarm(10);  // a child that hangs dies of it
      ::_exit(child() ? 0 : 1);
    }
    int status = 0;
    failed += ::waitpid(pid, &status, 0) != pid || status != 0;
  }
  stop = true;
  for (auto& thread : threads) thread.join();
  return failed;
}

}  // namespace

TEST_CASE("fork: a child finds a ForkSafeMutex free and its data whole") {
  ForkSafeMutex outer, inner;
  volatile int first = 0, second = 0;  // equal outside the sections
  const auto change = [&] {
    const std::lock_guard lock(outer);
    first = first + 1;
    const std::lock_guard nested(inner);
    std::this_thread::yield();
    second = second + 1;
  };
  CHECK(failures(change, [&] {
          const bool whole = first == second;
          change();
          return whole && first == second;
        }) == 0);
  CHECK(first == second);
}

TEST_CASE("fork: a thread may fork while it holds a ForkSafeMutex") {
  ForkSafeMutex mutex;
  const std::lock_guard lock(mutex);
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::alarm(10);
    mutex.unlock();
    mutex.lock();
    ::_exit(0);
  }
  int status = 1;
  CHECK(::waitpid(pid, &status, 0) == pid);
  CHECK(status == 0);
}

TEST_CASE("fork: a child finds a ProcessMutex free, and it still excludes") {
  ProcessMutex mutex;
  volatile int inside = 0;
  const auto alone = [&] {
    const std::lock_guard lock(mutex);
    inside = inside + 1;
    std::this_thread::yield();
    const bool one = inside == 1;
    inside = inside - 1;
    return one;
  };
  std::atomic<int> together{0};
  CHECK(failures([&] { together += !alone(); },
                 [&] {
                   inside = 0;  // as a thread of the parent may have left it
                   std::thread other([&] {
                     for (int i = 0; i < 100; ++i)
                       if (!alone()) ::_exit(1);
                   });
                   for (int i = 0; i < 100; ++i)
                     if (!alone()) ::_exit(1);
                   other.join();
                   return true;
                 }) == 0);
  CHECK(together == 0);
}

}  // namespace q4::test
