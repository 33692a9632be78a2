// Adapters on the CPU: fp32, B by ranks in the packed order of columns.
#pragma once

#include <vector>

#include "runtime/backends/adapters.hpp"
#include "runtime/backends/cpu/kernels.hpp"

namespace q4::cpu {

class CpuAdapters final : public AdapterTable {
 public:
  using AdapterTable::AdapterTable;
  void set(std::int64_t index, std::int64_t rank, std::span<const float> a, std::span<const float> b,
           float scale) override;
  void remove(std::int64_t index) override;
  std::size_t bytes() const override;

  struct Entry {
    std::int64_t rank = 0;
    std::vector<float> a;  ///< [rank, k]
    std::vector<float> b;  ///< [rank, columns of whole tiles]
    float scale = 1;
  };
  /// Of a row; null: none.
  const Entry* entry(std::int32_t index) const;
  std::int64_t columns() const { return (shape.n + kTile - 1) / kTile * kTile; }

 private:
  std::vector<Entry> entries_ = std::vector<Entry>(std::size_t(shape.adapters));
};

/// low [rank] = scale x A, of one row of x [k] as it is given. `values`: room for k floats.
void shrink(const CpuAdapters::Entry& entry, const std::byte* x, Element element, std::int64_t k, float* values,
            float* low);
/// y [kTile] += low B for the columns of one tile.
void expand(const CpuAdapters::Entry& entry, const float* low, std::int64_t tile, std::int64_t columns, float* y);

}  // namespace q4::cpu
