// The slow way that a row takes when its fp32 sums were not finite.
#include "runtime/backends/cpu/exact.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "runtime/base/convert.hpp"

namespace q4::cpu {
namespace {

double element_at(const std::byte* x, Element element, std::int64_t index) {
  if (element == Element::kF32) {
    float value;
    std::memcpy(&value, x + index * 4, sizeof value);
    return value;
  }
  std::uint16_t bits;
  std::memcpy(&bits, x + index * 2, sizeof bits);
  return element == Element::kF16 ? float_from_half(bits) : float_from_bf16(bits);
}

}  // namespace

bool has_nonfinite(const float* y) {
  std::uint32_t bits[kTile];
  std::memcpy(bits, y, sizeof bits);
  std::uint32_t found = 0;
  for (const std::uint32_t b : bits) found |= (b & 0x7F800000u) == 0x7F800000u;
  return found != 0;
}

void make_exact(const ExactJob& job) {
  const CpuMatrix& matrix = *job.matrix;
  for (std::int64_t i = 0; i < matrix.k; ++i) {
    if (!std::isnan(element_at(job.x, job.element, i))) continue;
    std::fill_n(job.y, job.columns, std::numeric_limits<float>::quiet_NaN());  // soon done: such rows come by the batch
    return;
  }
  const std::byte* at = matrix.tile(job.tile);
  double sums[kTile] = {};
  for (std::int64_t block = 0; block < matrix.blocks; ++block, at += block_bytes(matrix.segment)) {
    job.kernels->dequantize(at, 1, matrix.segment, job.weights, kTile);
    for (int i = 0; i < kBlock; ++i) {
      const std::int64_t packed = block * kBlock + i;
      const std::int64_t row = matrix.source.empty() || job.in_order ? packed : matrix.source[std::size_t(packed)];
      if (row < 0 || row >= matrix.k) continue;  // padding: 0 times infinity would be NaN
      const double x = element_at(job.x, job.element, row);
      for (int column = 0; column < kTile; ++column) sums[column] += x * double(job.weights[i * kTile + column]);
    }
  }
  for (int column = 0; column < job.columns; ++column) {
    const float bias = matrix.bias.empty() ? 0.0f : matrix.bias[std::size_t(job.tile * kTile + column)];
    float& y = job.y[column];
    y = std::isfinite(y) ? y + bias : float(sums[column] + double(bias));
  }
}

}  // namespace q4::cpu
