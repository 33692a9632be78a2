// Experts on a GPU: matrices of one shape, one after the other in one memory.
#pragma once

#include <memory>
#include <vector>

#include "runtime/backends/experts.hpp"
#include "runtime/gpu/matrix.hpp"

namespace q4::gpu {

class Experts final : public PackedExperts {
 public:
  Experts(std::shared_ptr<Driver> driver, Kernels& kernels, const ExpertsShape& shape, Scratch& scratch);

  const ExpertsShape& shape() const override { return shape_; }
  std::size_t bytes() const override { return memory_.bytes(); }
  void update(std::int64_t expert, const MatrixSource& source, void* stream) override {
    matrices_[static_cast<std::size_t>(expert)].update(source, stream);
  }
  UnpackedSource unpack(std::int64_t expert) const override {
    return matrices_[static_cast<std::size_t>(expert)].unpack();
  }

  const Matrix& first() const { return matrices_.front(); }
  /// Bytes from any part of an expert to the same of the next.
  std::int64_t stride() const { return static_cast<std::int64_t>(Matrix::placed_bytes(first())); }

 private:
  ExpertsShape shape_;
  Buffer memory_;
  std::vector<Matrix> matrices_;
};

}  // namespace q4::gpu
