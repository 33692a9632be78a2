// Heap: device memory cut from a driver's larger blocks, because a driver that allocates keeps its copies and launches waiting.
#pragma once

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <map>
#include <mutex>

#include "runtime/base/check.hpp"

namespace q4::gpu {

/// Thread-safe. A block is as large as what is asked for, or a quarter of what is held up to kMostBlock: so at most that
/// is held beyond what is in use and what was given back between pieces in use. A block goes back when nothing is in it.
class Heap {
 public:
  static constexpr std::size_t kLeast = 64 << 10,
                               kMost = 64 << 20;  ///< bytes of a piece: others have a block of their own
  static constexpr std::size_t kMostBlock = 128 << 20;

  static bool serves(std::size_t bytes) { return bytes >= kLeast && bytes <= kMost; }

  /// 256-byte aligned where the blocks are. `grow(bytes)` gives a block; what it throws is thrown.
  template <class Grow>
  void* take(std::size_t bytes, const Grow& grow) {
    const std::size_t wanted = rounded(bytes, kAlign);
    const std::lock_guard lock(mutex_);
    // The smallest free piece that is large enough: large ones stay for what needs them.
    Block* best = nullptr;
    std::map<std::size_t, std::size_t>::iterator piece;
    for (auto& [start, block] : blocks_)
      for (auto at = block.free.begin(); at != block.free.end(); ++at)
        if (at->second >= wanted && (best == nullptr || at->second < piece->second)) best = &block, piece = at;
    if (best == nullptr) {
      best = &add(wanted, grow);
      piece = best->free.begin();
    }
    const std::size_t offset = piece->first, length = piece->second;
    best->free.erase(piece);
    if (length > wanted) best->free.emplace(offset + wanted, length - wanted);
    best->used.emplace(offset, wanted);
    return best->start + offset;
  }

  /// Whether take() gave it. If so nothing may use it any more when `settle()` has returned, and `release(block)` takes
  /// a block back.
  template <class Settle, class Release>
  bool give(void* memory, const Settle& settle, const Release& release) {
    auto* const at = static_cast<std::byte*>(memory);
    const std::lock_guard lock(mutex_);
    auto found = blocks_.upper_bound(at);
    if (found == blocks_.begin()) return false;
    Block& block = (--found)->second;
    const auto piece = block.used.find(static_cast<std::size_t>(at - block.start));
    if (at >= block.start + block.bytes || piece == block.used.end()) return false;
    settle();
    std::size_t offset = piece->first, length = piece->second;
    block.used.erase(piece);
    if (block.used.empty()) {
      held_ -= block.bytes;
      std::byte* const start = block.start;
      blocks_.erase(found);
      release(start);
      return true;
    }
    const auto next = block.free.lower_bound(offset);
    if (next != block.free.begin()) {
      const auto before = std::prev(next);
      if (before->first + before->second == offset) {
        offset = before->first, length += before->second;
        block.free.erase(before);
      }
    }
    if (next != block.free.end() && next->first == offset + length) {
      length += next->second;
      block.free.erase(next);
    }
    block.free.emplace(offset, length);
    return true;
  }

  /// Bytes of all blocks.
  std::size_t held() const {
    const std::lock_guard lock(mutex_);
    return held_;
  }

 private:
  struct Block {
    std::byte* start = nullptr;
    std::size_t bytes = 0;
    std::map<std::size_t, std::size_t> free, used;  ///< bytes by offset; free pieces have used ones between them
  };
  static constexpr std::size_t kAlign = 256, kPage = 2 << 20;  // what drivers round large blocks to

  static std::size_t rounded(std::size_t bytes, std::size_t to) { return (bytes + to - 1) / to * to; }

  template <class Grow>
  Block& add(std::size_t wanted, const Grow& grow) {
    std::size_t bytes = rounded(std::max(wanted, std::min(held_ / 4, kMostBlock)), kPage);
    void* memory = nullptr;
    try {
      memory = grow(bytes);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kOutOfMemory || bytes == wanted) throw;
      memory = grow(bytes = wanted);
    }
    Block block;
    block.start = static_cast<std::byte*>(memory), block.bytes = bytes;
    block.free.emplace(0, bytes);
    Block& added = blocks_.emplace(block.start, std::move(block)).first->second;
    held_ += bytes;
    return added;
  }

  mutable std::mutex mutex_;
  std::map<std::byte*, Block> blocks_;  ///< by start
  std::size_t held_ = 0;
};

}  // namespace q4::gpu
