// The numbers of a matrix that decide which kernels run for it: everything about it except its tensors.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/choose/row_order.hpp"

namespace q4 {

struct MatrixShape {
  std::int64_t k = 0, n = 0, groups = 0, group_size = 0;  ///< of W as it was given
  bool awq = false;                                       ///< qweight is in AWQ's order, else in GPTQ's
  bool has_bias = false;
  bool gate_up = false;       ///< columns are gates, then ups, and packed as pairs (kernels/layout.h)
  bool act_order = false;     ///< it has a g_idx that says more than row / group_size
  bool mapped = false;        ///< packed rows are in another order than x's columns: x is gathered or permuted
  std::int64_t packed_k = 0;  ///< packed rows, a multiple of 128
  std::int64_t unit = 0;      ///< packed rows that share a set of scales: 16, 32, 64 or a multiple of 128
  bool norm = false;          ///< of a plan: x is normalized first (PlanOptions::norm)
  bool apart = false;         ///< scales and zeros are apart (kernels/layout.h), in the memory of their tensors
};

/// Whether scales and zeros can be apart: a set for each group and in its place, and no padding.
bool can_be_apart(const MatrixShape& shape, const RowOrder& order);

/// Orders the rows of `shape`, of which k, group_size and groups are set, and sets what follows from the order. `g_idx`
/// as for make_row_order().
RowOrder arrange(MatrixShape& shape, std::span<const std::int32_t> g_idx);

/// The shape of a matrix that is not loaded. `group_size` -1: one group. `act_order`: groups of group_size rows each,
/// in any order. `in_place`: loaded over the memory of its tensors, as far as they fit. Throws kInvalidArgument for what
/// cannot be a QuantizedMatrix.
MatrixShape matrix_shape(std::int64_t k, std::int64_t n, std::int64_t group_size, bool act_order, bool bias, bool awq,
                         bool in_place = false);

}  // namespace q4
