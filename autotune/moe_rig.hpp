// A layer of experts set up on a device for honest timing: random weights in enough copies that each run reads them cold,
// random routings, and what some tokens must give in fp64.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <q4/moe.hpp>
#include <vector>

#include "autotune/workload.hpp"
#include "runtime/backends/backend.hpp"

namespace q4::autotune {

/// A mixture of experts: W13 [K, 2 I] and W2 [I, K] of E experts, topk of them a token.
struct MoeProblem {
  std::int64_t experts = 0, topk = 0, k = 0, width = 0, group = 128;
  bool act_order = false;

  double expert_bytes() const;           ///< of one expert's weights: codes, scales, zeros
  double flops(std::int64_t m) const;    ///< of m tokens
  double x_bytes(std::int64_t m) const;  ///< x and out, in 16 bits
};

/// `problem`: of experts.
MoeProblem layer_of(const Problem& problem);

/// A matrix that several experts share: they take a few in turn.
struct MoeMatrix {
  MoeMatrix(std::int64_t k, std::int64_t n, std::int64_t group, bool act_order, std::uint64_t seed);
  GptqTensors tensors() const;
  std::vector<double> product(const std::vector<double>& x) const;  ///< x @ W in fp64

  std::int64_t k, n, group, groups;
  std::vector<std::uint32_t> qweight, qzeros;
  std::vector<std::uint16_t> scales;
  std::vector<std::int32_t> g_idx;  ///< empty: in order
};

/// Several routings of m tokens, of which each run takes the next: few tokens use few experts, other ones each time.
struct MoeTraffic {
  struct One {
    std::vector<std::int32_t> ids;
    std::vector<float> weights;
    Buffer device_ids, device_weights;
  };
  std::int64_t m = 0;
  std::vector<One> routings;
  double active = 0;  ///< experts that have tokens, in the mean
};

class MoeRig {
 public:
  MoeRig(const Runtime& runtime, Device device, const MoeProblem& problem, DType type, std::int64_t max_m);

  /// `zipf`: expert e is drawn with weight 1 / (1 + e), else all alike; never the same twice for a token.
  MoeTraffic traffic(std::int64_t m, bool zipf) const;
  /// Of each copy; dtype and topk are set.
  std::vector<MoePlan> plans(MoeOptions options) const;
  /// Relative error of the first, a middle and the last token against fp64; NaN where something was not written.
  double error(const std::vector<MoePlan>& plans, const MoeTraffic& traffic) const;
  /// Microseconds of one run.
  double sample(const std::vector<MoePlan>& plans, const MoeTraffic& traffic) const;
  /// The same of a kernel that only reads the experts that have tokens.
  double floor_us(const MoeTraffic& traffic) const;
  std::size_t copies() const { return first_.size(); }
  void touch() const;  ///< writes a few bytes and waits: throws kDevice when the device does not answer

 private:
  void launch(const std::vector<MoePlan>& plans, const MoeTraffic& traffic, std::size_t run, void* stream) const;

  Runtime runtime_;
  std::shared_ptr<DeviceBackend> device_;
  MoeProblem problem_;
  DType type_;
  std::vector<MoeMatrix> w13_, w2_;
  std::vector<QuantizedExperts> first_, second_;
  std::vector<std::byte> x_;
  Buffer device_x_, out_;
};

}  // namespace q4::autotune
