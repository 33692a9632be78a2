// Packed weights in device memory, as kernels/layout.h draws them.
#pragma once

#include <cstdint>
#include <memory>

#include "runtime/gpu/kernels.hpp"
#include "runtime/gpu/memory.hpp"

namespace q4::gpu {

class Matrix : public PackedMatrix, public MatrixShape {
 public:
  Matrix() = default;  ///< nothing of it on a device: what plans choose follows from the numbers alone
  /// Codes are packed by a kernel on the device; scales and zeros, sixteen times smaller, on the host.
  Matrix(std::shared_ptr<Driver> driver, Kernels& kernels, const MatrixSource& source);

  std::size_t bytes() const override { return codes.bytes() + meta.bytes() + x_map.bytes() + bias.size() * 4; }

  Buffer codes, meta;
  Buffer x_map;             ///< int32 [packed_k], or empty: not mapped
  std::vector<float> bias;  ///< [n] or empty: a plan converts it to its activations' type
};

}  // namespace q4::gpu
