// CpuExperts: matrices of one shape in one allocation.
#pragma once

#include <memory>
#include <vector>

#include "runtime/backends/cpu/packed.hpp"
#include "runtime/backends/experts.hpp"

namespace q4::cpu {

class CpuExperts final : public PackedExperts {
 public:
  CpuExperts(const ExpertsShape& shape, ThreadPool& pool, const std::shared_ptr<MemoryLedger>& ledger);

  const ExpertsShape& shape() const override { return shape_; }
  std::size_t bytes() const override;
  void update(std::int64_t expert, const MatrixSource& source, void* stream) override {
    matrices_[std::size_t(expert)].update(source, stream);
  }
  UnpackedSource unpack(std::int64_t expert) const override { return matrices_[std::size_t(expert)].unpack(); }

  /// Its weights are a part of the one allocation.
  const CpuMatrix& matrix(std::int64_t expert) const { return matrices_[std::size_t(expert)]; }

 private:
  ExpertsShape shape_;
  Buffer weights_;
  std::vector<CpuMatrix> matrices_;
};

}  // namespace q4::cpu
