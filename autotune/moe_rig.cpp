// Random experts and routings, what a layer must give in fp64, and its times with cold weights.
#include "autotune/moe_rig.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <set>

#include "autotune/read_floor.hpp"
#include "autotune/stopwatch.hpp"
#include "runtime/base/convert.hpp"
#include "runtime/runtime.hpp"

namespace q4::autotune {
namespace {

/// So many matrices differ; the experts take them in turn. Random words take long to make, and a prime number keeps
/// neighbours and powers of two apart.
constexpr std::int64_t kDistinct = 7;
constexpr std::size_t kColdBytes = std::size_t{256} << 20;  // of weights, between two uses of one
constexpr std::size_t kMostRoutings = 16;                   // and copies: each routing meets one

/// The matrices of all experts, on the host.
std::vector<MoeMatrix> random_matrices(const MoeProblem& p, std::int64_t k, std::int64_t n, std::uint64_t seed) {
  std::vector<MoeMatrix> all;
  for (std::int64_t i = 0; i < std::min(kDistinct, p.experts); ++i)
    all.emplace_back(k, n, std::min(p.group, k), p.act_order, seed + static_cast<std::uint64_t>(i));
  return all;
}
std::vector<GptqTensors> of_experts(const std::vector<MoeMatrix>& matrices, std::int64_t experts) {
  std::vector<GptqTensors> all;
  for (std::int64_t e = 0; e < experts; ++e)
    all.push_back(matrices[static_cast<std::size_t>(e) % matrices.size()].tensors());
  return all;
}

double get(DType type, const std::byte* data, std::int64_t index) {
  if (type == DType::kF32) {
    float value = 0;
    std::memcpy(&value, data + 4 * index, 4);
    return static_cast<double>(value);
  }
  std::uint16_t bits = 0;
  std::memcpy(&bits, data + 2 * index, 2);
  return static_cast<double>(type == DType::kF16 ? float_from_half(bits) : float_from_bf16(bits));
}
void put(DType type, std::byte* data, std::int64_t index, double value) {
  const auto single = static_cast<float>(value);
  if (type == DType::kF32) {
    std::memcpy(data + 4 * index, &single, 4);
    return;
  }
  const std::uint16_t bits = type == DType::kF16 ? half_from_float(single) : bf16_from_float(single);
  std::memcpy(data + 2 * index, &bits, 2);
}

template <class T>
Buffer upload(const std::shared_ptr<DeviceBackend>& device, const std::vector<T>& values) {
  Buffer memory(device, values.size() * sizeof(T));
  device->copy(memory.get(), values.data(), values.size() * sizeof(T), CopyKind::kToDevice);
  return memory;
}

}  // namespace

double MoeProblem::expert_bytes() const {
  const auto matrix = [&](double rows, double columns) {
    const double groups = std::ceil(rows / static_cast<double>(group));
    return rows * columns / 2 + groups * columns * 2.5;
  };
  const auto in = static_cast<double>(k), middle = static_cast<double>(width);
  return matrix(in, 2 * middle) + matrix(middle, in);
}
double MoeProblem::flops(std::int64_t m) const {
  return 6.0 * static_cast<double>(m * topk) * static_cast<double>(k) * static_cast<double>(width);
}
double MoeProblem::x_bytes(std::int64_t m) const { return 4.0 * static_cast<double>(m) * static_cast<double>(k); }

MoeProblem layer_of(const Problem& p) { return {p.experts, p.topk, p.k, p.width, p.group, p.act_order}; }

MoeMatrix::MoeMatrix(std::int64_t k, std::int64_t n, std::int64_t group, bool act_order, std::uint64_t seed)
    : k(k), n(n), group(group), groups((k + group - 1) / group) {
  std::mt19937_64 random(seed);
  qweight.resize(static_cast<std::size_t>(k / 8 * n)), qzeros.resize(static_cast<std::size_t>(groups * n / 8));
  for (auto& word : qweight) word = static_cast<std::uint32_t>(random());
  for (auto& word : qzeros) word = static_cast<std::uint32_t>(random());
  // fp16 in [1, 4] / (16 sqrt k): products about as large as x.
  for (std::int64_t i = 0; i < groups * n; ++i) {
    const double share = 1 + 3 * static_cast<double>(random() % 1024) / 1024;
    scales.push_back(half_from_float(static_cast<float>(share / (16 * std::sqrt(static_cast<double>(k))))));
  }
  if (!act_order) return;
  for (std::int64_t r = 0; r < k; ++r) g_idx.push_back(static_cast<std::int32_t>(r / group));
  std::shuffle(g_idx.begin(), g_idx.end(), random);
}

GptqTensors MoeMatrix::tensors() const {
  GptqTensors t;
  t.qweight = {qweight.data(), DType::kI32, k / 8, n};
  t.qzeros = {qzeros.data(), DType::kI32, groups, n / 8};
  t.scales = {scales.data(), DType::kF16, groups, n};
  if (!g_idx.empty()) t.g_idx = TensorView{g_idx.data(), DType::kI32, 1, k};
  t.group_size = group, t.zeros = ZeroFormat::kV1;
  return t;
}

std::vector<double> MoeMatrix::product(const std::vector<double>& x) const {
  const auto columns = static_cast<std::size_t>(n);
  std::vector<double> y(columns), scale(scales.size()), zero(scales.size());
  for (std::size_t i = 0; i < scales.size(); ++i) {
    scale[i] = static_cast<double>(float_from_half(scales[i]));
    zero[i] = static_cast<double>(((qzeros[i / 8] >> (4 * (i % 8))) + 1) & 15u);  // n is a multiple of 8
  }
  for (std::size_t r = 0; r < x.size(); ++r) {
    const std::size_t g = (g_idx.empty() ? r / static_cast<std::size_t>(group) : static_cast<std::size_t>(g_idx[r]));
    const std::uint32_t* words = &qweight[r / 8 * columns];
    const double *s = &scale[g * columns], *z = &zero[g * columns];
    const auto shift = static_cast<std::uint32_t>(4 * (r % 8));
    for (std::size_t c = 0; c < columns; ++c)
      y[c] += x[r] * s[c] * (static_cast<double>(words[c] >> shift & 15u) - z[c]);
  }
  return y;
}

MoeRig::MoeRig(const Runtime& runtime, Device device, const MoeProblem& problem, DType type, std::int64_t max_m)
    : runtime_(runtime), device_(runtime.impl().open(device)), problem_(problem), type_(type) {
  w13_ = random_matrices(problem, problem.k, 2 * problem.width, 100);
  w2_ = random_matrices(problem, problem.width, problem.k, 200);
  const double each = problem.expert_bytes() * static_cast<double>(problem.experts);
  const auto copies = static_cast<std::size_t>(std::ceil(static_cast<double>(kColdBytes) / each));
  for (std::size_t copy = 0; copy < std::clamp<std::size_t>(copies, 1, kMostRoutings); ++copy) {
    first_.push_back(
        QuantizedExperts::from_gptq(runtime, device, of_experts(w13_, problem.experts), {.gate_up = true}));
    second_.push_back(QuantizedExperts::from_gptq(runtime, device, of_experts(w2_, problem.experts)));
  }
  x_.resize(static_cast<std::size_t>(max_m * problem.k) * size_of(type));
  std::mt19937_64 random(5);
  std::normal_distribution<double> normal;
  for (std::int64_t i = 0; i < max_m * problem.k; ++i) put(type, x_.data(), i, normal(random));
  device_x_ = upload(device_, x_), out_ = Buffer(device_, x_.size());
}

MoeTraffic MoeRig::traffic(std::int64_t m, bool zipf) const {
  MoeTraffic traffic;
  traffic.m = m;
  const std::size_t routings = m <= 16 ? kMostRoutings : m <= 256 ? 4 : 2;
  for (std::size_t r = 0; r < routings; ++r) {
    MoeTraffic::One& one = traffic.routings.emplace_back();
    std::mt19937_64 random(r + 1);
    std::vector<double> key(static_cast<std::size_t>(problem_.experts));
    std::vector<std::int32_t> order(key.size());
    std::set<std::int32_t> used;
    for (std::int64_t t = 0; t < m; ++t) {
      // The smallest of exponential variates with the experts' rates: drawn without repeats by their weights.
      for (std::size_t e = 0; e < key.size(); ++e) {
        const double uniform = (static_cast<double>(random() >> 11) + 0.5) * 0x1p-53;
        key[e] = -std::log(uniform) * (zipf ? static_cast<double>(e + 1) : 1);
        order[e] = static_cast<std::int32_t>(e);
      }
      std::partial_sort(order.begin(), order.begin() + problem_.topk, order.end(), [&](std::int32_t a, std::int32_t b) {
        return key[static_cast<std::size_t>(a)] < key[static_cast<std::size_t>(b)];
      });
      for (std::int64_t s = 0; s < problem_.topk; ++s) {
        one.ids.push_back(order[static_cast<std::size_t>(s)]);
        one.weights.push_back(static_cast<float>(0.5 + static_cast<double>(random() % 1024) / 1024) /
                              static_cast<float>(problem_.topk));
        used.insert(one.ids.back());
      }
    }
    traffic.active += static_cast<double>(used.size()) / static_cast<double>(routings);
    one.device_ids = upload(device_, one.ids), one.device_weights = upload(device_, one.weights);
  }
  return traffic;
}

std::vector<MoePlan> MoeRig::plans(MoeOptions options) const {
  options.dtype = type_, options.topk = problem_.topk;
  std::vector<MoePlan> plans;
  for (std::size_t copy = 0; copy < first_.size(); ++copy)
    plans.emplace_back(runtime_, first_[copy], second_[copy], options);
  return plans;
}

void MoeRig::launch(const std::vector<MoePlan>& plans, const MoeTraffic& traffic, std::size_t run, void* stream) const {
  const auto& routing = traffic.routings[run];
  plans[run % plans.size()].run({stream}, {device_x_.get()}, static_cast<const std::int32_t*>(routing.device_ids.get()),
                                static_cast<const float*>(routing.device_weights.get()), {out_.get()}, traffic.m);
}

double MoeRig::sample(const std::vector<MoePlan>& plans, const MoeTraffic& traffic) const {
  const auto all = [&](void* stream) {
    for (std::size_t r = 0; r < traffic.routings.size(); ++r) launch(plans, traffic, r, stream);
  };
  return time_runs(*device_, all, 1).front() / static_cast<double>(traffic.routings.size());
}

double MoeRig::floor_us(const MoeTraffic& traffic) const {
  return read_floor_us(device_, static_cast<std::size_t>(traffic.active * problem_.expert_bytes()));
}

void MoeRig::touch() const {
  device_->fill(out_.get(), 0, std::min<std::size_t>(out_.bytes(), 16));
  device_->synchronize();
}

double MoeRig::error(const std::vector<MoePlan>& plans, const MoeTraffic& traffic) const {
  const auto k = static_cast<std::size_t>(problem_.k), width = static_cast<std::size_t>(problem_.width);
  const std::int64_t m = traffic.m;
  std::vector<std::byte> out(static_cast<std::size_t>(m) * k * size_of(type_));
  device_->fill(out_.get(), 0xFF, out.size());  // NaN
  launch(plans, traffic, 1, nullptr);
  device_->synchronize();
  device_->copy(out.data(), out_.get(), out.size(), CopyKind::kToHost);
  for (std::int64_t i = 0; i < m * problem_.k; ++i)
    if (!std::isfinite(get(type_, out.data(), i))) return std::numeric_limits<double>::quiet_NaN();
  double difference = 0, norm = 0;
  for (const std::int64_t t : std::set<std::int64_t>{0, m / 2, m - 1}) {
    std::vector<double> x(k), sum(k);
    for (std::size_t i = 0; i < k; ++i) x[i] = get(type_, x_.data(), t * problem_.k + std::int64_t(i));
    for (std::int64_t s = t * problem_.topk; s < (t + 1) * problem_.topk; ++s) {
      const auto& routing = traffic.routings[1];
      const auto e = static_cast<std::size_t>(routing.ids[static_cast<std::size_t>(s)]);
      std::vector<double> h = w13_[e % w13_.size()].product(x);
      for (std::size_t c = 0; c < width; ++c) {
        std::byte bits[4];
        put(type_, bits, 0, h[c] / (1 + std::exp(-h[c])) * h[width + c]);
        h[c] = get(type_, bits, 0);
      }
      h.resize(width);
      const auto y = w2_[e % w2_.size()].product(h);
      for (std::size_t i = 0; i < k; ++i)
        sum[i] += static_cast<double>(routing.weights[static_cast<std::size_t>(s)]) * y[i];
    }
    for (std::size_t i = 0; i < k; ++i) {
      difference += std::pow(get(type_, out.data(), t * problem_.k + std::int64_t(i)) - sum[i], 2);
      norm += sum[i] * sum[i];
    }
  }
  return std::sqrt(difference / norm);
}

}  // namespace q4::autotune
