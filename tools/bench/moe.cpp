// Random experts and routings, what a layer must give in fp64, and its times with cold weights.
#include "tools/bench/moe.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <set>

#include "autotune/read_floor.hpp"
#include "autotune/stopwatch.hpp"
#include "autotune/tolerance.hpp"
#include "runtime/base/check.hpp"
#include "runtime/base/convert.hpp"
#include "runtime/runtime.hpp"
#include "tools/bench/timed.hpp"
#include "tools/common/csv.hpp"
#include "tools/common/weights.hpp"

namespace q4::tools {
namespace {

/// So many matrices differ; the experts take them in turn. Random words take long to make, and a prime number keeps
/// neighbours and powers of two apart.
constexpr std::int64_t kDistinct = 7;
constexpr std::size_t kColdBytes = std::size_t{256} << 20;  // of weights, between two uses of one

struct RandomMatrix {
  RandomMatrix(std::int64_t k, std::int64_t n, std::int64_t group, bool act_order, std::uint64_t seed)
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
  GptqTensors tensors() const {
    GptqTensors t;
    t.qweight = {qweight.data(), DType::kI32, k / 8, n};
    t.qzeros = {qzeros.data(), DType::kI32, groups, n / 8};
    t.scales = {scales.data(), DType::kF16, groups, n};
    if (!g_idx.empty()) t.g_idx = TensorView{g_idx.data(), DType::kI32, 1, k};
    t.group_size = group, t.zeros = ZeroFormat::kV1;
    return t;
  }
  std::int64_t k, n, group, groups;
  std::vector<std::uint32_t> qweight, qzeros;
  std::vector<std::uint16_t> scales;
  std::vector<std::int32_t> g_idx;
};

/// The matrices of all experts, on the host.
std::vector<RandomMatrix> random_matrices(const MoeProblem& p, std::int64_t k, std::int64_t n, std::uint64_t seed) {
  std::vector<RandomMatrix> all;
  for (std::int64_t i = 0; i < std::min(kDistinct, p.experts); ++i)
    all.emplace_back(k, n, std::min(p.group, k), p.act_order, seed + static_cast<std::uint64_t>(i));
  return all;
}
std::vector<GptqTensors> of_experts(const std::vector<RandomMatrix>& matrices, std::int64_t experts) {
  std::vector<GptqTensors> all;
  for (std::int64_t e = 0; e < experts; ++e)
    all.push_back(matrices[static_cast<std::size_t>(e) % matrices.size()].tensors());
  return all;
}

/// topk different experts for each of m tokens, and weights.
struct MoeRouting {
  MoeRouting(const MoeProblem& p, std::int64_t m, bool zipf, std::uint64_t seed) {
    std::mt19937_64 random(seed);
    std::vector<double> key(static_cast<std::size_t>(p.experts));
    std::vector<std::int32_t> order(key.size());
    std::vector<bool> used(key.size());
    for (std::int64_t t = 0; t < m; ++t) {
      // The smallest of exponential variates with the experts' rates: drawn without repeats by their weights.
      for (std::size_t e = 0; e < key.size(); ++e) {
        const double uniform = (static_cast<double>(random() >> 11) + 0.5) * 0x1p-53;
        key[e] = -std::log(uniform) * (zipf ? static_cast<double>(e + 1) : 1);
        order[e] = static_cast<std::int32_t>(e);
      }
      std::partial_sort(order.begin(), order.begin() + p.topk, order.end(), [&](std::int32_t a, std::int32_t b) {
        return key[static_cast<std::size_t>(a)] < key[static_cast<std::size_t>(b)];
      });
      for (std::int64_t s = 0; s < p.topk; ++s) {
        ids.push_back(order[static_cast<std::size_t>(s)]);
        weights.push_back(static_cast<float>(0.5 + static_cast<double>(random() % 1024) / 1024) /
                          static_cast<float>(p.topk));
        used[static_cast<std::size_t>(ids.back())] = true;
      }
    }
    active = static_cast<double>(std::count(used.begin(), used.end(), true));
  }
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
  double active = 0;
};

/// Experts in enough copies on the device that their weights are cold, and the rows of x and out.
class MoeRig {
 public:
  MoeRig(const Runtime& runtime, Device device, const MoeProblem& problem, DType type, std::int64_t max_m)
      : runtime_(runtime), device_(runtime.impl().open(device)), problem_(problem), type_(type) {
    w13_ = random_matrices(problem, problem.k, 2 * problem.width, 100);
    w2_ = random_matrices(problem, problem.width, problem.k, 200);
    const double each = problem.expert_bytes() * static_cast<double>(problem.experts);
    const auto copies = static_cast<std::size_t>(std::ceil(static_cast<double>(kColdBytes) / each));
    for (std::size_t copy = 0; copy < std::max<std::size_t>(copies, 1); ++copy) {
      first_.push_back(
          QuantizedExperts::from_gptq(runtime, device, of_experts(w13_, problem.experts), {.gate_up = true}));
      second_.push_back(QuantizedExperts::from_gptq(runtime, device, of_experts(w2_, problem.experts)));
    }
    const std::size_t size = size_of(type);
    x_.resize(static_cast<std::size_t>(max_m * problem.k) * size);
    std::mt19937_64 random(5);
    std::normal_distribution<double> normal;
    for (std::int64_t i = 0; i < max_m * problem.k; ++i) set_value(type, x_.data(), i, normal(random));
    device_x_ = Buffer(device_, x_.size()), out_ = Buffer(device_, x_.size());
    device_->copy(device_x_.get(), x_.data(), x_.size(), CopyKind::kToDevice);
  }

  MoePoint measure(const MoeBenchOptions& options, std::int64_t m) {
    MoePoint point{problem_, m, ""};
    MoeOptions plan;
    plan.dtype = type_, plan.max_tokens = m, plan.topk = problem_.topk;
    plan.tactic = options.tactic, plan.batch_invariant = options.batch_invariant;
    std::vector<MoePlan> plans;
    for (std::size_t copy = 0; copy < first_.size(); ++copy)
      plans.emplace_back(runtime_, first_[copy], second_[copy], plan);
    point.kernel = plans.front().tactic(m);
    // Few tokens use few experts: other ones in each of several routings.
    const std::size_t routings = m <= 16 ? 16 : m <= 256 ? 4 : 2;
    std::vector<MoeRouting> host;
    std::vector<Buffer> ids, weights;
    for (std::size_t r = 0; r < routings; ++r) {
      const auto& routing = host.emplace_back(problem_, m, options.zipf, r + 1);
      point.active += routing.active / static_cast<double>(routings);
      ids.push_back(upload(routing.ids)), weights.push_back(upload(routing.weights));
    }
    const auto launch = [&](std::size_t r, void* stream) {
      plans[r % plans.size()].run({stream}, {device_x_.get()}, static_cast<const std::int32_t*>(ids[r].get()),
                                  static_cast<const float*>(weights[r].get()), {out_.get()}, m);
    };
    device_->fill(out_.get(), 0xFF, static_cast<std::size_t>(m * problem_.k) * size_of(type_));  // NaN
    launch(1, nullptr);
    device_->synchronize();
    point.error = error(host[1], m);
    point.exact = point.error <= autotune::tolerance_of_experts(type_);
    point.us = timed(
        [&] {
          const auto all = [&](void* stream) {
            for (std::size_t r = 0; r < routings; ++r) launch(r, stream);
          };
          return autotune::time_runs(*device_, all, 1).front() / static_cast<double>(routings);
        },
        options.seconds);
    point.floor_us = autotune::read_floor_us(device_, static_cast<std::size_t>(point.active * problem_.expert_bytes()));
    return point;
  }

 private:
  template <class T>
  Buffer upload(const std::vector<T>& values) const {
    Buffer memory(device_, values.size() * sizeof(T));
    device_->copy(memory.get(), values.data(), values.size() * sizeof(T), CopyKind::kToDevice);
    return memory;
  }

  /// x[row] @ W of one expert.
  static std::vector<double> product(const std::vector<double>& x, const RandomMatrix& matrix) {
    std::vector<std::int64_t> columns(static_cast<std::size_t>(matrix.n));
    for (std::size_t c = 0; c < columns.size(); ++c) columns[c] = static_cast<std::int64_t>(c);
    return multiply(Weights(matrix.tensors()), x, 1, columns);
  }

  /// Against fp64 in the first, a middle and the last token; NaN where something was not written.
  double error(const MoeRouting& routing, std::int64_t m) const {
    const auto k = static_cast<std::size_t>(problem_.k), width = static_cast<std::size_t>(problem_.width);
    std::vector<std::byte> out(static_cast<std::size_t>(m) * k * size_of(type_));
    device_->copy(out.data(), out_.get(), out.size(), CopyKind::kToHost);
    for (std::int64_t i = 0; i < m * problem_.k; ++i)
      if (!std::isfinite(value_of(type_, out.data(), i))) return std::numeric_limits<double>::quiet_NaN();
    double difference = 0, norm = 0;
    const std::set<std::int64_t> tokens = {0, m / 2, m - 1};
    for (const std::int64_t t : tokens) {
      std::vector<double> x(k), sum(k);
      for (std::size_t i = 0; i < k; ++i) x[i] = value_of(type_, x_.data(), t * problem_.k + std::int64_t(i));
      for (std::int64_t s = t * problem_.topk; s < (t + 1) * problem_.topk; ++s) {
        const auto e = static_cast<std::size_t>(routing.ids[static_cast<std::size_t>(s)]);
        std::vector<double> h = product(x, w13_[e % w13_.size()]);
        for (std::size_t c = 0; c < width; ++c) {
          double rounded = h[c] / (1 + std::exp(-h[c])) * h[width + c];
          std::byte bits[4];
          set_value(type_, bits, 0, rounded);
          h[c] = value_of(type_, bits, 0);
        }
        h.resize(width);
        const auto y = product(h, w2_[e % w2_.size()]);
        for (std::size_t i = 0; i < k; ++i)
          sum[i] += static_cast<double>(routing.weights[static_cast<std::size_t>(s)]) * y[i];
      }
      for (std::size_t i = 0; i < k; ++i) {
        difference += std::pow(value_of(type_, out.data(), t * problem_.k + std::int64_t(i)) - sum[i], 2);
        norm += sum[i] * sum[i];
      }
    }
    return std::sqrt(difference / norm);
  }

  Runtime runtime_;
  std::shared_ptr<DeviceBackend> device_;
  MoeProblem problem_;
  DType type_;
  std::vector<RandomMatrix> w13_, w2_;
  std::vector<QuantizedExperts> first_, second_;
  std::vector<std::byte> x_;
  Buffer device_x_, out_;
};

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

MoeProblem parse_moe(const std::string& text) {
  std::vector<std::int64_t> numbers;
  for (const auto& part : split(text, ",")) numbers.push_back(parse_whole(part, "--moe = " + text));
  check(numbers.size() == 4, "--moe = {}: give E,topk,K,I, four whole numbers such as 128,8,2048,768", text);
  MoeProblem p{numbers[0], numbers[1], numbers[2], numbers[3]};
  check(p.experts >= 1 && p.experts <= 65536, "--moe = {}: E = {} must be in [1, 65536]", text, p.experts);
  check(p.topk >= 1 && p.topk <= std::min<std::int64_t>(p.experts, 32), "--moe = {}: topk = {} must be in [1, {}]",
        text, p.topk, std::min<std::int64_t>(p.experts, 32));
  check(p.k >= 8 && p.k % 8 == 0 && p.width >= 8 && p.width % 8 == 0 && p.k < (1 << 24) && p.width < (1 << 24),
        "--moe = {}: K = {} and I = {} must be multiples of 8 in [8, 2^24)", text, p.k, p.width);
  return p;
}

std::vector<MoePoint> measure_moe(const Runtime& runtime, Device device, const MoeProblem& problem,
                                  const MoeBenchOptions& options) {
  Progress progress;
  progress.update(0, "packing the experts");
  MoeRig rig(runtime, device, problem, options.activation, options.m.back());
  std::vector<MoePoint> points;
  for (std::size_t i = 0; i < options.m.size() && !interrupted(); ++i) {
    progress.update(static_cast<double>(i) / static_cast<double>(options.m.size()),
                    fmt::format("m = {}", options.m[i]));
    try {
      points.push_back(rig.measure(options, options.m[i]));
    } catch (const Error& error) {  // the other points are worth having
      points.push_back({problem, options.m[i], std::string("error: ") + error.what()});
      points.back().refused = error.code() == ErrorCode::kInvalidArgument;
    }
  }
  return points;
}

std::string moe_table(const std::vector<MoePoint>& points, const DeviceInfo& info, const MoeBenchOptions& options) {
  Table table({"E", "topk", "K x I", "group", "m", "us", "95% interval", "TFLOP/s", "GB/s", "active experts",
               "floor us", "x floor", "rel_err", "kernel"});
  for (const MoePoint& p : points)
    table.add({std::to_string(p.problem.experts), std::to_string(p.problem.topk),
               fmt::format("{}x{}", p.problem.k, p.problem.width),
               fmt::format("{}{}", p.problem.group, p.problem.act_order ? " act-order" : ""), std::to_string(p.m),
               number(p.us.value), p.us.low < p.us.high ? number(p.us.low) + "-" + number(p.us.high) : "-",
               number(p.tflops()), number(p.gbps()), number(p.active), number(p.floor_us),
               p.us.value > 0 && p.floor_us > 0 ? fmt::format("{:.2f}", p.us.value / p.floor_us) : "-",
               fmt::format("{:.1e}{}", p.error, p.exact ? "" : " WRONG"), p.kernel});
  return fmt::format("{} ({}, {}), {} activations, {} routing\n{}", info.device.str(), info.name, info.arch,
                     to_string(options.activation), options.zipf ? "zipf" : "uniform", table.str());
}

Json moe_json(const std::vector<MoePoint>& points, const DeviceInfo& info, const MoeBenchOptions& options) {
  Json out{{"device", info.device.str()},
           {"fingerprint", info.fingerprint},
           {"activation", to_string(options.activation)},
           {"routing", options.zipf ? "zipf" : "uniform"},
           {"points", Json::array()}};
  for (const MoePoint& p : points)
    out["points"].push_back(Json{{"kernel", p.kernel},
                                 {"k", p.problem.k},
                                 {"n", p.problem.width},
                                 {"group", p.problem.group},
                                 {"act_order", p.problem.act_order},
                                 {"E", p.problem.experts},
                                 {"topk", p.problem.topk},
                                 {"m", p.m},
                                 {"us", p.us.value},
                                 {"low", p.us.low},
                                 {"high", p.us.high},
                                 {"tflops", p.tflops()},
                                 {"gbps", p.gbps()},
                                 {"active", p.active},
                                 {"rel_err", p.error},
                                 {"exact", p.exact},
                                 {"floor_us", p.floor_us}});
  return out;
}

std::string moe_csv(const std::vector<MoePoint>& points, const MoeBenchOptions& options) {
  std::string text = "kernel,k,n,group,act_order,m,us,tflops,gbps,rel_err,E,topk,routing,active,floor_us\n";
  for (const MoePoint& p : points)
    text += fmt::format("{},{},{},{},{},{},{:.3f},{:.3f},{:.1f},{:.2e},{},{},{},{:.1f},{:.3f}\n", p.kernel, p.problem.k,
                        p.problem.width, p.problem.group, p.problem.act_order ? 1 : 0, p.m, p.us.value, p.tflops(),
                        p.gbps(), p.error, p.problem.experts, p.problem.topk, options.zipf ? "zipf" : "uniform",
                        p.active, p.floor_us);
  return text;
}

}  // namespace q4::tools
