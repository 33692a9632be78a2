// The CPU backend: packed 4-bit weights multiplied with SIMD chosen at run time, on a thread pool of its own.
#pragma once

#include <memory>

#include "runtime/backends/backend.hpp"

namespace q4 {

inline constexpr DeviceTraits kCpuTraits{.host_addressable = true,
                                         .asynchronous = false,
                                         .compiles = false,
                                         .quantizes_activations = true,
                                         .fp32_activations = true,
                                         .blas_finishes = true,
                                         .alignment = 1,
                                         .stride_multiple = 1};

/// One device, "cpu". `context` outlives the backend and what it opens. Never throws for a missing instruction set:
/// every processor has at least the portable kernels. $Q4_CPU_ISA (README.md) forces an instruction set for tests.
std::unique_ptr<Backend> make_cpu_backend(const BackendContext& context);

}  // namespace q4
