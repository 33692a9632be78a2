// What fork() leaves in the child: GPU drivers that no longer work, and locks of threads that are not there.
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>

namespace q4 {

/// Remembers the process that it was made in.
class HomeProcess {
 public:
  /// Whether this is a child of that process. Costs one load.
  bool left() const { return generation() != generation_; }
  /// Throws kDevice if left().
  void check() const;
  /// What check() says.
  static const char* text();

 private:
  friend class ProcessMutex;
  static std::uint32_t generation();
  std::uint32_t generation_ = generation();
};

/// A mutex that a child of fork() finds free, with whole data behind it: forking waits until no other thread holds one.
/// So a section must end without the thread that forks (which in Python holds the GIL). Not recursive.
class ForkSafeMutex {
 public:
  void lock();
  void unlock();

 private:
  std::mutex mutex_;
};

/// A mutex that a child of fork() finds free even where a thread of the parent held it. For what every holder writes
/// before it reads, such as scratch memory: the child may find it half written.
class ProcessMutex {
 public:
  void lock();
  void unlock();

 private:
  std::atomic<std::uint32_t> word_{0};  ///< twice the number of forks before the last holder, plus 1 while it holds
};

}  // namespace q4
