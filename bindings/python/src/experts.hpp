// Experts: the matrices of a layer of experts, and the plans that they begin.
#pragma once

#include <bit>
#include <list>
#include <memory>
#include <vector>

#include "bindings/python/src/session.hpp"

namespace q4::python {

/// One allocation of weights, and a plan for each set of options and power of two of rows. Thread-safe.
class Experts {
 public:
  explicit Experts(QuantizedExperts weights) : weights_(std::move(weights)), device(weights_.device()) {}

  QuantizedExperts weights() const {
    const std::lock_guard lock(mutex_);
    return weights_;
  }
  /// For an activation: experts that were made without gate_up are packed anew, once.
  QuantizedExperts gate_up() {
    const std::lock_guard lock(mutex_);
    if (weights_.gate_up()) return weights_;
    std::vector<UnpackedMatrix> unpacked;
    for (std::int64_t e = 0; e < weights_.experts(); ++e) unpacked.push_back(weights_.unpack(e));
    if (weights_.is_awq()) {
      std::vector<AwqTensors> all;
      for (const auto& u : unpacked) all.push_back(u.awq());
      weights_ = QuantizedExperts::from_awq(runtime(), device, all, {.gate_up = true});
    } else {
      std::vector<GptqTensors> all;
      for (const auto& u : unpacked) all.push_back(u.gptq());
      weights_ = QuantizedExperts::from_gptq(runtime(), device, all, {.gate_up = true});
    }
    return weights_;
  }

  /// The plan of a layer with this w2 for so many tokens.
  MoePlan moe_plan(const QuantizedExperts& w2, MoeOptions options) {
    return find(moe_plans_, w2.impl().get(), options, options.max_tokens,
                [&](const QuantizedExperts& w13) { return MoePlan(runtime(), w13, w2, options); });
  }
  GroupedPlan grouped_plan(GroupedOptions options) {
    return find(grouped_plans_, nullptr, options, options.max_rows,
                [&](const QuantizedExperts& e) { return GroupedPlan(runtime(), e, options); });
  }

 private:
  template <class Options, class Plan>
  struct Made {
    const void* other;
    Options options;
    std::int64_t rows;
    Plan plan;
  };

  static const std::vector<std::int32_t>& map_of(const MoeOptions& options) { return options.expert_map; }
  static std::vector<std::int32_t> map_of(const GroupedOptions&) { return {}; }
  static std::int64_t topk_of(const MoeOptions& options) { return options.topk; }
  static std::int64_t topk_of(const GroupedOptions&) { return 0; }
  template <class Options>
  static bool same_but_rows(const Options& a, const Options& b) {
    return a.dtype == b.dtype && a.activation == b.activation && a.alpha == b.alpha && a.limit == b.limit &&
           a.batch_invariant == b.batch_invariant && topk_of(a) == topk_of(b) && map_of(a) == map_of(b);
  }

  /// `rows` is the member of `options` that is rounded up to a power of two.
  template <class Options, class Plan, class Make>
  Plan find(std::list<Made<Options, Plan>>& plans, const void* other, Options& options, std::int64_t& rows, Make make) {
    const QuantizedExperts experts = options.activation == MoeActivation::kNone ? weights() : gate_up();
    rows = static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(rows)));
    const auto serving = [&]() -> const Plan* {
      for (const auto& made : plans)
        if (made.other == other && made.rows >= rows && same_but_rows(made.options, options)) return &made.plan;
      return nullptr;
    };
    {
      const std::lock_guard lock(mutex_);
      if (const Plan* plan = serving()) return *plan;
    }
    const RelaxedCapture relaxed(device);
    Plan plan = make(experts);  // may take seconds: no lock meanwhile
    const std::lock_guard lock(mutex_);
    if (const Plan* found = serving()) return *found;  // another thread was faster
    plans.push_back({other, options, rows, plan});
    return plan;
  }

  mutable ForkSafeMutex mutex_;
  QuantizedExperts weights_;
  std::list<Made<MoeOptions, MoePlan>> moe_plans_;
  std::list<Made<GroupedOptions, GroupedPlan>> grouped_plans_;

 public:
  const Device device;
};
using ExpertsPtr = std::shared_ptr<Experts>;

}  // namespace q4::python
