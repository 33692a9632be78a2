// RMSNorm of rows of x, for plans with PlanOptions::norm.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/backends/cpu/kernels.hpp"

namespace q4::cpu {

/// One row: out = x / sqrt(mean(x^2) + epsilon) * weight, all of k elements of one type.
struct NormJob {
  const std::byte *x, *weight;
  std::byte* out;
  std::int64_t k;
  Element element;
  float epsilon;
};
void normalize(const NormJob& job);

}  // namespace q4::cpu
