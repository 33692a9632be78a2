// The stopwatch of the tuner and the tools: the same for every kind of device.
#pragma once

#include <functional>
#include <vector>

#include "runtime/backends/backend.hpp"

namespace q4::autotune {

/// Microseconds of each of `runs` runs of `work`, which launches on the stream that it is given. Where the device has
/// graphs the work is captured once and replayed between events, one time more than is counted, with a rest after long
/// work; else the work is called.
std::vector<double> time_runs(DeviceBackend& device, const std::function<void(void* stream)>& work, int runs);

}  // namespace q4::autotune
