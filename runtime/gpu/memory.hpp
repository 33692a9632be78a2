// Device memory with an owner.
#pragma once

#include <memory>
#include <mutex>
#include <utility>

#include "runtime/gpu/driver.hpp"

namespace q4::gpu {

/// Frees on destruction and keeps the driver alive as long as there is something to free.
class Buffer {
 public:
  Buffer() = default;
  Buffer(std::shared_ptr<Driver> driver, std::size_t bytes, MemoryKind kind = MemoryKind::kWorkspace)
      : driver_(std::move(driver)), memory_(bytes ? driver_->allocate(bytes, kind) : nullptr), bytes_(bytes) {}
  Buffer(std::shared_ptr<Driver> driver, const void* host, std::size_t bytes, MemoryKind kind = MemoryKind::kWorkspace)
      : Buffer(std::move(driver), bytes, kind) {
    if (bytes) driver_->copy(memory_, host, bytes, CopyKind::kToDevice);
  }
  /// Somebody else's memory, which outlives it: nothing is held.
  static Buffer borrowed(void* memory) {
    Buffer buffer;
    buffer.memory_ = memory;
    return buffer;
  }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Buffer() {
    if (driver_) driver_->release(memory_);
  }

  void* get() const { return memory_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(memory_);
  }
  std::size_t bytes() const { return bytes_; }  ///< held; 0 when borrowed

 private:
  void swap(Buffer& other) noexcept {
    std::swap(driver_, other.driver_), std::swap(memory_, other.memory_), std::swap(bytes_, other.bytes_);
  }
  std::shared_ptr<Driver> driver_;
  void* memory_ = nullptr;
  std::size_t bytes_ = 0;
};

/// Memory that loads use one after the other: it grows, and stays until it is trimmed.
struct Scratch {
  std::mutex mutex;  ///< held from reserve() until the device has finished with it
  Buffer buffer;
  void* reserve(const std::shared_ptr<Driver>& driver, std::size_t bytes) {
    if (buffer.bytes() < bytes) buffer = Buffer(), buffer = Buffer(driver, bytes);
    return buffer.get();
  }
};

}  // namespace q4::gpu
