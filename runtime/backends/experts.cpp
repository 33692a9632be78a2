// What a device answers that has no kernels for mixtures of experts.
#include "runtime/backends/experts.hpp"

#include "runtime/base/check.hpp"

namespace q4 {
namespace {

[[noreturn]] void no_experts(const DeviceInfo& info) {
  fail(
      ErrorCode::kUnsupported,
      "QuantizedExperts: {} ({}) has no kernels for mixtures of experts: use a device that has, or one QuantizedMatrix "
      "and MatmulPlan for each expert",
      info.device.str(), info.arch);
}

}  // namespace

std::unique_ptr<PackedExperts> DeviceBackend::make_experts(const ExpertsShape&) { no_experts(info()); }

std::unique_ptr<MoePlanBackend> DeviceBackend::plan_moe(std::shared_ptr<const PackedExperts>,
                                                        std::shared_ptr<const PackedExperts>, const MoeOptions&,
                                                        const TuningRecord*) {
  no_experts(info());
}

std::unique_ptr<GroupedPlanBackend> DeviceBackend::plan_grouped(std::shared_ptr<const PackedExperts>,
                                                                const GroupedOptions&) {
  no_experts(info());
}

}  // namespace q4
