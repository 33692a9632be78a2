// Derives a matrix's packed shape from its row order.
#include "runtime/choose/shape.hpp"

#include <algorithm>
#include <vector>

#include "runtime/base/check.hpp"

namespace q4 {

RowOrder arrange(MatrixShape& shape, std::span<const std::int32_t> g_idx) {
  RowOrder order = make_row_order(shape.k, shape.group_size, shape.groups, g_idx);
  shape.act_order = !g_idx.empty(), shape.mapped = !order.identity;
  shape.packed_k = order.k, shape.unit = order.unit;
  return order;
}

bool can_be_apart(const MatrixShape& shape, const RowOrder& order) {
  if (shape.packed_k != shape.k || shape.n % 64 != 0) return false;
  if (static_cast<std::int64_t>(order.group.size()) != shape.groups) return false;
  for (std::size_t set = 0; set < order.group.size(); ++set)
    if (order.group[set] != static_cast<std::int32_t>(set)) return false;
  return true;
}

MatrixShape matrix_shape(std::int64_t k, std::int64_t n, std::int64_t group_size, bool act_order, bool bias, bool awq,
                         bool in_place) {
  constexpr const char* kCall = "warmup";
  check(k >= 8 && k <= INT32_MAX && k % 8 == 0, "{}: k = {} is not a multiple of 8 in [8, {}]", kCall, k, INT32_MAX);
  check(n >= 8 && n <= INT32_MAX && n % 8 == 0, "{}: n = {} is not a multiple of 8 in [8, {}]", kCall, n, INT32_MAX);
  check(group_size == -1 || (group_size >= 8 && group_size % 8 == 0),
        "{}: group_size = {} is not a positive multiple of 8, and -1 means one group", kCall, group_size);
  MatrixShape shape;
  shape.k = k, shape.n = n, shape.awq = awq, shape.has_bias = bias;
  shape.group_size = group_size == -1 ? k : std::min(group_size, k);
  shape.groups = (k + shape.group_size - 1) / shape.group_size;
  std::vector<std::int32_t> g_idx;  // groups of equal sizes pack alike in any order
  for (std::int64_t r = 0; act_order && r < k; ++r)
    g_idx.push_back(static_cast<std::int32_t>((k - 1 - r) / shape.group_size));
  const RowOrder order = arrange(shape, g_idx);
  shape.apart = in_place && can_be_apart(shape, order);
  return shape;
}

}  // namespace q4
