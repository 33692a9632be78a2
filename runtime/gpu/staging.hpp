// Staging: tensors from host memory to the device, through pinned memory, by several threads.
#pragma once

#include <atomic>
#include <cstddef>
#include <deque>
#include <memory>
#include <mutex>
#include <span>

#include "runtime/gpu/crew.hpp"
#include "runtime/gpu/driver.hpp"

namespace q4::gpu {

/// What arrives as it is; a multiple of 4 bytes.
struct StagedBytes {
  const void* from;
  std::size_t bytes;
  void* to;
};

/// Each thread has two pieces of pinned memory: while one is copied to the device, the other is filled from the tensors,
/// which are anywhere (a mapped file) and need not be contiguous. One thread at a time begins copies, of whichever pieces
/// are full, while the others go on: in the driver they would wait for each other. Where the driver has no pinned memory, ordinary memory
/// serves. Loads of one device take turns.
class Staging {
 public:
  Staging() = default;
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  ~Staging() { trim(); }

  /// qweight or the pieces of `source`, contiguous in device memory of `driver`, and `more`. When it returns the tensors
  /// have been read, and copies may still be on their way: Driver::cross() orders work after them.
  void upload(const std::shared_ptr<Driver>& driver, const MatrixSource& source, void* to,
              std::span<const StagedBytes> more = {});
  /// Frees the pinned memory and ends the threads, which are kept from one load to the next.
  void trim();

 private:
  enum class State { kFree, kFull, kCopied };  ///< kCopied: a copy has begun, in the lane of the slot's number
  struct Slot {
    explicit Slot(void* memory) : memory(memory) {}
    void* memory;  ///< pinned
    std::atomic<State> state{State::kFree};
    void* to = nullptr;  ///< of a full one
    std::size_t bytes = 0;
  };
  bool take_slots(std::size_t count);
  /// Begins the copies of all full slots, unless another thread does.
  void begin_copies();
  /// Waits for the slot's copy.
  void finish(std::size_t lane, const std::atomic<bool>& failed);

  std::mutex mutex_;
  std::shared_ptr<Driver> driver_;
  std::deque<Slot> slots_;  ///< two a thread
  std::mutex full_mutex_;
  std::deque<std::size_t> full_;  ///< slots in the order in which they were filled
  std::atomic<bool> beginning_{false};
  Crew crew_;
};

}  // namespace q4::gpu
