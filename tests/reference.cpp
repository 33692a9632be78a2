// Generation, unpacking and fp64 products; written for being obviously right, threaded only in the product.
#include "reference.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numbers>

#include "runtime/base/jobs.hpp"

namespace q4::test {
namespace {

/// Rounds to a format of `mantissa` stored bits whose smallest normal number is 2^min_exponent, to nearest even.
double round_to(double value, int mantissa, int min_exponent) {
  if (value == 0 || !std::isfinite(value)) return value;
  const int exponent = std::max(std::ilogb(value), min_exponent);
  const double step = std::ldexp(1.0, exponent - mantissa);
  return std::nearbyint(value / step) * step;  // the division is exact: step is a power of two
}

std::uint32_t nibble(std::uint32_t word, std::int64_t i) { return (word >> (4 * i)) & 15u; }

constexpr int kAwqOrder[8] = {0, 2, 4, 6, 1, 3, 5, 7};  // nibble i of a word is column 8 w + kAwqOrder[i]

std::int64_t group_rows(std::int64_t k, std::int64_t groups, std::int64_t group_size) {
  if (group_size > 0) return group_size;
  return group_size < 0 ? k : (k + groups - 1) / groups;
}

double element(const TensorView& view, std::int64_t i) {
  switch (view.dtype) {
    case DType::kF16:
      return half_value(static_cast<const std::uint16_t*>(view.data)[i]);
    case DType::kBF16:
      return bf16_value(static_cast<const std::uint16_t*>(view.data)[i]);
    case DType::kF32:
      return static_cast<const float*>(view.data)[i];
    case DType::kI32:
      return static_cast<const std::int32_t*>(view.data)[i];
    case DType::kI64:
      return static_cast<double>(static_cast<const std::int64_t*>(view.data)[i]);
    case DType::kU8:
      return static_cast<const std::uint8_t*>(view.data)[i];
  }
  return NAN;
}

/// The parts that GPTQ and AWQ share.
template <class Tensors>
PlainMatrix unpack_common(const Tensors& tensors, std::int64_t k) {
  PlainMatrix plain;
  plain.k = k, plain.n = tensors.scales.cols, plain.groups = tensors.scales.rows;
  for (std::int64_t i = 0; i < plain.groups * plain.n; ++i) {
    const double scale = element(tensors.scales, i);
    // The library stores scales in fp16, whatever they came in.
    plain.scales.push_back(tensors.scales.dtype == DType::kF16 ? scale : half_value(half_bits(scale)));
  }
  const std::int64_t rows = group_rows(k, plain.groups, tensors.group_size);
  for (std::int64_t r = 0; r < k; ++r) plain.group.push_back(static_cast<std::int32_t>(r / rows));
  if (tensors.bias)
    for (std::int64_t c = 0; c < plain.n; ++c) plain.bias.push_back(element(*tensors.bias, c));
  plain.codes.resize(static_cast<std::size_t>(k * plain.n));
  plain.zeros.resize(static_cast<std::size_t>(plain.groups * plain.n));
  return plain;
}

TensorView view(const void* data, DType dtype, std::int64_t rows, std::int64_t cols) {
  TensorView result;
  result.data = data, result.dtype = dtype, result.rows = rows, result.cols = cols;
  return result;
}

}  // namespace

// ---- numbers ----------------------------------------------------------------------------------------------------
std::uint16_t half_bits(double value) {
  const std::uint16_t sign = std::signbit(value) ? 0x8000u : 0u;
  if (std::isnan(value)) return 0x7e00u;
  const double rounded = std::fabs(round_to(value, 10, -14));
  if (rounded > 65504) return sign | 0x7c00u;
  if (rounded < std::ldexp(1.0, -14)) return sign | static_cast<std::uint16_t>(std::ldexp(rounded, 24));  // subnormal
  const int exponent = std::ilogb(rounded);
  return sign |
         static_cast<std::uint16_t>(((exponent + 14) << 10) + static_cast<int>(std::ldexp(rounded, 10 - exponent)));
}

double half_value(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  double value = NAN;
  if (exponent == 0)
    value = std::ldexp(mantissa, -24);
  else if (exponent < 31)
    value = std::ldexp(1024 + mantissa, exponent - 25);
  else if (mantissa == 0)
    value = INFINITY;
  return bits & 0x8000u ? -value : value;
}

std::uint16_t bf16_bits(double value) {
  if (std::isnan(value)) return 0x7fc0u;
  const float rounded = static_cast<float>(round_to(value, 7, -126));  // exact, or beyond the largest: infinity
  return static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(rounded) >> 16);
}

double bf16_value(std::uint16_t bits) { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }

std::uint64_t Random::bits() {  // Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014
  std::uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}
std::int64_t Random::below(std::int64_t limit) {
  return static_cast<std::int64_t>(bits() >> 1) % limit;  // the bias of % does not matter here
}
double Random::uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
double Random::normal() {  // Box and Muller
  const double radius = std::sqrt(-2 * std::log(1 - uniform()));
  return radius * std::cos(2 * std::numbers::pi * uniform());
}

// ---- matrices -------------------------------------------------------------------------------------------------
GptqMatrix make_gptq(const MatrixSpec& spec) {
  GptqMatrix matrix;
  matrix.spec = spec;
  const std::int64_t k = spec.k, n = spec.n, rows = group_rows(k, 1, spec.group_size);
  matrix.groups = (k + rows - 1) / rows;
  Random random(spec.seed);

  matrix.qweight.resize(static_cast<std::size_t>(k / 8 * n));
  for (auto& word : matrix.qweight) word = static_cast<std::uint32_t>(random.bits() >> 32);
  const bool symmetric = spec.stored_zeros == StoredZeros::kSymmetric;
  matrix.qzeros.resize(static_cast<std::size_t>(matrix.groups * (n / 8)));
  for (auto& word : matrix.qzeros) {
    word = static_cast<std::uint32_t>(random.bits() >> 32);
    if (symmetric) word = spec.zeros == ZeroFormat::kV2 ? 0x88888888u : 0x77777777u;
  }
  if (!symmetric) matrix.qzeros[0] = (matrix.qzeros[0] & ~0xffu) | 0xf0u;
  for (std::int64_t i = 0; i < matrix.groups * n; ++i)
    matrix.scales.push_back(half_bits(spec.scale * (0.25 + 0.75 * random.uniform())));
  if (spec.bias)
    for (std::int64_t c = 0; c < n; ++c) matrix.bias.push_back(half_bits(random.normal()));

  if (spec.act_order != ActOrder::kNone)
    for (std::int64_t r = 0; r < k; ++r)
      matrix.g_idx.push_back(
          static_cast<std::int32_t>(spec.act_order == ActOrder::kUneven ? random.below(matrix.groups) : r / rows));
  if (spec.act_order == ActOrder::kPermuted)
    for (std::int64_t r = k - 1; r > 0; --r)
      std::swap(matrix.g_idx[static_cast<std::size_t>(r)], matrix.g_idx[static_cast<std::size_t>(random.below(r + 1))]);
  return matrix;
}

GptqTensors GptqMatrix::tensors() const {
  GptqTensors result;
  result.qweight = view(qweight.data(), DType::kI32, spec.k / 8, spec.n);
  result.qzeros = view(qzeros.data(), DType::kI32, groups, spec.n / 8);
  result.scales = view(scales.data(), DType::kF16, groups, spec.n);
  if (!g_idx.empty()) result.g_idx = view(g_idx.data(), DType::kI32, 1, spec.k);
  if (!bias.empty()) result.bias = view(bias.data(), DType::kF16, 1, spec.n);
  result.group_size = spec.group_size;
  result.zeros = spec.zeros;
  return result;
}

AwqMatrix to_awq(const GptqMatrix& matrix) {
  AwqMatrix awq{matrix.spec, matrix.groups, {}, {}, matrix.scales, matrix.bias};
  const PlainMatrix plain = unpack(matrix.tensors());
  const auto pack = [&](const std::vector<std::uint8_t>& values) {
    std::vector<std::uint32_t> words(values.size() / 8);  // rows are whole words: n % 8 == 0
    for (std::size_t w = 0; w < words.size(); ++w)
      for (std::size_t i = 0; i < 8; ++i) words[w] |= std::uint32_t{values[8 * w + kAwqOrder[i]]} << (4 * i);
    return words;
  };
  awq.qweight = pack(plain.codes);
  awq.qzeros = pack(plain.zeros);
  return awq;
}

AwqTensors AwqMatrix::tensors() const {
  AwqTensors result;
  result.qweight = view(qweight.data(), DType::kI32, spec.k, spec.n / 8);
  result.qzeros = view(qzeros.data(), DType::kI32, groups, spec.n / 8);
  result.scales = view(scales.data(), DType::kF16, groups, spec.n);
  if (!bias.empty()) result.bias = view(bias.data(), DType::kF16, 1, spec.n);
  result.group_size = spec.group_size;
  return result;
}

double PlainMatrix::weight(std::int64_t row, std::int64_t column) const {
  const auto at = static_cast<std::size_t>(group[static_cast<std::size_t>(row)] * n + column);
  return scales[at] * (int{codes[static_cast<std::size_t>(row * n + column)]} - int{zeros[at]});
}

PlainMatrix unpack(const GptqTensors& tensors) {
  const std::int64_t k = tensors.qweight.rows * 8, n = tensors.qweight.cols;
  PlainMatrix plain = unpack_common(tensors, k);
  const auto* qweight = static_cast<const std::uint32_t*>(tensors.qweight.data);
  const auto* qzeros = static_cast<const std::uint32_t*>(tensors.qzeros.data);
  for (std::int64_t r = 0; r < k; ++r)
    for (std::int64_t c = 0; c < n; ++c)
      plain.codes[static_cast<std::size_t>(r * n + c)] =
          static_cast<std::uint8_t>(nibble(qweight[r / 8 * n + c], r % 8));
  bool all_eight = true;
  for (std::int64_t i = 0; i < plain.groups * n; ++i) {
    const std::uint32_t stored = nibble(qzeros[i / 8], i % 8);
    plain.zeros[static_cast<std::size_t>(i)] = static_cast<std::uint8_t>(stored);
    all_eight = all_eight && stored == 8;
  }
  if (tensors.zeros == ZeroFormat::kV1 || (tensors.zeros == ZeroFormat::kAuto && !all_eight))
    for (auto& zero : plain.zeros) zero = (zero + 1) & 15;
  const auto every_row = [&](std::int64_t value) {
    for (std::int64_t r = 0; r < k; ++r)
      if (element(*tensors.g_idx, r) != static_cast<double>(value)) return false;
    return true;
  };
  const bool given = tensors.g_idx && tensors.g_idx->data != nullptr;
  if (given && !every_row(-1) && !(plain.groups > 1 && every_row(0)))
    for (std::int64_t r = 0; r < k; ++r)
      plain.group[static_cast<std::size_t>(r)] = static_cast<std::int32_t>(element(*tensors.g_idx, r));
  return plain;
}

PlainMatrix unpack(const AwqTensors& tensors) {
  PlainMatrix plain = unpack_common(tensors, tensors.qweight.rows);
  const auto spread = [](const TensorView& packed, std::vector<std::uint8_t>& values) {
    const auto* words = static_cast<const std::uint32_t*>(packed.data);
    for (std::size_t i = 0; i < values.size(); ++i)
      values[i / 8 * 8 + static_cast<std::size_t>(kAwqOrder[i % 8])] =
          static_cast<std::uint8_t>(nibble(words[i / 8], static_cast<std::int64_t>(i % 8)));
  };
  spread(tensors.qweight, plain.codes);
  spread(tensors.qzeros, plain.zeros);
  return plain;
}

// ---- activations and products -----------------------------------------------------------------------------------
HostRows::HostRows(DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t row_stride)
    : dtype_(dtype), rows_(rows), cols_(cols), row_stride_(row_stride == 0 ? cols : row_stride) {
  bytes_.resize(static_cast<std::size_t>(rows_ * row_stride_) * size_of(dtype));
  poison();
}

void HostRows::poison() { std::fill(bytes_.begin(), bytes_.end(), std::byte{0xff}); }  // a NaN in all three types

double HostRows::at(std::int64_t row, std::int64_t col) const {
  return element(view(bytes_.data(), dtype_, 1, 1), row * row_stride_ + col);
}

void HostRows::set(std::int64_t row, std::int64_t col, double value) {
  std::byte* at = bytes_.data() + static_cast<std::size_t>(row * row_stride_ + col) * size_of(dtype_);
  const float wide = static_cast<float>(value);
  const std::uint16_t narrow = dtype_ == DType::kF16 ? half_bits(value) : bf16_bits(value);
  if (dtype_ == DType::kF32)
    std::memcpy(at, &wide, sizeof wide);
  else
    std::memcpy(at, &narrow, sizeof narrow);
}

bool HostRows::padding_intact() const {
  const auto row_bytes = static_cast<std::size_t>(row_stride_) * size_of(dtype_);
  const auto used = static_cast<std::size_t>(cols_) * size_of(dtype_);
  for (std::size_t at = 0; at < bytes_.size(); ++at)
    if (at % row_bytes >= used && bytes_[at] != std::byte{0xff}) return false;
  return true;
}

HostRows random_rows(DType dtype, std::int64_t rows, std::int64_t cols, std::uint64_t seed, std::int64_t row_stride) {
  HostRows result(dtype, rows, cols, row_stride);
  Random random(seed);
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < cols; ++c) result.set(r, c, random.normal());
  return result;
}

std::vector<double> product(const HostRows& x, const PlainMatrix& w) {
  const std::int64_t m = x.rows(), k = w.k, n = w.n;
  std::vector<double> out(static_cast<std::size_t>(m * n)), plain_x(static_cast<std::size_t>(k * m));
  for (std::int64_t i = 0; i < m; ++i)
    for (std::int64_t r = 0; r < k; ++r) plain_x[static_cast<std::size_t>(r * m + i)] = x.at(i, r);
  const auto columns = [&](std::int64_t begin, std::int64_t end) {
    std::vector<double> weights(static_cast<std::size_t>(end - begin));
    if (!w.bias.empty())
      for (std::int64_t i = 0; i < m; ++i)
        std::copy(&w.bias[begin], &w.bias[begin] + (end - begin), &out[i * n + begin]);
    for (std::int64_t r = 0; r < k; ++r) {
      const std::int64_t set = w.group[r] * n;
      for (std::int64_t c = begin; c < end; ++c)
        weights[c - begin] = w.scales[set + c] * (int{w.codes[r * n + c]} - int{w.zeros[set + c]});
      for (std::int64_t i = 0; i < m; ++i) {
        const double factor = plain_x[r * m + i];
        double* row = &out[i * n + begin];
        for (std::int64_t c = 0; c < end - begin; ++c) row[c] += factor * weights[c];
      }
    }
  };
  const bool large = static_cast<double>(m + 1) * static_cast<double>(k) * static_cast<double>(n) > 4e6;
  const auto threads = static_cast<std::int64_t>(hardware_threads());
  const std::int64_t parts = large ? std::clamp<std::int64_t>(threads, 1, n / 8) : 1;
  run_jobs(static_cast<std::size_t>(parts), static_cast<std::size_t>(parts), [&](std::size_t i) {
    const auto part = static_cast<std::int64_t>(i);
    columns(n * part / parts, n * (part + 1) / parts);
  });
  return out;
}

double relative_error(const HostRows& out, const std::vector<double>& reference) {
  double difference = 0, norm = 0;
  for (std::int64_t r = 0; r < out.rows(); ++r)
    for (std::int64_t c = 0; c < out.cols(); ++c) {
      const double expected = reference[static_cast<std::size_t>(r * out.cols() + c)];
      difference += (out.at(r, c) - expected) * (out.at(r, c) - expected);
      norm += expected * expected;
    }
  if (norm == 0) return std::sqrt(difference);
  return std::sqrt(difference / norm);
}

}  // namespace q4::test
