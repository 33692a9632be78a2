// Numbered handles that can be checked: what the C ABI gives out instead of pointers.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "runtime/base/check.hpp"

namespace q4 {

/// A table of values behind ids. id = generation << 32 | slot; each add() takes the next generation, and the first one
/// is different in each table, so an id of another table, or one that was removed, finds nothing.
///
/// find() takes no lock: slots live in chunks that never move, and a slot's generation is published after its value.
/// Removing an id that another thread is using at that moment is the caller's race.
template <class T>
class HandleTable {
 public:
  /// `first`: generation of the first id; tables that live at the same time should get numbers far apart.
  explicit HandleTable(std::uint32_t first) : first_(first), next_(first) {}
  HandleTable(const HandleTable&) = delete;
  HandleTable& operator=(const HandleTable&) = delete;
  ~HandleTable() {
    for (auto& chunk : chunks_) delete[] chunk.load(std::memory_order_relaxed);
  }

  std::uint64_t add(T value) {
    const std::lock_guard lock(mutex_);
    const std::uint32_t index = take_slot();
    Slot& slot = chunks_[index / kChunk].load(std::memory_order_relaxed)[index % kChunk];
    if (next_ == 0) ++next_;  // 0 marks an empty slot
    const std::uint32_t generation = next_++;
    slot.value = std::move(value);
    slot.generation.store(generation, std::memory_order_release);
    return std::uint64_t{generation} << 32 | index;
  }

  /// Null when `id` is not alive.
  const T* find(std::uint64_t id) const noexcept {
    Slot* slot = live_slot(id);
    return slot ? &slot->value : nullptr;
  }

  /// Gives the value back, so that it is destroyed outside the lock. False when `id` is not alive.
  bool remove(std::uint64_t id, T& value) {
    const std::lock_guard lock(mutex_);
    Slot* slot = live_slot(id);
    if (!slot) return false;
    free_.push_back(static_cast<std::uint32_t>(id));  // may throw: before anything changes
    slot->generation.store(0, std::memory_order_release);
    value = std::exchange(slot->value, T());
    return true;
  }

  /// Whether add() gave out this id at some time.
  bool issued(std::uint64_t id) const {
    const std::lock_guard lock(mutex_);
    const auto age = static_cast<std::uint32_t>(id >> 32) - first_;
    return age < next_ - first_ && static_cast<std::uint32_t>(id) < used_;
  }

 private:
  static constexpr std::uint32_t kChunk = 1024, kChunks = 1024;
  struct Slot {
    std::atomic<std::uint32_t> generation{0};
    T value;
  };

  Slot* live_slot(std::uint64_t id) const noexcept {
    const auto index = static_cast<std::uint32_t>(id), generation = static_cast<std::uint32_t>(id >> 32);
    if (index >= kChunk * kChunks || generation == 0) return nullptr;
    Slot* chunk = chunks_[index / kChunk].load(std::memory_order_acquire);
    if (!chunk) return nullptr;
    Slot& slot = chunk[index % kChunk];
    return slot.generation.load(std::memory_order_acquire) == generation ? &slot : nullptr;
  }

  std::uint32_t take_slot() {
    if (!free_.empty()) {
      const std::uint32_t index = free_.back();
      free_.pop_back();
      return index;
    }
    if (used_ == kChunk * kChunks) fail(ErrorCode::kOutOfMemory, "more than {} handles are alive: destroy some", used_);
    if (used_ % kChunk == 0) chunks_[used_ / kChunk].store(new Slot[kChunk](), std::memory_order_release);
    return used_++;
  }

  const std::uint32_t first_;
  std::array<std::atomic<Slot*>, kChunks> chunks_{};
  mutable std::mutex mutex_;  // of everything below, and of adding and removing
  std::uint32_t next_;
  std::uint32_t used_ = 0;
  std::vector<std::uint32_t> free_;
};

}  // namespace q4
