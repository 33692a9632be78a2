// Packed weights in device memory, as kernels/layout.h draws them.
#pragma once

#include <cstdint>
#include <memory>

#include "runtime/gpu/kernels.hpp"
#include "runtime/gpu/memory.hpp"

namespace q4::gpu {

class Matrix : public PackedMatrix {
 public:
  Matrix() = default;  ///< nothing of it on a device: what plans choose follows from the numbers alone
  /// Codes are packed by a kernel on the device; scales and zeros, sixteen times smaller, on the host.
  Matrix(std::shared_ptr<Driver> driver, Kernels& kernels, const MatrixSource& source);

  std::size_t bytes() const override { return codes.bytes() + meta.bytes() + x_map.bytes() + bias.size() * 4; }

  std::int64_t k = 0;  ///< of W and x
  std::int64_t n = 0;
  std::int64_t packed_k = 0;  ///< a multiple of 128
  std::int64_t unit = 0;
  std::int64_t group_size = 0;
  bool act_order = false;
  Buffer codes, meta;
  Buffer x_map;             ///< int32 [packed_k], or empty: identity
  std::vector<float> bias;  ///< [n] or empty: a plan converts it to its activations' type
};

}  // namespace q4::gpu
