// Staging: tensors from host memory to the device, through pinned memory, by several threads.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

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
/// which are anywhere (a mapped file) and need not be contiguous. Where the driver has no pinned memory, ordinary memory
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
  struct Slot {
    void* memory;       ///< pinned
    bool busy = false;  ///< a copy reads it, in the lane of its number
  };
  bool take_slots(std::size_t count);
  void finish(std::size_t lane);

  std::mutex mutex_;
  std::shared_ptr<Driver> driver_;
  std::vector<Slot> slots_;  ///< two a thread
  Crew crew_;
};

}  // namespace q4::gpu
