// What packing, planning and column_remap would load, found out without a device.
#pragma once

#include <q4/device.hpp>
#include <vector>

#include "kernels/problem.h"
#include "runtime/backends/backend.hpp"
#include "runtime/jit/source.hpp"

namespace q4::gpu {

/// A MatrixSource with numbers and row order alone. `group_size` -1: one group; act-order: groups of group_size rows.
/// Throws kInvalidArgument for what no QuantizedMatrix can be.
MatrixSource shape_source(std::int64_t k, std::int64_t n, std::int64_t group_size, bool act_order, bool bias, bool awq);

/// The library's own planning runs, over a driver that only notes: these are the kernels that it will ask for, once
/// each.
std::vector<jit::Source> needed_sources(const DeviceInfo& info, const Limits& limits, const MatrixSource& shape,
                                        const PlanOptions& options, const TuningRecord* tuned);

jit::Source column_remap_source();

}  // namespace q4::gpu
