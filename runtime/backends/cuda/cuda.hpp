// The CUDA backend.
#pragma once

#include <memory>

#include "runtime/backends/backend.hpp"
#include "runtime/backends/context.hpp"

namespace q4::cuda {

inline constexpr DeviceTraits kTraits;

std::unique_ptr<Backend> make_cuda_backend(const BackendContext& context);

}  // namespace q4::cuda
