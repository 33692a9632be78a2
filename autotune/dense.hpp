// The dense BLAS, with which the tuner and q4-bench compare.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "runtime/backends/backend.hpp"

namespace q4::autotune {

/// out[m, n] = x[m, k] @ w[k, n], all dense, contiguous and of one type. Keeps what it needs of the device.
using Dense = std::function<void(void* stream, const void* x, const void* w, void* out)>;

/// Null where there is no BLAS for this type.
Dense dense_blas(const std::shared_ptr<DeviceBackend>& device, std::int64_t k, std::int64_t n, std::int64_t m,
                 DType type);

}  // namespace q4::autotune
