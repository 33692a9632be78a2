// Random mixtures of experts and routings, what they give in fp64, and runs of them on any device.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <q4/moe.hpp>
#include <string>
#include <vector>

#include "on_device.hpp"

namespace q4::test {

struct MoeSpec {
  std::int64_t experts = 4, topk = 2, k = 128, width = 64, n = 128;  ///< W13 is k x 2 width (k x width), W2 width x n
  MoeActivation activation = MoeActivation::kSiluMul;
  std::int64_t group_size = 32;
  ActOrder act_order = ActOrder::kNone;
  bool bias = false;
  ZeroFormat zeros = ZeroFormat::kV1;
  std::uint64_t seed = 1;

  bool gated() const { return activation != MoeActivation::kNone; }
};

/// act(gate) * up in fp64; `up` is not used without an activation.
inline double activated(MoeActivation activation, double gate, double up, double alpha = 1.702, double limit = 7) {
  const auto sigmoid = [](double v) { return 1 / (1 + std::exp(-v)); };
  switch (activation) {
    case MoeActivation::kNone:
      return gate;
    case MoeActivation::kSiluMul:
      return gate * sigmoid(gate) * up;
    case MoeActivation::kGeluMul:
      return 0.5 * gate * (1 + std::erf(gate / std::sqrt(2.0))) * up;
    case MoeActivation::kGeluTanhMul:
      return 0.5 * gate *
             (1 + std::tanh(std::sqrt(2 / 3.14159265358979323846) * (gate + 0.044715 * std::pow(gate, 3)))) * up;
    case MoeActivation::kSwigluClamp: {
      const double g = std::isnan(gate) ? gate : std::min(gate, limit);
      const double u = std::isnan(up) ? up : std::clamp(up, -limit, limit);
      return g * sigmoid(alpha * g) * (u + 1);
    }
  }
  return NAN;
}

inline double rounded(DType type, double value) {
  if (type == DType::kF32) return static_cast<double>(static_cast<float>(value));
  return type == DType::kF16 ? half_value(half_bits(value)) : bf16_value(bf16_bits(value));
}

/// The experts of a layer on the host, and their weights as numbers.
struct MoeWeights {
  explicit MoeWeights(const MoeSpec& spec) : spec(spec) {
    for (std::int64_t e = 0; e < spec.experts; ++e) {
      MatrixSpec one{.k = spec.k, .n = spec.gated() ? 2 * spec.width : spec.width, .group_size = spec.group_size};
      one.act_order = spec.act_order, one.bias = spec.bias, one.zeros = spec.zeros;
      one.scale = 1.0 / std::sqrt(double(spec.k)), one.seed = spec.seed * 1000 + static_cast<std::uint64_t>(e);
      w13.push_back(make_gptq(one));
      one.k = spec.width, one.n = spec.n, one.seed += 500;
      one.scale = 1.0 / std::sqrt(double(spec.width));
      w2.push_back(make_gptq(one));
    }
    for (const auto& m : w13) dense13.push_back(dense(m));
    for (const auto& m : w2) dense2.push_back(dense(m));
  }
  static std::vector<double> dense(const GptqMatrix& matrix) {
    const PlainMatrix plain = unpack(matrix.tensors());
    std::vector<double> w(static_cast<std::size_t>(plain.k * plain.n));
    for (std::int64_t r = 0; r < plain.k; ++r)
      for (std::int64_t c = 0; c < plain.n; ++c) w[static_cast<std::size_t>(r * plain.n + c)] = plain.weight(r, c);
    return w;
  }
  static std::vector<GptqTensors> tensors(const std::vector<GptqMatrix>& matrices) {
    std::vector<GptqTensors> all;
    for (const auto& m : matrices) all.push_back(m.tensors()), all.back().zeros = m.spec.zeros;
    return all;
  }

  MoeSpec spec;
  std::vector<GptqMatrix> w13, w2;
  std::vector<std::vector<double>> dense13, dense2;
};

/// x[row] @ W[expert] + bias in fp64.
inline std::vector<double> expert_product(const std::vector<double>& x, const std::vector<double>& w,
                                          const GptqMatrix& matrix) {
  const std::int64_t n = matrix.spec.n;
  std::vector<double> y(static_cast<std::size_t>(n));
  for (std::int64_t c = 0; c < n && !matrix.bias.empty(); ++c)
    y[static_cast<std::size_t>(c)] = half_value(matrix.bias[static_cast<std::size_t>(c)]);
  for (std::size_t r = 0; r < x.size(); ++r)
    for (std::int64_t c = 0; c < n; ++c)
      y[static_cast<std::size_t>(c)] += x[r] * w[r * static_cast<std::size_t>(n) + static_cast<std::size_t>(c)];
  return y;
}

inline std::vector<double> row_of(const HostRows& x, std::int64_t row) {
  std::vector<double> values;
  for (std::int64_t c = 0; c < x.cols(); ++c) values.push_back(x.at(row, c));
  return values;
}

/// The activation of one expert, [width].
inline std::vector<double> hidden(const MoeWeights& w, std::int64_t expert, const std::vector<double>& x) {
  const auto e = static_cast<std::size_t>(expert);
  std::vector<double> y = expert_product(x, w.dense13[e], w.w13[e]);
  const auto width = static_cast<std::size_t>(w.spec.width);
  for (std::size_t c = 0; c < width; ++c) y[c] = activated(w.spec.activation, y[c], w.spec.gated() ? y[width + c] : 0);
  y.resize(width);
  return y;
}

struct Routing {
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
};

/// `tokens` times `topk` different experts of [0, experts), weights that sum to 1.
inline Routing random_routing(std::int64_t tokens, std::int64_t topk, std::int64_t experts, std::uint64_t seed = 3) {
  Random random(seed);
  Routing routing;
  std::vector<std::int32_t> all(static_cast<std::size_t>(experts));
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::size_t e = 0; e < all.size(); ++e) all[e] = static_cast<std::int32_t>(e);
    float sum = 0;
    for (std::int64_t s = 0; s < topk; ++s) {
      std::swap(all[static_cast<std::size_t>(s)], all[static_cast<std::size_t>(s + random.below(experts - s))]);
      routing.ids.push_back(all[static_cast<std::size_t>(s)]);
      routing.weights.push_back(static_cast<float>(0.1 + random.uniform()));
      sum += routing.weights.back();
    }
    for (std::int64_t s = 0; s < topk; ++s) routing.weights[static_cast<std::size_t>(t * topk + s)] /= sum;
  }
  return routing;
}

/// The layer in fp64, with the activation rounded to `type` as the plan does; `map` as MoeOptions::expert_map.
inline std::vector<double> moe_reference(const MoeWeights& w, const HostRows& x, const Routing& routing, DType type,
                                         const std::vector<std::int32_t>& map = {}) {
  const auto topk = static_cast<std::size_t>(w.spec.topk), n = static_cast<std::size_t>(w.spec.n);
  std::vector<double> out(static_cast<std::size_t>(x.rows()) * n);
  for (std::int64_t t = 0; t < x.rows(); ++t)
    for (std::size_t s = static_cast<std::size_t>(t) * topk; s < (static_cast<std::size_t>(t) + 1) * topk; ++s) {
      std::int64_t e = routing.ids[s];
      if (!map.empty()) e = e >= 0 && e < std::int64_t(map.size()) ? map[static_cast<std::size_t>(e)] : -1;
      if (e < 0 || e >= w.spec.experts) continue;
      std::vector<double> h = hidden(w, e, row_of(x, t));
      for (auto& value : h) value = rounded(type, value);
      const auto y = expert_product(h, w.dense2[static_cast<std::size_t>(e)], w.w2[static_cast<std::size_t>(e)]);
      for (std::size_t c = 0; c < n; ++c) out[static_cast<std::size_t>(t) * n + c] += double(routing.weights[s]) * y[c];
    }
  return out;
}

struct MoeExperts {
  MoeExperts(const Runtime& runtime, Device device, const MoeWeights& w)
      : w13(QuantizedExperts::from_gptq(runtime, device, MoeWeights::tensors(w.w13), {.gate_up = w.spec.gated()})),
        w2(QuantizedExperts::from_gptq(runtime, device, MoeWeights::tensors(w.w2))) {}
  QuantizedExperts w13, w2;
};

inline MoeOptions moe_options(const MoeSpec& spec, DType type, std::int64_t max_tokens) {
  MoeOptions options;
  options.dtype = type, options.activation = spec.activation;
  options.max_tokens = max_tokens, options.topk = spec.topk;
  return options;
}

/// A copy on the device, 16-byte aligned.
class Uploaded {
 public:
  Uploaded(const std::shared_ptr<DeviceBackend>& device, const void* data, std::size_t bytes)
      : memory_(device, bytes + 16) {
    if (bytes) device->copy(memory_.get(), data, bytes, CopyKind::kToDevice);
  }
  void* get() const { return memory_.get(); }

 private:
  Buffer memory_;
};

/// Runs a plan on its device through copies; `out` keeps its host poison where nothing is written.
inline void run_moe(const Runtime& runtime, Device where, const MoePlan& plan, const HostRows& x,
                    const Routing& routing, HostRows& out) {
  auto device = runtime.impl().open(where);
  const Uploaded dx(device, x.data(), x.bytes()), dout(device, out.data(), out.bytes());
  const Uploaded ids(device, routing.ids.data(), routing.ids.size() * 4);
  const Uploaded weights(device, routing.weights.data(), routing.weights.size() * 4);
  plan.run({}, {dx.get(), x.row_stride()}, static_cast<const std::int32_t*>(ids.get()),
           static_cast<const float*>(weights.get()), {dout.get(), out.row_stride()}, x.rows());
  device->synchronize();
  if (out.bytes()) device->copy(out.data(), dout.get(), out.bytes(), CopyKind::kToHost);
}

/// The devices that can hold experts; the others are shown as skipped.
inline std::vector<Device> moe_devices() {
  std::vector<Device> devices;
  const MoeWeights tiny{MoeSpec{.experts = 1, .topk = 1}};
  for (const auto& info : ready_devices()) {
    try {
      MoeExperts(shared_runtime(), info.device, tiny);
      devices.push_back(info.device);
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kUnsupported) throw;
      skip(error.what());
    }
  }
  return devices;
}

inline double moe_limit(DType type) { return autotune::tolerance_of_experts(type); }

}  // namespace q4::test
