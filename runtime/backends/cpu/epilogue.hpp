// The epilogue of kernels/epilogue.h on a tile of sums.
#pragma once

#include <cstdint>
#include <q4/matmul.hpp>

#include "runtime/backends/cpu/kernels.hpp"

namespace q4::cpu {

struct FinishJob {
  float* y;  ///< [rows][kTile] sums with their biases, rows y_stride apart; receives what is to be rounded
  std::int64_t y_stride;
  int rows, columns;     ///< of the tile that exist
  const void* residual;  ///< first element of the tile's columns of out in the first row, or null
  std::int64_t residual_stride;
  Element element;  ///< of the residual
};

/// In place. A pair's result goes to the first half of the tile, in the order of out's columns.
void finish(const FinishJob& job, Activation activation);

}  // namespace q4::cpu
