// Plans that are given x in the matrix's own order (q4/order.hpp).
#pragma once

#include <q4/order.hpp>

#include "runtime/choose/shape.hpp"

namespace q4 {

/// Throws kUnsupported if the matrix has no order that x could be given in.
void check_order(const QuantizedMatrix& matrix, const char* call);

namespace choose {

/// The matrix as a plan reads it: with Gather::kGiven as one without act-order; with its norm.
MatrixShape as_read(MatrixShape shape, const PlanOptions& options);

}  // namespace choose
}  // namespace q4
