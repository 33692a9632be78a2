// Plans over experts on the CPU: MoePlan and GroupedPlan.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime/backends/cpu/grouped.hpp"

namespace q4::cpu {

/// What a device gives to its plans.
struct PlanParts {
  const Kernels& kernels;
  ThreadPool& pool;
  const std::shared_ptr<MemoryLedger>& ledger;
};

std::unique_ptr<MoePlanBackend> plan_moe(std::shared_ptr<const CpuExperts> w13, std::shared_ptr<const CpuExperts> w2,
                                         const MoeOptions& options, const PlanParts& parts);
std::unique_ptr<GroupedPlanBackend> plan_grouped(std::shared_ptr<const CpuExperts> experts,
                                                 const GroupedOptions& options, const PlanParts& parts);

}  // namespace q4::cpu
