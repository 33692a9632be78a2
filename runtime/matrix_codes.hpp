// The codes of matrices and slices, side by side.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "runtime/matrix_source.hpp"
#include "runtime/slice.hpp"
#include "runtime/tensor_reader.hpp"

namespace q4 {

/// Host tensors stay where they are, as pieces of MatrixSource; on a device, and where zeros are added, they are copied.
class CodesJoin {
 public:
  CodesJoin(const RowSlice& rows, bool awq) : rows_(rows), awq_(awq) {}
  /// Columns of one matrix, from row `first_row` of its tensor on, to the right of those before. Throws where some are
  /// on the host and some on a device.
  void add(const TensorReader& reader, const TensorView& qweight, const Extent& columns, std::int64_t first_row);
  std::int64_t n() const { return n_; }
  void place(CheckedSource& to) const;

 private:
  struct Piece {
    const std::uint32_t* words;  ///< first row and column of the slice
    std::int64_t width, padding, row_stride;
  };
  /// Copies the pieces to `to`, [word_rows(k), n] words, by copy(to, from, words).
  template <class Copy>
  void gather(std::uint32_t* to, const Copy& copy) const;
  std::int64_t word_rows(std::int64_t rows) const { return awq_ ? rows : rows / 8; }

  const RowSlice& rows_;
  const bool awq_;
  bool padded_ = false;
  std::optional<bool> on_device_;
  std::shared_ptr<DeviceBackend> device_;
  std::int64_t n_ = 0, width_ = 0;
  std::vector<Piece> pieces_;
};

}  // namespace q4
