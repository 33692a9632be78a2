// Chunks of rows of words, each filled and copied by the thread that takes it.
#include "runtime/gpu/staging.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <thread>

namespace q4::gpu {
namespace {

/// Enough for the bus to be busy, little enough for both pieces to stay in a processor's cache.
constexpr std::int64_t kSlotBytes = 1 << 20;
/// A thread copies 5 to 10 GB/s, the bus takes 25 to 60.
constexpr int kMostThreads = 8;

struct Words {
  std::vector<MatrixSource::Piece> pieces;
  std::int64_t rows, width = 0;
  std::uint32_t* to;

  Words(const MatrixSource& s, void* to)
      : pieces(s.pieces), rows(s.awq ? s.k : s.k / 8), to(static_cast<std::uint32_t*>(to)) {
    const std::int64_t all = s.awq ? s.n / 8 : s.n;
    if (pieces.empty()) pieces.push_back({s.qweight, all, all});
    for (const auto& piece : pieces) width += piece.width;
  }
  explicit Words(const StagedBytes& s)
      : pieces{{static_cast<const std::uint32_t*>(s.from), 1, 1}},
        rows(static_cast<std::int64_t>(s.bytes / 4)),
        width(1),
        to(static_cast<std::uint32_t*>(s.to)) {}
  std::int64_t chunk_rows() const { return std::max<std::int64_t>(1, kSlotBytes / (width * 4)); }
  std::int64_t chunks() const { return (rows + chunk_rows() - 1) / chunk_rows(); }
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
  for (void* slot : slots_) driver_->give_pinned(slot);
  slots_.clear();
  driver_.reset();
}

void Staging::upload(const std::shared_ptr<Driver>& driver, const MatrixSource& source, void* to,
                     std::span<const StagedBytes> more) {
  std::vector<Words> all = {{source, to}};
  for (const StagedBytes& bytes : more) all.emplace_back(bytes);
  std::int64_t chunks = 0;
  for (const Words& words : all) chunks += words.chunks();
  const auto slot_bytes = static_cast<std::size_t>(std::max(kSlotBytes, all[0].width * 4));  // a chunk is a row or more
  const int threads = static_cast<int>(std::clamp<std::int64_t>(
      std::min<std::int64_t>(chunks / 2, std::thread::hardware_concurrency()), 1, kMostThreads));
  const std::lock_guard lock(mutex_);
  driver_ = driver;
  bool pinned = slot_bytes == static_cast<std::size_t>(kSlotBytes);
  while (pinned && slots_.size() < static_cast<std::size_t>(2 * threads)) {
    void* slot = driver->take_pinned(slot_bytes);
    if (slot != nullptr)
      slots_.push_back(slot);
    else
      pinned = false;
  }

  std::atomic<std::int64_t> next{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;
  const auto work = [&](int thread) {
    std::vector<std::uint32_t> ordinary(pinned ? 0 : slot_bytes / 4);
    bool busy[2] = {};
    try {
      int turn = 0;
      for (std::int64_t chunk = next++; chunk < chunks && !failed; chunk = next++, turn ^= 1) {
        std::int64_t in_part = chunk;
        const Words* part = all.data();
        for (; in_part >= part->chunks(); ++part) in_part -= part->chunks();
        const Words& words = *part;
        const std::int64_t first = in_part * words.chunk_rows(),
                           count = std::min(words.chunk_rows(), words.rows - first);
        const int number = 2 * thread + turn;
        auto* slot = pinned ? static_cast<std::uint32_t*>(slots_[static_cast<std::size_t>(number)]) : ordinary.data();
        if (busy[turn]) driver->finish_copy(number);
        busy[turn] = false;
        words.gather(first, count, slot);
        auto* place = words.to + first * words.width;
        const auto bytes = static_cast<std::size_t>(count * words.width) * 4;
        if (!pinned) {
          driver->copy(place, slot, bytes, CopyKind::kToDevice);
        } else {
          driver->begin_copy(place, slot, bytes, number);
          busy[turn] = true;
        }
      }
      for (const int last : {0, 1})
        if (busy[last]) driver->finish_copy(2 * thread + last);
    } catch (...) {
      if (!failed.exchange(true)) error = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> others;
    for (int thread = 1; thread < threads; ++thread) others.emplace_back(work, thread);
    work(0);
  }
  if (error) {
    driver->synchronize();  // no copy may still read the pinned memory
    std::rethrow_exception(error);
  }
}

}  // namespace q4::gpu
