// Act-order with x permuted once for several matrices, or by whoever makes it.
//
// GPTQ's act-order has the rows of a group in any places, so that a product needs the columns of x in the matrix's own
// order. A plan permutes x before each product or inside it, which costs 1 to 2 us. Matrices of one input (q, k, v; gate,
// up) mostly want one order; and a kernel that writes x, such as a norm's, may write it in that order at no cost:
//
//   const std::vector<std::int32_t> order = x_order(q);   // on the host; column_remap() wants it on the device
//   if (same_x_order(q, k) && same_x_order(q, v)) ...     // one permuted x for all three
//   MatmulPlan plan(runtime, q, {.max_m = 16, .gather = Gather::kGiven});
//   column_remap(runtime, device, stream, x, q.k(), x_new, device_order, q.k(), m);
//   plan.run(stream, x_new, out, m);
#pragma once

#include <cstdint>
#include <q4/matmul.hpp>
#include <vector>

namespace q4 {

/// [k]: column c of x in the matrix's order is column x_order(matrix)[c] of x. 0, 1, 2, ... without act-order. The same on
/// every device; update() with another g_idx changes it. Groups that the packed weights pad have no such order, which
/// throws kUnsupported: those with other than 16, 32, 64 or a multiple of 128 rows (but for the last one).
Q4_API std::vector<std::int32_t> x_order(const QuantizedMatrix& matrix);
/// Whether x in the order of one is x in the order of the other. False if one of them has no such order.
Q4_API bool same_x_order(const QuantizedMatrix& a, const QuantizedMatrix& b);

}  // namespace q4
