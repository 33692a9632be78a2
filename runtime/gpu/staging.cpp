// Chunks of rows of words, each filled and copied by the thread that takes it.
#include "runtime/gpu/staging.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <optional>
#include <thread>
#include <vector>

namespace q4::gpu {
namespace {

/// Of pinned memory; a chunk of whole rows can need as much.
constexpr std::size_t kSlotBytes = 1 << 20;
/// What is copied at once, where rows are not longer: so that each thread has two or more; but not too little for the
/// driver, which takes 4 us for each copy and one copy at a time, nor too much for a processor's cache.
constexpr std::int64_t kLeastChunk = 256 << 10, kMostChunk = 1 << 20;
/// A thread copies 5 to 10 GB/s, the bus takes 25 to 60.
constexpr int kMostThreads = 16;

struct Words {
  std::vector<MatrixSource::Piece> pieces;
  std::int64_t rows, width = 0;
  std::uint32_t* to;
  std::int64_t chunk_rows = 1;

  Words(const MatrixSource& s, void* to)
      : pieces(s.pieces), rows(s.awq ? s.k : s.k / 8), to(static_cast<std::uint32_t*>(to)) {
    const std::int64_t all = s.awq ? s.n / 8 : s.n;
    if (pieces.empty()) pieces.push_back({s.qweight, all, all});
    for (const auto& piece : pieces) width += piece.width;
    if (pieces.size() == 1 && pieces[0].row_stride == width)  // any word may be a chunk's first
      pieces[0] = {pieces[0].words, 1, 1}, rows *= width, width = 1;
  }
  explicit Words(const StagedBytes& s)
      : pieces{{static_cast<const std::uint32_t*>(s.from), 1, 1}},
        rows(static_cast<std::int64_t>(s.bytes / 4)),
        width(1),
        to(static_cast<std::uint32_t*>(s.to)) {}
  std::int64_t bytes() const { return rows * width * 4; }
  void divide(std::int64_t chunk_bytes) { chunk_rows = std::max<std::int64_t>(1, chunk_bytes / (width * 4)); }
  std::int64_t chunks() const { return (rows + chunk_rows - 1) / chunk_rows; }
  void gather(std::int64_t first, std::int64_t count, std::uint32_t* to) const {
    if (pieces.size() == 1 && pieces[0].row_stride == width) {
      std::memcpy(to, pieces[0].words + first * width, static_cast<std::size_t>(count * width) * 4);
      return;
    }
    for (std::int64_t row = first; row < first + count; ++row)
      for (const auto& piece : pieces) to = std::copy_n(piece.words + row * piece.row_stride, piece.width, to);
  }
};

}  // namespace

void Staging::trim() {
  const std::lock_guard lock(mutex_);
  crew_.stop();
  const std::atomic<bool> none_failed{false};
  for (std::size_t lane = 0; lane < slots_.size(); ++lane) {
    try {
      finish(lane, none_failed);
    } catch (...) {  // nothing reads it any more
    }
    driver_->give_pinned(slots_[lane].memory);
  }
  slots_.clear();
  driver_.reset();
}

void Staging::begin_copies() {
  const auto next = [&]() -> std::optional<std::size_t> {
    const std::lock_guard lock(full_mutex_);
    if (full_.empty()) return std::nullopt;
    const std::size_t lane = full_.front();
    full_.pop_front();
    return lane;
  };
  // Who finds another at it may go: that one looks once more after it has said that it is not.
  for (bool more = true; more;) {
    if (beginning_.exchange(true, std::memory_order_acq_rel)) return;
    try {
      while (const auto lane = next()) {
        Slot& slot = slots_[*lane];
        driver_->begin_copy(slot.to, slot.memory, slot.bytes, static_cast<int>(*lane));
        slot.state.store(State::kCopied, std::memory_order_release);
      }
    } catch (...) {
      beginning_.exchange(false, std::memory_order_acq_rel);
      throw;
    }
    beginning_.exchange(false, std::memory_order_acq_rel);
    const std::lock_guard lock(full_mutex_);
    more = !full_.empty();
  }
}

void Staging::finish(std::size_t lane, const std::atomic<bool>& failed) {
  Slot& slot = slots_[lane];
  while (slot.state.load(std::memory_order_acquire) == State::kFull) {
    if (failed) return;
    begin_copies();
    std::this_thread::yield();
  }
  if (slot.state.exchange(State::kFree) == State::kCopied) driver_->finish_copy(static_cast<int>(lane));
}

bool Staging::take_slots(std::size_t count) {
  while (slots_.size() < count) {
    void* memory = driver_->take_pinned(kSlotBytes);
    if (memory == nullptr) return false;
    slots_.emplace_back(memory);
  }
  return true;
}

void Staging::upload(const std::shared_ptr<Driver>& driver, const MatrixSource& source, void* to,
                     std::span<const StagedBytes> more) {
  std::vector<Words> all = {{source, to}};
  for (const StagedBytes& bytes : more) all.emplace_back(bytes);
  static const std::int64_t processors = std::thread::hardware_concurrency();  // which reads a file
  const std::int64_t most = std::clamp<std::int64_t>(processors, 1, kMostThreads);
  std::int64_t bytes = 0, chunks = 0;
  for (const Words& words : all) bytes += words.bytes();
  for (Words& words : all) {
    words.divide(std::clamp(bytes / (2 * most), kLeastChunk, kMostChunk));
    chunks += words.chunks();
  }
  const auto most_bytes = static_cast<std::size_t>(all[0].chunk_rows * all[0].width * 4);
  const int threads = static_cast<int>(std::clamp<std::int64_t>(chunks, 1, most));
  const std::lock_guard lock(mutex_);
  driver_ = driver;
  const bool pinned = most_bytes <= kSlotBytes && take_slots(2 * static_cast<std::size_t>(threads));

  std::atomic<std::int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;
  const auto copy_chunk = [&](std::int64_t chunk, std::size_t lane, std::uint32_t* ordinary) {
    const Words* part = all.data();
    for (; chunk >= part->chunks(); ++part) chunk -= part->chunks();
    const std::int64_t first = chunk * part->chunk_rows, count = std::min(part->chunk_rows, part->rows - first);
    auto* place = part->to + first * part->width;
    const auto bytes = static_cast<std::size_t>(count * part->width) * 4;
    if (!pinned) {
      part->gather(first, count, ordinary);
      return driver->copy(place, ordinary, bytes, CopyKind::kToDevice);
    }
    Slot& slot = slots_[lane];
    finish(lane, failed);
    if (failed) return;
    part->gather(first, count, static_cast<std::uint32_t*>(slot.memory));
    slot.to = place, slot.bytes = bytes;
    slot.state.store(State::kFull, std::memory_order_relaxed);
    {
      const std::lock_guard full_lock(full_mutex_);
      full_.push_back(lane);
    }
    begin_copies();
  };
  const auto work = [&](int thread) {
    try {
      std::vector<std::uint32_t> ordinary(pinned ? 0 : std::max(most_bytes, kSlotBytes) / 4);
      std::size_t turn = 0;
      for (std::int64_t chunk; (chunk = next++) < chunks && !failed; turn ^= 1)
        copy_chunk(chunk, 2 * static_cast<std::size_t>(thread) + turn, ordinary.data());
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
    }
  };
  crew_.run(threads, work);
  if (error) {
    full_.clear();
    for (Slot& slot : slots_)
      if (slot.state == State::kFull) slot.state = State::kFree;
    driver->synchronize();  // no copy may still read the pinned memory
    std::rethrow_exception(error);
  }
}

}  // namespace q4::gpu
