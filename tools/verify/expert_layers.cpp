// Checks what a plan makes of each layer of experts.
#include "tools/verify/expert_layers.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "autotune/tolerance.hpp"
#include "runtime/base/check.hpp"
#include "runtime/expert_layers.hpp"
#include "runtime/runtime.hpp"
#include "tools/common/compare.hpp"
#include "tools/common/weights.hpp"

namespace q4::tools {
namespace {

using checkpoint::ExpertLayer;

constexpr std::int64_t kSlots = 2;  // of a token

/// Of one matrix of the checkpoint, as it says.
Weights weights_of(const Checkpoint& checkpoint, const std::string& name) {
  if (checkpoint.find(name).format == QuantFormat::kAwq) return Weights(checkpoint.awq(name));
  return Weights(checkpoint.gptq(name));
}

/// x @ W of every column, in fp64.
std::vector<double> product(const Checkpoint& checkpoint, const std::string& name, const std::vector<double>& x) {
  const Weights weights = weights_of(checkpoint, name);
  std::vector<std::int64_t> columns(static_cast<std::size_t>(weights.n()));
  for (std::size_t c = 0; c < columns.size(); ++c) columns[c] = static_cast<std::int64_t>(c);
  return multiply(weights, x, 1, columns);
}

double rounded(DType type, double value) {
  std::byte bits[4];
  set_value(type, bits, 0, value);
  return value_of(type, bits, 0);
}

/// One token through its experts.
std::vector<double> reference(const Checkpoint& checkpoint, const ExpertLayer& layer, DType type,
                              const std::vector<double>& x, const std::int32_t* ids, const float* weights) {
  std::vector<double> sum;
  for (std::int64_t s = 0; s < kSlots; ++s) {
    std::vector<double> h = product(checkpoint, layer.name_of(ids[s], layer.gate), x);
    const auto up = product(checkpoint, layer.name_of(ids[s], layer.up), x);
    for (std::size_t i = 0; i < h.size(); ++i) h[i] = rounded(type, h[i] / (1 + std::exp(-h[i])) * up[i]);
    const auto y = product(checkpoint, layer.name_of(ids[s], layer.down), h);
    sum.resize(y.size());
    for (std::size_t i = 0; i < y.size(); ++i) sum[i] += static_cast<double>(weights[s]) * y[i];
  }
  return sum;
}

bool fit_fp16(const Checkpoint& checkpoint, const ExpertLayer& layer) {
  for (const auto& part : {layer.gate, layer.up, layer.down})
    if (!weights_of(checkpoint, layer.name_of(0, part)).scales_fit_fp16()) return false;
  return true;
}

struct LayerResult {
  double error = 0, limit = 0;
  std::string tactic;
};

LayerResult verify_layer(const Runtime& runtime, Device where, const Checkpoint& checkpoint, const ExpertLayer& layer,
                         DType type, std::int64_t m) {
  const auto w13 = QuantizedExperts::load(runtime, where, checkpoint, {layer.gate_up_patterns()});
  const auto w2 = QuantizedExperts::load(runtime, where, checkpoint, {{layer.prefix + ".{}." + layer.down}});
  MoeOptions options;
  options.dtype = type, options.max_tokens = m, options.topk = kSlots;
  const MoePlan plan(runtime, w13, w2, options);
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
  for (std::int64_t s = 0; s < m * kSlots; ++s) {  // every expert in turn, neighbours a third of them apart
    ids.push_back(static_cast<std::int32_t>((s * (1 + layer.experts / 3)) % layer.experts));
    weights.push_back(s % kSlots == 0 ? 0.75f : 0.25f);
  }
  const std::vector<std::byte> x = random_rows(type, m * w13.k());
  std::vector<std::byte> out(static_cast<std::size_t>(m * w2.n()) * size_of(type), std::byte{0xff});
  auto device = runtime.impl().open(where);
  const auto upload = [&](const void* data, std::size_t bytes) {
    Buffer memory(device, bytes);
    device->copy(memory.get(), data, bytes, CopyKind::kToDevice);
    return memory;
  };
  const Buffer dx = upload(x.data(), x.size()), dids = upload(ids.data(), ids.size() * 4),
               dweights = upload(weights.data(), weights.size() * 4), dout = upload(out.data(), out.size());
  plan.run({}, {dx.get()}, static_cast<const std::int32_t*>(dids.get()), static_cast<const float*>(dweights.get()),
           {dout.get()}, m);
  device->synchronize();
  device->copy(out.data(), dout.get(), out.size(), CopyKind::kToHost);
  const bool exact_scales = fit_fp16(checkpoint, layer);
  // Two products, one after the other.
  const double limit =
      exact_scales ? autotune::tolerance_of_experts(type)
                   : std::max(autotune::tolerance_of_experts(type), autotune::tolerance_of_rounded_scales(type));
  LayerResult result{0, type == DType::kF32 ? 2 * limit : limit, plan.tactic(m)};
  double difference = 0, norm = 0;
  for (std::int64_t i = 0; i < m * w2.n(); ++i)
    if (!std::isfinite(value_of(type, out.data(), i))) difference = std::numeric_limits<double>::quiet_NaN();
  for (std::int64_t t = 0; t < m; t += std::max<std::int64_t>(m - 1, 1)) {  // the first token and the last
    std::vector<double> row;
    for (std::int64_t i = 0; i < w13.k(); ++i) row.push_back(value_of(type, x.data(), t * w13.k() + i));
    const auto expected = reference(checkpoint, layer, type, row, &ids[static_cast<std::size_t>(t * kSlots)],
                                    &weights[static_cast<std::size_t>(t * kSlots)]);
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const double got = value_of(type, out.data(), t * w2.n() + static_cast<std::int64_t>(i));
      difference += (got - expected[i]) * (got - expected[i]);
      norm += expected[i] * expected[i];
    }
  }
  result.error = std::sqrt(difference / norm);
  return result;
}

}  // namespace

VerifiedLayers verify_layers(const Runtime& runtime, Device device, const Checkpoint& checkpoint,
                             const std::vector<MatrixEntry>& matrices, DType type, std::int64_t m, bool print) {
  VerifiedLayers all;
  for (const ExpertLayer& layer : checkpoint::expert_layers(matrices)) {
    LayerResult result;
    std::string failure;
    bool passed_over = false;
    try {
      result = verify_layer(runtime, device, checkpoint, layer, type, m);
    } catch (const Error& error) {
      if (error.code() == ErrorCode::kDevice || error.code() == ErrorCode::kInternal) throw;
      failure = error.what();
      passed_over = error.code() == ErrorCode::kInvalidArgument || error.code() == ErrorCode::kUnsupported;
    }
    const bool ok = passed_over || (failure.empty() && result.error <= result.limit);
    all.failed += !ok;
    all.worst = std::max(all.worst, result.error);
    if (print)
      fmt::print("{}.*: a layer of {} experts, {} tokens: {}{}\n", without_controls(layer.prefix), layer.experts, m,
                 failure.empty() ? fmt::format("{:.2e}", result.error)
                                 : (passed_over ? "passed over: " : "failed: ") + without_controls(failure),
                 ok || !failure.empty() ? "" : "  OVER TOLERANCE");
    Json one{{"name", layer.prefix},      {"experts", layer.experts}, {"tokens", m}, {"error", result.error},
             {"tolerance", result.limit}, {"tactic", result.tactic},  {"ok", ok}};
    if (!failure.empty()) one["failure"] = failure;
    all.list.push_back(std::move(one));
  }
  return all;
}

}  // namespace q4::tools
