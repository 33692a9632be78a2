// What MatmulPlan, Runtime::warmup and Runtime::numerics_id do alike before anything is planned.
#pragma once

#include <cstdint>
#include <q4/matmul.hpp>
#include <q4/tuning.hpp>
#include <q4/warmup.hpp>
#include <vector>

#include "runtime/backends/backend.hpp"

namespace q4 {

/// Throws kInvalidArgument for options that no plan accepts.
void check_options(const PlanOptions& options, Device device);

/// The tuning record that a plan of this matrix follows; null: none, or none of these kernels. See
/// Runtime::Impl::tuned.
const TuningRecord* find_tuned(const Runtime& runtime, const DeviceBackend& device, std::int64_t k, std::int64_t n,
                               std::int64_t group_size, bool act_order, DType activation);

/// Each shape of the matrices that can be loaded, once.
std::vector<WarmupShape> warmup_shapes(const Checkpoint& checkpoint);

}  // namespace q4
