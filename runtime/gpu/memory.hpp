// Device memory that is filled at once, and memory that loads share.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>

#include "runtime/gpu/driver.hpp"
#include "runtime/gpu/staging.hpp"

namespace q4::gpu {

/// Device memory with the contents of host memory.
inline Buffer upload(const std::shared_ptr<Driver>& driver, const void* host, std::size_t bytes) {
  Buffer buffer(driver, bytes);
  if (bytes) driver->copy(buffer.get(), host, bytes, CopyKind::kToDevice);
  return buffer;
}

/// Memory that loads use one after the other: it grows, and stays until it is trimmed.
struct Scratch {
  std::mutex mutex;  ///< held from reserve() until its use is in the default stream
  Buffer buffer;
  bool busy = false;  ///< work of the default stream may use it that nobody has waited for
  /// For what comes from the host: while kernels of one load read the one, copies of the next fill the other.
  struct Landing {
    std::mutex mutex;  ///< held from land() until the kernels that read it are launched
    Buffer buffer;
    std::uint32_t read = 0;  ///< `crossings` after their launch
  };
  Landing landings[2];
  std::atomic<std::uint32_t> turn{0}, crossings{1};
  Staging staging;
  /// Returns when no work that nobody has waited for uses it: before copies of other streams, and before it is freed.
  void settle(Driver& driver) {
    if (std::exchange(busy, false)) driver.synchronize();
  }
  void* reserve(const std::shared_ptr<Driver>& driver, std::size_t bytes) {
    if (buffer.bytes() < bytes) settle(*driver), buffer = Buffer(), buffer = Buffer(driver, bytes);
    return buffer.get();
  }
  /// Kernels that are launched from now on wait for copies, and copies for kernels: Driver::cross().
  void cross(Driver& driver) {
    ++crossings;  // first: one that is launched now may not be waited for
    driver.cross();
  }
  /// The other landing memory, locked. Copies to it wait for the kernels that read it.
  Landing& land(const std::shared_ptr<Driver>& driver, std::size_t bytes, std::unique_lock<std::mutex>& lock) {
    Landing& next = landings[turn++ % 2];
    lock = std::unique_lock(next.mutex);
    if (next.read == crossings) cross(*driver);
    if (next.buffer.bytes() >= bytes) return next;
    if (next.buffer.get()) driver->synchronize();  // kernels may read it
    next.buffer = Buffer(), next.buffer = Buffer(driver, bytes);
    return next;
  }
  /// Frees all of it that no load uses.
  void trim(Driver& driver) {
    const std::lock_guard lock(mutex);
    settle(driver);
    buffer = Buffer();
    for (Landing& landing : landings) {
      const std::lock_guard landing_lock(landing.mutex);
      if (landing.buffer.get()) driver.synchronize();
      landing.buffer = Buffer();
    }
    staging.trim();
  }
};

}  // namespace q4::gpu
