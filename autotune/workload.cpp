// Random GPTQ tensors, random normal activations and fp64 products of sampled rows and columns.
#include "autotune/workload.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>
#include <numeric>
#include <tuple>

#include "autotune/moe_rig.hpp"
#include "runtime/base/convert.hpp"

namespace q4::autotune {
namespace {

constexpr std::int64_t kDistinctElements = 1 << 20;  // of x: enough that no two nearby rows are alike
constexpr std::int64_t kSampledWeights = 1 << 20;    // 8 MB of fp64

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// splitmix64: the same numbers on every platform.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t bits() {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  std::int64_t below(std::int64_t limit) {
    return static_cast<std::int64_t>(bits() % static_cast<std::uint64_t>(limit));
  }
  double uniform() { return (static_cast<double>(bits() >> 11) + 0.5) * 0x1p-53; }  // never 0

 private:
  std::uint64_t state_;
};

std::vector<std::uint32_t> random_words(std::int64_t count, Random& random) {
  std::vector<std::uint32_t> words(static_cast<std::size_t>(count));
  for (auto& word : words) word = static_cast<std::uint32_t>(random.bits());
  return words;
}

/// fp16 in [2^-9, 2^-7): exponents and mantissas are consecutive bit patterns.
std::vector<std::uint16_t> random_scales(std::int64_t count, Random& random) {
  std::vector<std::uint16_t> scales(static_cast<std::size_t>(count));
  for (auto& scale : scales) scale = static_cast<std::uint16_t>(0x1800 + random.below(0x800));
  return scales;
}

std::vector<std::int32_t> shuffled_groups(const Problem& p, Random& random) {
  std::vector<std::int32_t> group(static_cast<std::size_t>(p.k));
  for (std::int64_t r = 0; r < p.k; ++r) group[r] = static_cast<std::int32_t>(r / p.group);
  for (std::int64_t r = p.k - 1; r > 0; --r) std::swap(group[r], group[random.below(r + 1)]);
  return group;
}

void store(double value, DType type, std::byte* to) {
  const float f = static_cast<float>(value);
  if (type == DType::kF32) {
    std::memcpy(to, &f, 4);
    return;
  }
  const std::uint16_t bits = type == DType::kBF16 ? bf16_from_float(f) : half_from_float(f);
  std::memcpy(to, &bits, 2);
}

double load(const std::byte* from, DType type) {
  if (type == DType::kF32) {
    float f;
    std::memcpy(&f, from, 4);
    return f;
  }
  std::uint16_t bits;
  std::memcpy(&bits, from, 2);
  return type == DType::kBF16 ? float_from_bf16(bits) : float_from_half(bits);
}

std::vector<std::byte> random_normal(std::int64_t count, DType type, Random& random) {
  const std::size_t size = size_of(type);
  std::vector<std::byte> x(static_cast<std::size_t>(count) * size);
  for (std::int64_t i = 0; i < count; i += 2) {  // Box-Muller; count is even since k % 8 == 0
    const double radius = std::sqrt(-2 * std::log(random.uniform())), angle = 2 * std::numbers::pi * random.uniform();
    store(radius * std::cos(angle), type, &x[static_cast<std::size_t>(i) * size]);
    store(radius * std::sin(angle), type, &x[static_cast<std::size_t>(i + 1) * size]);
  }
  return x;
}

/// The first, the last and random ones between, ascending: the same of both halves, which an activation may pair.
std::vector<std::int64_t> sampled_columns(const Problem& p, Random& random) {
  const std::int64_t half = std::min(p.n, std::max<std::int64_t>(32, kSampledWeights / p.k)) / 2;
  std::vector<std::int64_t> columns(static_cast<std::size_t>(2 * half));
  if (2 * half == p.n) {
    std::iota(columns.begin(), columns.end(), 0);
    return columns;
  }
  for (std::int64_t i = 0; i < half; ++i) columns[static_cast<std::size_t>(i)] = random.below(p.n / 2);
  columns.front() = 0, columns[static_cast<std::size_t>(half - 1)] = p.n / 2 - 1;
  std::sort(columns.begin(), columns.begin() + half);
  for (std::int64_t i = 0; i < half; ++i)
    columns[static_cast<std::size_t>(half + i)] = columns[static_cast<std::size_t>(i)] + p.n / 2;
  return columns;
}

}  // namespace

double Problem::bytes(std::int64_t m) const {
  if (experts == 0) return static_cast<double>(k) * n / 2 + static_cast<double>(groups()) * n * 2.5 + 2.0 * m * (k + n);
  const MoeProblem layer = layer_of(*this);
  const double all = static_cast<double>(experts), rows = static_cast<double>(m);
  const double active = m == 0 ? all : all * (1 - std::pow(1 - static_cast<double>(topk) / all, rows));
  return active * layer.expert_bytes() + layer.x_bytes(m);
}
double Problem::flops(std::int64_t m) const { return experts == 0 ? 2.0 * m * n * k : layer_of(*this).flops(m); }
double Problem::weights() const {
  return experts == 0 ? static_cast<double>(k) * static_cast<double>(n)
                      : 3.0 * static_cast<double>(experts * k) * static_cast<double>(width);
}

Workload::Workload(const Problem& problem, DType activation, const std::function<void(double)>& expect)
    : problem_(problem), activation_(activation) {
  const auto [k, n, groups] = std::tuple(problem.k, problem.n, problem.groups());
  const auto start = Clock::now();
  Random random(1);
  constexpr std::int64_t kPiece = 1 << 20;  // words of qweight, which are most of the work
  qweight_.reserve(static_cast<std::size_t>(k / 8 * n));
  for (std::int64_t words = k / 8 * n, done = 0; done < words; done += kPiece) {
    const auto piece = random_words(std::min(kPiece, words - done), random);
    qweight_.insert(qweight_.end(), piece.begin(), piece.end());
    expect(seconds_since(start) * static_cast<double>(words - done - kPiece) / static_cast<double>(done + kPiece));
  }
  qzeros_ = random_words(groups * (n / 8), random);
  scales_ = random_scales(groups * n, random);
  if (problem.act_order) g_idx_ = shuffled_groups(problem, random);
  period_ = std::clamp<std::int64_t>(kDistinctElements / k, 8, 512);
  x_ = random_normal(period_ * k, activation, random);

  columns_ = sampled_columns(problem, random);
  weights_.reserve(columns_.size() * static_cast<std::size_t>(k));
  const auto sampling = Clock::now();
  for (const std::int64_t c : columns_) {
    row_s_ = seconds_since(sampling);  // one pass over these weights, as a row's products are
    if (const auto done = static_cast<double>(weights_.size()); done > 0)
      expect(row_s_ * (static_cast<double>(columns_.size()) * static_cast<double>(k) / done - 1));
    for (std::int64_t r = 0; r < k; ++r) {
      const std::int64_t g = g_idx_.empty() ? r / problem.group : g_idx_[r];
      const int code = qweight_[r / 8 * n + c] >> (r % 8 * 4) & 15;
      const int stored = qzeros_[g * (n / 8) + c / 8] >> (c % 8 * 4) & 15;
      weights_.push_back(float_from_half(scales_[g * n + c]) * static_cast<double>(code - ((stored + 1) & 15)));
    }
  }
}

GptqTensors Workload::tensors() const {
  const auto [k, n, groups] = std::tuple(problem_.k, problem_.n, problem_.groups());
  GptqTensors t;
  t.qweight = {qweight_.data(), DType::kI32, k / 8, n};
  t.qzeros = {qzeros_.data(), DType::kI32, groups, n / 8};
  t.scales = {scales_.data(), DType::kF16, groups, n};
  if (!g_idx_.empty()) t.g_idx = TensorView{g_idx_.data(), DType::kI32, 1, k};
  t.group_size = problem_.group;
  t.zeros = ZeroFormat::kV1;
  return t;
}

std::vector<std::byte> Workload::x_as(DType type) const {
  const std::size_t from = size_of(activation_), to = size_of(type), count = x_.size() / from;
  std::vector<std::byte> converted(count * to);
  for (std::size_t i = 0; i < count; ++i) store(load(&x_[i * from], activation_), type, &converted[i * to]);
  return converted;
}

const std::vector<double>& Workload::reference(std::int64_t row) {
  const std::int64_t k = problem_.k;
  auto [found, is_new] = references_.try_emplace(row % period_);
  if (!is_new) return found->second;
  const auto start = Clock::now();
  std::vector<double> x(static_cast<std::size_t>(k));
  const std::size_t size = size_of(activation_);
  for (std::int64_t i = 0; i < k; ++i)
    x[i] = load(&x_[static_cast<std::size_t>(row % period_ * k + i) * size], activation_);
  for (std::size_t c = 0; c < columns_.size(); ++c)
    found->second.push_back(
        std::inner_product(x.begin(), x.end(), weights_.begin() + static_cast<std::int64_t>(c) * k, 0.0));
  row_s_ = seconds_since(start);
  return found->second;
}

double Workload::reference_s(const std::vector<std::int64_t>& rows) const {
  const auto fresh = std::ranges::count_if(rows, [&](std::int64_t row) { return !references_.count(row % period_); });
  return row_s_ * static_cast<double>(fresh);
}

double Workload::error(std::span<const OutputRow> rows, const Finish& finish, std::int64_t outs) {
  const std::size_t size = size_of(activation_);
  if (outs == 0) outs = problem_.n;
  double difference = 0, norm = 0;
  for (const OutputRow& row : rows) {
    for (std::int64_t c = 0; c < outs; ++c)
      if (!std::isfinite(load(row.data + static_cast<std::size_t>(c) * size, activation_)))
        return std::numeric_limits<double>::quiet_NaN();
    std::vector<double> expected = reference(row.row);
    if (finish) finish(row.row, columns_, expected);
    for (std::size_t c = 0; c < columns_.size() && columns_[c] < outs; ++c) {
      const double out = load(row.data + static_cast<std::size_t>(columns_[c]) * size, activation_);
      difference += (out - expected[c]) * (out - expected[c]);
      norm += expected[c] * expected[c];
    }
  }
  return std::sqrt(difference / norm);
}

}  // namespace q4::autotune
