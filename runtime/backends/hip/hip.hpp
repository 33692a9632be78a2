// The HIP backend.
#pragma once

#include <memory>

#include "runtime/backends/backend.hpp"
#include "runtime/backends/context.hpp"

namespace q4::hip {

inline constexpr DeviceTraits kTraits;

std::unique_ptr<Backend> make_hip_backend(const BackendContext& context);

}  // namespace q4::hip
