// Results whose fp32 sums were not finite, computed again in fp64.
#pragma once

#include <cstdint>

#include "runtime/backends/cpu/kernels.hpp"
#include "runtime/backends/cpu/packed.hpp"

namespace q4::cpu {

/// The kernels take the zeros out after a segment (sum of q x, less z times sum of x), in fp32: an infinite x then
/// gives infinity minus infinity, and finite values near the largest fp32 may overflow in between. Both leave infinity
/// or NaN in the fp32 sum, never a finite value. What such a sum should have been is found here, from x as it was given
/// and W as it is.
struct ExactJob {
  const CpuMatrix* matrix;
  const Kernels* kernels;
  std::int64_t tile;
  const std::byte* x;  ///< one row as the caller gave it
  Element element;
  float* y;               ///< the tile's sums of that row, [kTile]; those of `columns` get the bias, and are made right
  int columns;            ///< of the tile that exist
  float* weights;         ///< kScratch bytes to decode a block into
  bool in_order = false;  ///< x comes in the matrix's own order
};

/// Whether one of a row's sums [kTile], those past the last column included, is infinite or NaN.
bool has_nonfinite(const float* y);
/// The row with its bias, rounded from fp64 wherever the fp32 sum was not finite.
void make_exact(const ExactJob& job);

}  // namespace q4::cpu
