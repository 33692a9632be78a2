// Takes memory from the embedder or the device, and keeps the books.
#include "runtime/base/memory.hpp"

#include <cstdint>
#include <new>

#include "runtime/base/check.hpp"

namespace q4 {
namespace {

constexpr std::size_t kAlignment = 256;

const char* name_of(MemoryKind kind) { return kind == MemoryKind::kWeights ? "weights" : "workspace"; }

}  // namespace

void MemoryLedger::open(Device device, Allocator allocator, std::shared_ptr<const Seal> seal, Own own) {
  device_ = device, allocator_ = std::move(allocator), seal_ = std::move(seal), own_ = std::move(own);
  use_.device = device;
}

std::string MemoryLedger::held() const {
  const auto now = use();
  return fmt::format("{} bytes of weights, {} of workspace and {} of code are held there", now.weights, now.workspace,
                     now.code);
}

void* MemoryLedger::take(std::size_t bytes, bool own) const {
  if (own) return own_.take(bytes);
  void* memory = nullptr;
  std::string why = "returned null";
  try {
    memory = allocator_.allocate(bytes, kAlignment, device_, nullptr);
  } catch (const std::exception& error) { why = fmt::format("threw \"{}\"", error.what()); } catch (...) {
    why = "threw";
  }
  if (!memory) fail(ErrorCode::kOutOfMemory, "allocator: allocate({} bytes on {}) {}", bytes, device_.str(), why);
  if (reinterpret_cast<std::uintptr_t>(memory) % kAlignment == 0) return memory;
  allocator_.release(memory, bytes, device_, nullptr);
  fail(ErrorCode::kInvalidArgument, "allocator: allocate({} bytes on {}) returned {}, which is not aligned to {} bytes",
       bytes, device_.str(), memory, kAlignment);
}

void* MemoryLedger::allocate(std::size_t bytes, MemoryKind kind) {
  if (bytes == 0) bytes = 1;
  if (seal_) seal_->check(fmt::format("{} bytes of {} are to be allocated on {}", bytes, name_of(kind), device_.str()));
  const Block block{bytes, kind, !allocator_.allocate || (allocator_.serves && !allocator_.serves(device_))};
  void* memory = nullptr;
  try {
    memory = take(bytes, block.own);
  } catch (const Error& error) {
    if (error.code() != ErrorCode::kOutOfMemory) throw;
    fail(ErrorCode::kOutOfMemory, "{}; {} bytes of {} were needed; {}", error.what(), bytes, name_of(kind), held());
  }
  const std::lock_guard lock(mutex_);
  try {
    blocks_.emplace(memory, block);
  } catch (const std::bad_alloc&) {
    give(memory, block);
    throw;
  }
  (kind == MemoryKind::kWeights ? use_.weights : use_.workspace) += bytes;
  ++use_.allocations;
  return memory;
}

void MemoryLedger::release(void* memory) noexcept {
  if (!memory) return;
  Block block;
  {
    const std::lock_guard lock(mutex_);
    const auto found = blocks_.find(memory);
    if (found == blocks_.end()) return;  // not of this device: freeing it would corrupt what it belongs to
    block = found->second;
    blocks_.erase(found);
    (block.kind == MemoryKind::kWeights ? use_.weights : use_.workspace) -= block.bytes;
    --use_.allocations;
  }
  give(memory, block);
}

void MemoryLedger::give(void* memory, const Block& block) const noexcept {
  if (block.own) return own_.give(memory);
  if (process_.left() && !own_.survives_fork) return;  // it is the parent's
  try {
    allocator_.release(memory, block.bytes, device_, nullptr);
  } catch (...) {  // it must not throw, and nothing can be done here
  }
}

void MemoryLedger::count_code(std::ptrdiff_t bytes) {
  const std::lock_guard lock(mutex_);
  use_.code += static_cast<std::size_t>(bytes);
}

MemoryUse MemoryLedger::use() const {
  const std::lock_guard lock(mutex_);
  return use_;
}

}  // namespace q4
