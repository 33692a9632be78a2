// Device memory that is filled at once, and memory that loads share.
#pragma once

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
  Staging staging;
  /// Returns when no work that nobody has waited for uses it: before copies of other streams, and before it is freed.
  void settle(Driver& driver) {
    if (std::exchange(busy, false)) driver.synchronize();
  }
  void* reserve(const std::shared_ptr<Driver>& driver, std::size_t bytes) {
    if (buffer.bytes() < bytes) settle(*driver), buffer = Buffer(), buffer = Buffer(driver, bytes);
    return buffer.get();
  }
};

}  // namespace q4::gpu
