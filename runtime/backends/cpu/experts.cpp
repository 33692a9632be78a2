// Lays out experts one after the other.
#include "runtime/backends/cpu/experts.hpp"

namespace q4::cpu {

CpuExperts::CpuExperts(const ExpertsShape& shape, ThreadPool& pool, const std::shared_ptr<MemoryLedger>& ledger)
    : shape_(shape) {
  matrices_.reserve(std::size_t(shape.experts));
  for (std::int64_t expert = 0; expert < shape.experts; ++expert) matrices_.emplace_back(shape, shape.gate_up, pool);
  const std::size_t each = std::size_t(matrices_[0].tiles) * matrices_[0].tile_bytes();  // a multiple of 64 bytes
  weights_ = Buffer(ledger, std::size_t(shape.experts) * each, MemoryKind::kWeights);
  for (std::size_t expert = 0; expert < matrices_.size(); ++expert)
    matrices_[expert].weights = Buffer::borrowed(weights_.as<std::byte>() + expert * each);
}

std::size_t CpuExperts::bytes() const { return matrices_.size() * matrices_[0].bytes(); }

}  // namespace q4::cpu
