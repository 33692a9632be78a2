// Experts on the CPU backend alone: every instruction set, path and number of threads.
#include <cmath>

#include "cpu_device.hpp"
#include "runtime/backends/experts.hpp"

namespace q4::test {
namespace {

constexpr std::int64_t kExperts = 4, kTopk = 2, kK = 384, kWidth = 136, kN = 200;

/// A layer on the host, and its weights as numbers.
struct Layer {
  explicit Layer(bool act_order) {
    for (std::uint64_t e = 0; e < kExperts; ++e) {
      MatrixSpec spec{.k = kK, .n = 2 * kWidth, .group_size = 64, .bias = true, .scale = 0.03, .seed = e + 1};
      spec.act_order = act_order ? ActOrder::kPermuted : ActOrder::kNone;
      first.push_back(make_gptq(spec));
      spec.k = kWidth, spec.n = kN, spec.group_size = 32, spec.seed += 50, spec.act_order = ActOrder::kNone;
      second.push_back(make_gptq(spec));
    }
    for (const auto& m : first) plain_first.push_back(unpack(m.tensors()));
    for (const auto& m : second) plain_second.push_back(unpack(m.tensors()));
  }
  std::vector<GptqMatrix> first, second;
  std::vector<PlainMatrix> plain_first, plain_second;
};

std::shared_ptr<const PackedExperts> packed(DeviceBackend& device, const std::vector<GptqMatrix>& matrices,
                                            const std::vector<PlainMatrix>& plain, bool gate_up) {
  std::shared_ptr<PackedExperts> experts;
  for (std::size_t e = 0; e < matrices.size(); ++e) {
    const auto& m = matrices[e];
    const MatrixSource source = source_of(plain[e], m.qweight.data(), m.spec.group_size, false, m.g_idx);
    if (!experts) {
      ExpertsShape shape;
      static_cast<MatrixShape&>(shape) = source;
      shape.experts = kExperts, shape.gate_up = gate_up;
      experts = device.make_experts(shape);
    }
    experts->update(static_cast<std::int64_t>(e), source, nullptr);
  }
  return experts;
}

struct Routes {
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
};

Routes routes(std::int64_t tokens) {
  Random random(7);
  Routes r;
  for (std::int64_t s = 0; s < tokens * kTopk; ++s) {
    r.ids.push_back(static_cast<std::int32_t>(random.below(kExperts + 1)));  // the last one names none
    r.weights.push_back(static_cast<float>(random.uniform()));
  }
  return r;
}

double rounded(DType type, double v) {
  return type == DType::kF32   ? double(float(v))
         : type == DType::kF16 ? half_value(half_bits(v))
                               : bf16_value(bf16_bits(v));
}

std::vector<double> reference(const Layer& layer, const HostRows& x, const Routes& r) {
  std::vector<double> out(static_cast<std::size_t>(x.rows() * kN));
  for (std::size_t e = 0; e < kExperts; ++e) {
    const std::vector<double> y = product(x, layer.plain_first[e]);
    HostRows hidden(x.dtype(), x.rows(), kWidth);
    for (std::int64_t t = 0; t < x.rows(); ++t)
      for (std::int64_t c = 0; c < kWidth; ++c) {
        const double gate = y[static_cast<std::size_t>(t * 2 * kWidth + c)];
        hidden.set(t, c,
                   rounded(x.dtype(),
                           gate / (1 + std::exp(-gate)) * y[static_cast<std::size_t>(t * 2 * kWidth + kWidth + c)]));
      }
    const std::vector<double> z = product(hidden, layer.plain_second[e]);
    for (std::size_t s = 0; s < r.ids.size(); ++s)
      for (std::size_t c = 0; r.ids[s] == static_cast<std::int32_t>(e) && c < kN; ++c)
        out[s / kTopk * kN + c] += double(r.weights[s]) * z[s / kTopk * kN + c];
  }
  return out;
}

HostRows run(DeviceBackend& device, const std::shared_ptr<const PackedExperts>& w13,
             const std::shared_ptr<const PackedExperts>& w2, const HostRows& x, const Routes& r,
             const std::string& tactic) {
  MoeOptions options;
  options.dtype = x.dtype(), options.topk = kTopk, options.max_tokens = x.rows(), options.tactic = tactic;
  const auto plan = device.plan_moe(w13, w2, options, nullptr);
  HostRows out(x.dtype(), x.rows(), kN, kN + 8);
  plan->run({nullptr, x.data(), x.row_stride(), r.ids.data(), r.weights.data(), out.data(), out.row_stride(), x.rows(),
             nullptr});
  return out;
}

TEST_CASE("cpu: experts agree with fp64 by every path of every instruction set") {
  for (const bool act_order : {false, true}) {
    const Layer layer(act_order);
    for_each_isa([&](CpuDevice& cpu) {
      const auto w13 = packed(*cpu.device, layer.first, layer.plain_first, true);
      const auto w2 = packed(*cpu.device, layer.second, layer.plain_second, false);
      for (const DType type : {DType::kF16, DType::kBF16, DType::kF32}) {
        MoeOptions options;
        options.dtype = type, options.topk = kTopk;
        for (const std::int64_t tokens : {1, 3, 50}) {
          const HostRows x = random_rows(type, tokens, kK, 3, kK + 8);
          const Routes r = routes(tokens);
          const auto expected = reference(layer, x, r);
          for (const auto& tactic : cpu.device->plan_moe(w13, w2, options, nullptr)->tactics(1)) {
            CAPTURE(act_order);
            CAPTURE(std::string(to_string(type)));
            CAPTURE(tokens);
            CAPTURE(tactic);
            const HostRows out = run(*cpu.device, w13, w2, x, r, tactic);
            const double error = relative_error(out, expected);
            CHECK_MESSAGE(error <= (type == DType::kF32 ? 2e-6 : tolerance(type)), "error ", error);
            CHECK(out.padding_intact());
          }
        }
      }
    });
  }
}

TEST_CASE("cpu: experts give the same bits for any number of threads, and in an embedder's pool") {
  const Layer layer(false);
  const HostRows x = random_rows(DType::kF16, 70, kK);
  const Routes r = routes(70);
  std::vector<HostRows> results;
  const ParallelFor serial = [](int tasks, const std::function<void(int)>& task) {
    for (int i = tasks; i-- > 0;) task(i);
  };
  for (int threads = 1; threads <= 5; threads += 2) {
    CpuDevice cpu(threads, {}, threads == 5 ? serial : ParallelFor());
    const auto w13 = packed(*cpu.device, layer.first, layer.plain_first, true);
    const auto w2 = packed(*cpu.device, layer.second, layer.plain_second, false);
    results.push_back(run(*cpu.device, w13, w2, x, r, ""));
    CHECK(same_bits(results.front(), results.back()));
  }
}

}  // namespace
}  // namespace q4::test
