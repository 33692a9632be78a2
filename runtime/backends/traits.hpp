// In what devices differ for the code above backends: properties instead of names.
#pragma once

#include <cstddef>
#include <cstdint>
#include <q4/device.hpp>

namespace q4 {

struct DeviceTraits {
  bool host_addressable = false;       ///< its memory is the host's: ordinary pointers, nothing is copied
  bool asynchronous = true;            ///< run() launches in a stream's order and returns; graphs capture it
  bool compiles = true;                ///< multiplies with kernels that are compiled, or found in a cache, first
  bool quantizes_activations = false;  ///< has Math::kInt8
  bool fp32_activations = false;       ///< has DType::kF32 beside fp16 and bf16
  bool blas_finishes = false;          ///< an epilogue follows reconstruct + BLAS too, in fp32
  std::size_t alignment = 16;          ///< bytes, of x and out; an element's size where that is more
  std::int64_t stride_multiple = 8;    ///< elements, of the row strides of x and out
};

/// Each backend states its own; runtime/backends.cpp lists them.
const DeviceTraits& traits_of(BackendKind kind);
inline const DeviceTraits& traits_of(Device device) { return traits_of(device.kind); }

}  // namespace q4
