// What packing, planning and column_remap would load, found out without a device.
#pragma once

#include <q4/device.hpp>
#include <vector>

#include "kernels/problem.h"
#include "runtime/backends/backend.hpp"
#include "runtime/jit/source.hpp"

namespace q4::gpu {

/// The library's own planning runs, over a driver that only notes: these are the kernels that it will ask for, once
/// each.
std::vector<jit::Source> needed_sources(const DeviceInfo& info, const Limits& limits, const MatrixShape& shape,
                                        const PlanOptions& options, const TuningRecord* tuned);

jit::Source column_remap_source();

}  // namespace q4::gpu
