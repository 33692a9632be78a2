// MemoryLedger: the one place where a device's memory is taken and given back, counted by kind. Buffer: its owner.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <q4/memory.hpp>
#include <unordered_map>
#include <utility>

#include "runtime/base/fork.hpp"
#include "runtime/base/seal.hpp"

namespace q4 {

enum class MemoryKind { kWeights, kWorkspace };

/// Thread-safe. Memory comes from the embedder's allocator where there is one, else from the device's own functions.
class MemoryLedger {
 public:
  struct Own {
    std::function<void*(std::size_t bytes)> take;  ///< 256-byte aligned; throws kOutOfMemory
    std::function<void(void*)> give;               ///< never throws
    bool survives_fork = false;                    ///< a child process has its own copy, and frees that
  };
  /// Before the first allocation. `allocator` may be empty, `seal` null.
  void open(Device device, Allocator allocator, std::shared_ptr<const Seal> seal, Own own);

  /// 256-byte aligned, never null. Throws kOutOfMemory with the size and what is held, kInvalidArgument for an
  /// allocator that breaks its contract, and what the seal throws.
  void* allocate(std::size_t bytes, MemoryKind kind);
  /// Null does nothing.
  void release(void* memory) noexcept;
  /// Loaded code: `bytes` more, or less.
  void count_code(std::ptrdiff_t bytes);
  MemoryUse use() const;
  const Seal* seal() const { return seal_.get(); }

 private:
  struct Block {
    std::size_t bytes;
    MemoryKind kind;
    bool own;  ///< the device's own functions gave it
  };
  void* take(std::size_t bytes, bool own) const;
  void give(void* memory, const Block& block) const noexcept;
  std::string held() const;

  Device device_;
  Allocator allocator_;
  std::shared_ptr<const Seal> seal_;
  Own own_;
  HomeProcess process_;
  mutable ForkSafeMutex mutex_;  // of what follows
  MemoryUse use_;
  std::unordered_map<void*, Block> blocks_;
};

/// Device memory with an owner, given back to its ledger at the end of its life.
class Buffer {
 public:
  Buffer() = default;
  /// 256-byte aligned; null for no bytes. Keeps the ledger.
  Buffer(std::shared_ptr<MemoryLedger> ledger, std::size_t bytes, MemoryKind kind = MemoryKind::kWorkspace)
      : ledger_(std::move(ledger)), memory_(bytes ? ledger_->allocate(bytes, kind) : nullptr), bytes_(bytes) {}
  /// Of a device or its driver, which has a ledger() and is kept.
  template <class Owner>
  Buffer(const std::shared_ptr<Owner>& owner, std::size_t bytes, MemoryKind kind = MemoryKind::kWorkspace)
      : Buffer(std::shared_ptr<MemoryLedger>(owner, &owner->ledger()), bytes, kind) {}
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
    if (ledger_) ledger_->release(memory_);
  }

  void* get() const { return memory_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(memory_);
  }
  std::size_t bytes() const { return bytes_; }  ///< held; 0 when borrowed

 private:
  void swap(Buffer& other) noexcept {
    std::swap(ledger_, other.ledger_), std::swap(memory_, other.memory_), std::swap(bytes_, other.bytes_);
  }
  std::shared_ptr<MemoryLedger> ledger_;
  void* memory_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace q4
