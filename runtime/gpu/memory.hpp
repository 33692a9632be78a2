// Device memory with an owner.
#pragma once

#include <memory>
#include <utility>

#include "runtime/gpu/driver.hpp"

namespace q4::gpu {

/// Frees on destruction and keeps the driver alive as long as there is something to free.
class Buffer {
 public:
  Buffer() = default;
  Buffer(std::shared_ptr<Driver> driver, std::size_t bytes)
      : driver_(std::move(driver)), memory_(bytes ? driver_->allocate(bytes) : nullptr), bytes_(bytes) {}
  Buffer(std::shared_ptr<Driver> driver, const void* host, std::size_t bytes) : Buffer(std::move(driver), bytes) {
    if (bytes) driver_->copy(memory_, host, bytes, CopyKind::kToDevice);
  }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Buffer() {
    if (memory_) driver_->release(memory_);
  }

  void* get() const { return memory_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(memory_);
  }
  std::size_t bytes() const { return bytes_; }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(driver_, other.driver_), std::swap(memory_, other.memory_), std::swap(bytes_, other.bytes_);
  }
  std::shared_ptr<Driver> driver_;
  void* memory_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace q4::gpu
