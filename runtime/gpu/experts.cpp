// Places experts in their memory.
#include "runtime/gpu/experts.hpp"

#include "runtime/base/check.hpp"

namespace q4::gpu {

Experts::Experts(std::shared_ptr<Driver> driver, Kernels& kernels, const ExpertsShape& shape, Scratch& scratch)
    : shape_(shape) {
  if (shape.packed_k > INT32_MAX || shape.n > INT32_MAX)
    fail(ErrorCode::kUnsupported, "QuantizedExperts: k = {} (packed {}) or n = {} exceeds {}: split the matrices",
         shape.k, shape.packed_k, shape.n, INT32_MAX);
  const std::size_t stride = Matrix::placed_bytes(shape);
  memory_ = Buffer(driver, stride * static_cast<std::size_t>(shape.experts), MemoryKind::kWeights);
  matrices_.reserve(static_cast<std::size_t>(shape.experts));
  for (std::size_t e = 0; e < static_cast<std::size_t>(shape.experts); ++e)
    matrices_.emplace_back(driver, kernels, shape, scratch, memory_.as<std::uint8_t>() + e * stride);
}

}  // namespace q4::gpu
