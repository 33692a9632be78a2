// Packs and unpacks codes on the device.
#include "runtime/gpu/repack.hpp"

#include <algorithm>

#include "kernels/pack.h"
#include "kernels/transpose.h"
#include "runtime/choose/sources.hpp"

namespace q4::gpu {
namespace {

i32 narrow(std::int64_t value) { return static_cast<i32>(value); }

}  // namespace

std::size_t CodesShape::packed_bytes() const {
  return static_cast<std::size_t>(codes_bytes(narrow(packed_k), narrow(n)));
}

std::vector<std::int32_t> transpose_chains(std::int64_t rows, std::int64_t columns) {
  constexpr std::int32_t kLongest = 32;
  const auto from = [&](std::int64_t place) { return transpose_from(place, narrow(rows), narrow(columns)); };
  std::vector<bool> seen(static_cast<std::size_t>(rows * columns));
  std::vector<std::int32_t> starts, lengths, next;
  for (std::int64_t begin = 0; begin < rows * columns; ++begin) {
    if (seen[static_cast<std::size_t>(begin)] || from(begin) == begin) continue;
    const auto first = static_cast<std::int32_t>(starts.size());
    std::int64_t place = begin;
    do {
      if (static_cast<std::int32_t>(starts.size()) == first || lengths.back() == kLongest) {
        starts.push_back(static_cast<std::int32_t>(place)), lengths.push_back(0);
        next.push_back(static_cast<std::int32_t>(starts.size()));
      }
      seen[static_cast<std::size_t>(place)] = true;
      ++lengths.back();
      place = from(place);
    } while (place != begin);
    next.back() = first;
  }
  starts.insert(starts.end(), lengths.begin(), lengths.end());
  starts.insert(starts.end(), next.begin(), next.end());
  return starts;
}

void Repacker::launch(const jit::Source& source, std::int64_t blocks, int threads, void* arguments, void* stream,
                      int shared_bytes) const {
  LaunchShape shape;
  shape.blocks = blocks, shape.threads = threads, shape.shared_bytes = shared_bytes;
  void* parameters[] = {arguments};
  driver_->launch(*kernels_.keep(source), shape, stream, parameters);
}

void Repacker::pack(const void* qweight, const std::int32_t* source, void* codes, void* stream) const {
  PackArgs args{static_cast<const u32*>(qweight), source,          static_cast<u32*>(codes), narrow(shape_.k),
                narrow(shape_.packed_k),          narrow(shape_.n)};
  launch(choose::pack_source(shape_.awq, false, shape_.pairs), pack_blocks(args.k, args.n), pack_threads(), &args,
         stream, pack_shared_bytes());
}

void Repacker::unpack(const void* codes, const std::int32_t* packed, void* words, std::int64_t first,
                      std::int64_t count) const {
  UnpackArgs args{static_cast<const u32*>(codes), packed,          static_cast<u32*>(words), first, count,
                  narrow(shape_.packed_k),        narrow(shape_.n)};
  launch(choose::unpack_source(shape_.awq, false, shape_.pairs), unpack_blocks(count), pack_threads(), &args, nullptr);
}

void Repacker::copy_rows(const void* from, std::int64_t from_stride, void* to, std::int64_t to_stride,
                         std::int64_t words) const {
  constexpr int kChunk = sizeof(Words4) / 4;  // of which pieces are multiples
  CopyRowsArgs args{static_cast<const Words4*>(from),
                    static_cast<Words4*>(to),
                    from_stride / kChunk,
                    to_stride / kChunk,
                    shape_.rows(),
                    words / kChunk};
  if (from_stride == words && to_stride == words) args.columns *= args.rows, args.rows = 1;
  launch(choose::copy_rows_source(), copy_rows_blocks(args.rows, args.columns), CopyRowsConfig{}.threads, &args,
         nullptr);
}

std::size_t Repacker::strips_bytes(std::size_t most) const {
  const auto strip = static_cast<std::size_t>(shape_.rows() * piece_words(shape_.awq) * 4);
  return std::clamp(most / strip * strip, strip, shape_.words_bytes());
}

template <class Each>
void Repacker::for_strips(std::size_t most, const Each& each) const {
  const auto together = static_cast<std::int64_t>(strips_bytes(most)) / (shape_.rows() * 4);
  for (std::int64_t word = 0; word < shape_.row_words(); word += together) {
    const auto words = std::min(together, shape_.row_words() - word);
    each(word, words, words * 64 / piece_words(shape_.awq));
  }
}

/// What a transposition needs, ready before the first piece moves.
struct Repacker::Transposition {
  std::int64_t rows, columns;
  Buffer plan, saved;
  std::int32_t chains = 0;

  Transposition(const Repacker& r, std::int64_t rows, std::int64_t columns) : rows(rows), columns(columns) {
    const auto numbers = transpose_chains(rows, columns);
    chains = static_cast<std::int32_t>(numbers.size() / 3);
    plan = upload(r.driver_, numbers.data(), numbers.size() * 4);
    saved = Buffer(r.driver_, numbers.size() / 3 * static_cast<std::size_t>(piece_words(r.shape_.awq)) * 4);
    for (const bool save : {true, false}) r.kernels_.keep(choose::transpose_source(save, r.shape_.awq));
  }
  void run(const Repacker& r, void* memory) const {
    if (chains == 0) return;
    const auto* numbers = plan.as<const i32>();
    TransposeArgs args{static_cast<u8*>(memory), saved.as<u8>(), numbers,      numbers + chains,
                       numbers + 2 * chains,     chains,         narrow(rows), narrow(columns)};
    for (const bool save : {true, false})
      r.launch(choose::transpose_source(save, r.shape_.awq), transpose_blocks(chains, piece_words(r.shape_.awq) / 2),
               transpose_threads(), &args, nullptr);
  }
};

void Repacker::pack_in_place(void* memory, const std::int32_t* source, Scratch& scratch, std::size_t most) const {
  const std::lock_guard lock(scratch.mutex);
  void* space = scratch.reserve(driver_, strips_bytes(most));
  scratch.busy = true;
  auto* words = static_cast<u32*>(memory);
  const std::int64_t row = shape_.row_words();
  kernels_.keep(choose::copy_rows_source());  // whatever can fail does so before the first write
  if (strips_bytes(most) == shape_.words_bytes()) {
    copy_rows(words, row, space, row, row);
    return pack(space, source, memory, nullptr);
  }
  const Transposition transposition(*this, shape_.rows(), shape_.n / kStripColumns);
  kernels_.keep(choose::pack_source(shape_.awq, true));
  for_strips(most, [&](std::int64_t word, std::int64_t here, std::int64_t columns) {
    copy_rows(words + word, row, space, here, here);
    PackArgs args{static_cast<const u32*>(space), source,          words + word, narrow(shape_.k),
                  narrow(shape_.packed_k),        narrow(columns), row};
    launch(choose::pack_source(shape_.awq, true), pack_blocks(args.k, args.n), pack_threads(), &args, nullptr,
           pack_shared_bytes());
  });
  transposition.run(*this, memory);
  driver_->synchronize();  // memory of the transposition goes
}

void Repacker::unpack_in_place(void* memory, const std::int32_t* packed, Scratch& scratch, std::size_t most) const {
  const std::lock_guard lock(scratch.mutex);
  void* space = scratch.reserve(driver_, strips_bytes(most));
  scratch.busy = true;
  auto* words = static_cast<u32*>(memory);
  const std::int64_t row = shape_.row_words();
  kernels_.keep(choose::copy_rows_source());
  if (strips_bytes(most) == shape_.words_bytes()) {
    kernels_.keep(choose::unpack_source(shape_.awq));
    copy_rows(words, row, space, row, row);
    return unpack(space, packed, memory, 0, shape_.rows() * row);
  }
  const Transposition transposition(*this, shape_.n / kStripColumns, shape_.rows());
  kernels_.keep(choose::unpack_source(shape_.awq, true));
  transposition.run(*this, memory);
  for_strips(most, [&](std::int64_t word, std::int64_t here, std::int64_t columns) {
    copy_rows(words + word, row, space, here, here);
    UnpackArgs args{static_cast<const u32*>(space), packed,          words + word, 0, shape_.rows() * here,
                    narrow(shape_.packed_k),        narrow(columns), row};
    launch(choose::unpack_source(shape_.awq, true), unpack_blocks(args.count), pack_threads(), &args, nullptr);
  });
  driver_->synchronize();  // memory of the transposition goes
}

}  // namespace q4::gpu
