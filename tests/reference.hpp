// The truth that tests compare with: generated matrices, plain unpacking and products in fp64, all independent of
// runtime/.
#pragma once

#include <cstddef>
#include <cstdint>
#include <q4/matrix.hpp>
#include <vector>

#include "autotune/tolerance.hpp"

namespace q4::test {

// ---- numbers ----------------------------------------------------------------------------------------------------
/// One rounding, to nearest even, from double; overflow gives infinity, a NaN stays a NaN.
std::uint16_t half_bits(double value);
std::uint16_t bf16_bits(double value);
double half_value(std::uint16_t bits);
double bf16_value(std::uint16_t bits);

/// Same numbers on every platform for the same seed.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t bits();                    ///< 64 random bits (splitmix64)
  std::int64_t below(std::int64_t limit);  ///< 0 .. limit - 1
  double uniform();                        ///< [0, 1)
  double normal();                         ///< mean 0, deviation 1

 private:
  std::uint64_t state_;
};

// ---- matrices -------------------------------------------------------------------------------------------------
enum class ActOrder {
  kNone,      ///< no g_idx
  kTrivial,   ///< g_idx[r] = r / group_size: the same as none
  kPermuted,  ///< every group keeps its number of rows, in random places: what desc_act writes
  kUneven,    ///< each row's group is drawn at random: groups of any size, empty ones too
};
enum class StoredZeros {
  kRandom,     ///< 0 .. 15, with 0 and 15 certain to occur in the first two columns
  kSymmetric,  ///< what means 8: 7 in v1, 8 in v2
};

struct MatrixSpec {
  std::int64_t k = 256, n = 64;
  std::int64_t group_size = 128;  ///< -1: one group
  ActOrder act_order = ActOrder::kNone;
  ZeroFormat zeros = ZeroFormat::kV1;
  StoredZeros stored_zeros = StoredZeros::kRandom;
  bool bias = false;
  double scale = 0.01;  ///< scales are drawn from [0.25, 1] of it
  std::uint64_t seed = 1;
};

/// Owns the host tensors of one GPTQ matrix. tensors() refers to this object: keep it where it is.
struct GptqMatrix {
  MatrixSpec spec;
  std::int64_t groups = 0;
  std::vector<std::uint32_t> qweight, qzeros;
  std::vector<std::uint16_t> scales, bias;
  std::vector<std::int32_t> g_idx;
  GptqTensors tensors() const;
};
GptqMatrix make_gptq(const MatrixSpec& spec);

/// The same matrix in AWQ's packing. Only without act-order; zeros become what they mean.
struct AwqMatrix {
  MatrixSpec spec;
  std::int64_t groups = 0;
  std::vector<std::uint32_t> qweight, qzeros;
  std::vector<std::uint16_t> scales, bias;
  AwqTensors tensors() const;
};
AwqMatrix to_awq(const GptqMatrix& matrix);

/// What the tensors say, one number an element: W(r, c) = scales[g][c] * (codes[r][c] - zeros[g][c]), g = group[r].
struct PlainMatrix {
  std::int64_t k = 0, n = 0, groups = 0;
  std::vector<std::uint8_t> codes;  ///< [k, n]
  std::vector<std::uint8_t> zeros;  ///< [groups, n], as subtracted
  std::vector<double> scales;       ///< [groups, n]
  std::vector<std::int32_t> group;  ///< [k]
  std::vector<double> bias;         ///< [n] or empty
  double weight(std::int64_t row, std::int64_t column) const;
};
/// Contiguous host tensors, valid by construction.
PlainMatrix unpack(const GptqTensors& tensors);
PlainMatrix unpack(const AwqTensors& tensors);

// ---- activations and products -----------------------------------------------------------------------------------
/// Rows of fp16, bf16 or fp32 in host memory, 16-byte aligned, with padding between the rows when the stride asks for
/// it.
class HostRows {
 public:
  HostRows() = default;
  /// Every element and all padding is NaN. `row_stride` 0: contiguous.
  HostRows(DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t row_stride = 0);

  void* data() { return bytes_.data(); }
  const void* data() const { return bytes_.data(); }
  std::size_t bytes() const { return bytes_.size(); }
  DType dtype() const { return dtype_; }
  std::int64_t rows() const { return rows_; }
  std::int64_t cols() const { return cols_; }
  std::int64_t row_stride() const { return row_stride_; }

  double at(std::int64_t row, std::int64_t col) const;
  void set(std::int64_t row, std::int64_t col, double value);  ///< rounds to the dtype
  void poison();                                               ///< NaN everywhere again
  bool padding_intact() const;                                 ///< the padding still holds the NaNs of construction

 private:
  DType dtype_ = DType::kF16;
  std::int64_t rows_ = 0, cols_ = 0, row_stride_ = 0;
  std::vector<std::byte> bytes_;
};
HostRows random_rows(DType dtype, std::int64_t rows, std::int64_t cols, std::uint64_t seed = 7,
                     std::int64_t row_stride = 0);

/// x @ W (+ bias) in fp64, [m, n]; threaded when large.
std::vector<double> product(const HostRows& x, const PlainMatrix& w);
/// ||out - reference|| / ||reference|| over all elements; a NaN in `out` makes it NaN, so that `error <= limit` is
/// false.
double relative_error(const HostRows& out, const std::vector<double>& reference);
using autotune::tolerance;

}  // namespace q4::test
