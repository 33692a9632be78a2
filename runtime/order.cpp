// The order of x's columns that a matrix with act-order wants, and plans that are given x in it.
#include <algorithm>
#include <numeric>
#include <q4/order.hpp>

#include "runtime/base/check.hpp"
#include "runtime/choose/given.hpp"
#include "runtime/matrix.hpp"

namespace q4 {
namespace {

/// Whether padding, which no column of x meets, comes after all rows.
bool has_order(const QuantizedMatrix::Impl& matrix) {
  const auto& order = matrix.order;
  return std::all_of(order.begin(), order.begin() + std::min<std::int64_t>(matrix.k, std::ssize(order)),
                     [](std::int32_t row) { return row >= 0; });
}

}  // namespace

void check_order(const QuantizedMatrix& matrix, const char* call) {
  const auto& m = require(matrix, call);
  if (!has_order(m))
    fail(ErrorCode::kUnsupported,
         "{}: the {} x {} matrix with groups of {} rows has no order of x's columns: its groups are padded in memory, "
         "which those of 16, 32, 64 or a multiple of 128 rows each are not; leave PlanOptions::gather as it is",
         call, m.k, m.n, m.group_size);
}

std::vector<std::int32_t> x_order(const QuantizedMatrix& matrix) {
  check_order(matrix, "x_order");
  const auto& m = *matrix.impl();
  std::vector<std::int32_t> order(m.order.begin(), m.order.begin() + std::min<std::int64_t>(m.k, std::ssize(m.order)));
  if (!order.empty()) return order;
  order.resize(static_cast<std::size_t>(m.k));
  std::iota(order.begin(), order.end(), 0);
  return order;
}

bool same_x_order(const QuantizedMatrix& a, const QuantizedMatrix& b) {
  const auto& first = require(a, "same_x_order");
  const auto& second = require(b, "same_x_order");
  return has_order(first) && has_order(second) && x_order(a) == x_order(b);
}

namespace choose {

MatrixShape as_read(MatrixShape shape, const PlanOptions& options) {
  if (options.gather == Gather::kGiven) shape.mapped = shape.act_order = false;
  shape.norm = options.norm;
  return shape;
}

}  // namespace choose
}  // namespace q4
