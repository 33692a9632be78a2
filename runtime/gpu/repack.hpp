// Moves code words between the form of checkpoints and that of kernels/layout.h, also within one piece of memory.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/gpu/kernels.hpp"
#include "runtime/gpu/memory.hpp"

namespace q4::gpu {

struct CodesShape {
  std::int64_t k = 0, n = 0;  ///< of W
  std::int64_t packed_k = 0;
  bool awq = false, pairs = false;  ///< `pairs`: MatrixShape::gate_up

  std::size_t words_bytes() const { return static_cast<std::size_t>(k / 8 * n) * 4; }  ///< of qweight
  std::int64_t rows() const { return awq ? k : k / 8; }                                ///< of qweight
  std::int64_t row_words() const { return awq ? n / 8 : n; }
  std::size_t packed_bytes() const;
  /// The packed codes take exactly qweight's bytes.
  bool fits() const { return packed_bytes() == words_bytes() && packed_k == k && n % 64 == 0 && !pairs; }
};

class Repacker {
 public:
  Repacker(std::shared_ptr<Driver> driver, Kernels& kernels, const CodesShape& shape)
      : driver_(std::move(driver)), kernels_(kernels), shape_(shape) {}

  /// From one memory to another. `source`: row of W of each packed row, on the device, -1: padding; null: identity.
  void pack(const void* qweight, const std::int32_t* source, void* codes, void* stream) const;
  /// Words first .. first + count - 1 of qweight. `packed`: packed row of each row of W, on the device; null: identity.
  void unpack(const void* codes, const std::int32_t* packed, void* words, std::int64_t first, std::int64_t count) const;
  /// Where the shape fits(): through `scratch`, of which at most max(`most` bytes, a strip and 1/32 of the codes) are
  /// used. In the order of the default stream, in which all users of the scratch memory take turns.
  void pack_in_place(void* memory, const std::int32_t* source, Scratch& scratch, std::size_t most) const;
  void unpack_in_place(void* memory, const std::int32_t* packed, Scratch& scratch, std::size_t most) const;

 private:
  struct Transposition;
  void launch(const jit::Source& source, std::int64_t blocks, int threads, void* arguments, void* stream,
              int shared_bytes = 0) const;
  void copy_rows(const void* from, std::int64_t from_stride, void* to, std::int64_t to_stride,
                 std::int64_t words) const;
  /// Calls each(first word of a row, words of it, columns of W) for strips that fit into `most` bytes together.
  template <class Each>
  void for_strips(std::size_t most, const Each& each) const;
  std::size_t strips_bytes(std::size_t most) const;

  std::shared_ptr<Driver> driver_;
  Kernels& kernels_;
  CodesShape shape_;
};

/// The chains of kernels/transpose.h for a matrix of pieces: starts, lengths and next, one after the other.
std::vector<std::int32_t> transpose_chains(std::int64_t rows, std::int64_t columns);

}  // namespace q4::gpu
