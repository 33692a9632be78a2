// W from a checkpoint's tensors, one column at a time.
#include "tools/common/weights.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "runtime/base/jobs.hpp"

namespace q4::tools {

namespace {

std::uint32_t nibble(std::uint32_t word, std::int64_t i) { return word >> (4 * i) & 15u; }

/// Nibble of an AWQ word that holds column 0..7 of its eight: the inverse of the order 0, 2, 4, 6, 1, 3, 5, 7.
constexpr int kAwqNibble[8] = {0, 4, 1, 5, 2, 6, 3, 7};

double half_value(std::uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  double value = std::ldexp(fraction + 1024, exponent - 25);
  if (exponent == 0) value = std::ldexp(fraction, -24);
  if (exponent == 31) value = fraction == 0 ? INFINITY : NAN;
  return bits >> 15 ? -value : value;
}

/// Bits of a format of 16 with so many fraction bits, whose exponent bias is `bias`.
std::uint16_t round_to_16_bits(double value, int fraction_bits, int bias) {
  const auto sign = static_cast<std::uint16_t>(std::signbit(value) ? 0x8000 : 0);
  const auto infinity = static_cast<std::uint16_t>(0x7fff >> fraction_bits << fraction_bits);
  if (std::isnan(value)) return static_cast<std::uint16_t>(infinity + 1);
  value = std::fabs(value);
  if (std::isinf(value)) return sign | infinity;
  // In units of the last place, the bits of a positive number are its exponent field times 2^fraction_bits plus the
  // fraction; rounding up into the next power of two carries into the exponent by itself.
  const int exponent = value == 0 ? 1 - bias : std::max(std::ilogb(value), 1 - bias);
  const double units = std::nearbyint(std::ldexp(value, fraction_bits - exponent));
  const double bits = std::ldexp(exponent + bias - 1, fraction_bits) + units;
  return sign | static_cast<std::uint16_t>(std::min<double>(bits, infinity));
}

}  // namespace

double value_of(DType type, const void* data, std::int64_t index) {
  if (type == DType::kF32) return static_cast<const float*>(data)[index];
  const std::uint16_t bits = static_cast<const std::uint16_t*>(data)[index];
  return type == DType::kF16 ? half_value(bits) : std::bit_cast<float>(std::uint32_t{bits} << 16);
}

void set_value(DType type, void* data, std::int64_t index, double value) {
  if (type == DType::kF32) {
    static_cast<float*>(data)[index] = static_cast<float>(value);
  } else {
    static_cast<std::uint16_t*>(data)[index] =
        type == DType::kF16 ? round_to_16_bits(value, 10, 15) : round_to_16_bits(value, 7, 127);
  }
}

Weights::Weights(const GptqTensors& tensors)
    : k_(tensors.qweight.rows * 8),
      n_(tensors.qweight.cols),
      groups_(tensors.scales.rows),
      qweight_(static_cast<const std::uint32_t*>(tensors.qweight.data)),
      qzeros_(static_cast<const std::uint32_t*>(tensors.qzeros.data)),
      scales_(tensors.scales),
      bias_(tensors.bias) {
  const bool all_eight =
      std::all_of(qzeros_, qzeros_ + groups_ * (n_ / 8), [](std::uint32_t word) { return word == 0x88888888u; });
  plus_one_ = tensors.zeros == ZeroFormat::kV1 || (tensors.zeros == ZeroFormat::kAuto && !all_eight);
  set_groups(tensors.group_size, tensors.g_idx);
}

Weights::Weights(const AwqTensors& tensors)
    : k_(tensors.qweight.rows),
      n_(tensors.qweight.cols * 8),
      groups_(tensors.scales.rows),
      awq_(true),
      qweight_(static_cast<const std::uint32_t*>(tensors.qweight.data)),
      qzeros_(static_cast<const std::uint32_t*>(tensors.qzeros.data)),
      scales_(tensors.scales),
      bias_(tensors.bias) {
  set_groups(tensors.group_size, std::nullopt);
}

void Weights::set_groups(std::int64_t group_size, const std::optional<TensorView>& g_idx) {
  group_.resize(static_cast<std::size_t>(k_));
  for (std::int64_t r = 0; r < k_; ++r) {
    std::int64_t group = r / group_size;
    if (g_idx && g_idx->dtype == DType::kI64) group = static_cast<const std::int64_t*>(g_idx->data)[r];
    if (g_idx && g_idx->dtype == DType::kI32) group = static_cast<const std::int32_t*>(g_idx->data)[r];
    group_[static_cast<std::size_t>(r)] = static_cast<std::int32_t>(group);
  }
  // One number for every row, 0 or -1, is how tools write that there is no act-order.
  const std::int32_t first = group_[0];
  if (first == -1 || (first == 0 && groups_ > 1)) {
    if (std::all_of(group_.begin(), group_.end(), [&](auto group) { return group == first; }))
      for (std::int64_t r = 0; r < k_; ++r)
        group_[static_cast<std::size_t>(r)] = static_cast<std::int32_t>(r / group_size);
  }
}

std::string Weights::problem() const {
  bool all_zero = true;
  for (std::int64_t i = 0; i < groups_ * n_; ++i) {
    const double scale = value_of(scales_.dtype, scales_.data, i);
    if (!std::isfinite(scale)) return fmt::format("scales[{}, {}] is {}", i / n_, i % n_, scale);
    all_zero &= scale == 0;
  }
  if (all_zero) return "every scale is 0";
  for (std::int64_t c = 0; c < n_; ++c)
    if (!std::isfinite(bias(c))) return fmt::format("bias[{}] is {}", c, bias(c));
  return {};
}

bool Weights::scales_fit_fp16() const {
  for (std::int64_t i = 0; i < groups_ * n_; ++i) {
    const double scale = value_of(scales_.dtype, scales_.data, i);
    std::uint16_t half = 0;
    set_value(DType::kF16, &half, 0, scale);
    if (half_value(half) != scale) return false;
  }
  return true;
}

double Weights::bias(std::int64_t column) const { return bias_ ? value_of(bias_->dtype, bias_->data, column) : 0; }

void Weights::column(std::int64_t column, std::span<double> weights) const {
  // Scales and zeros of this column, one a group.
  std::vector<double> scale(static_cast<std::size_t>(groups_)), zero(static_cast<std::size_t>(groups_));
  const std::int64_t words = n_ / 8, position = awq_ ? kAwqNibble[column % 8] : column % 8;
  for (std::int64_t g = 0; g < groups_; ++g) {
    scale[static_cast<std::size_t>(g)] = value_of(scales_.dtype, scales_.data, g * n_ + column);
    const std::uint32_t stored = nibble(qzeros_[g * words + column / 8], position);
    zero[static_cast<std::size_t>(g)] = plus_one_ ? (stored + 1) & 15 : stored;
  }
  for (std::int64_t r = 0; r < k_; ++r) {
    const std::uint32_t code =
        awq_ ? nibble(qweight_[r * words + column / 8], position) : nibble(qweight_[r / 8 * n_ + column], r % 8);
    const auto g = static_cast<std::size_t>(group_[static_cast<std::size_t>(r)]);
    weights[static_cast<std::size_t>(r)] = scale[g] * (code - zero[g]);
  }
}

std::vector<double> multiply(const Weights& weights, std::span<const double> x, std::int64_t m,
                             std::span<const std::int64_t> columns) {
  const auto k = static_cast<std::size_t>(weights.k());
  std::vector<double> out(static_cast<std::size_t>(m) * columns.size());
  constexpr std::size_t kMostThreads = 64;
  run_jobs(columns.size(), std::min(hardware_threads(), kMostThreads), [&](std::size_t j) {
    std::vector<double> w(k);
    weights.column(columns[j], w);
    for (std::size_t i = 0; i < static_cast<std::size_t>(m); ++i) {
      const double* const row = x.data() + i * k;
      double sums[4] = {};  // independent sums: the order does not matter in fp64
      for (std::size_t r = 0; r < k; r += 4) {
        for (std::size_t s = 0; s < 4; ++s) sums[s] += row[r + s] * w[r + s];
      }
      out[i * columns.size() + j] = sums[0] + sums[1] + sums[2] + sums[3] + weights.bias(columns[j]);
    }
  });
  return out;
}

}  // namespace q4::tools
