// How far a product may be from fp64: one table for the tuner, the tools and the tests.
#pragma once

#include <algorithm>
#include <q4/device.hpp>
#include <q4/matmul.hpp>

namespace q4::autotune {

/// Largest ||out - exact|| / ||exact|| of a right output. fp16 and bf16 are limited by the rounding of the output, fp32
/// by that of the sums, Math::kInt8 by that of the activations.
inline double tolerance(DType activation, Math math = Math::kAuto) {
  if (math == Math::kInt8) return 1e-2;
  return activation == DType::kF16 ? 5e-4 : activation == DType::kBF16 ? 4e-3 : 1e-6;
}

/// Of a layer of experts: two products, one after the other, and the roundings between.
inline double tolerance_of_experts(DType activation) { return 2 * tolerance(activation); }

/// Of weights whose scales had to be rounded to fp16 when they were loaded.
inline double tolerance_of_rounded_scales(DType activation) {
  return std::max(tolerance(activation), tolerance(DType::kF16));
}

}  // namespace q4::autotune
