// How long reading takes and nothing else: the floor under every multiplication by cold weights.
#pragma once

#include <cstddef>
#include <memory>

#include "runtime/backends/backend.hpp"

namespace q4::autotune {

/// Microseconds that reading `bytes` of cold memory takes, as time_runs() times it. 0: unknown, because a prebuilt cache
/// lacks the kernel and there is no compiler. On a GPU the best of a few launch shapes, on the CPU of a few rounds.
double read_floor_us(const std::shared_ptr<DeviceBackend>& device, std::size_t bytes);

}  // namespace q4::autotune
