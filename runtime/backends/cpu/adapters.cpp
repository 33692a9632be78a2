// Products of low rank, plainly.
#include "runtime/backends/cpu/adapters.hpp"

#include <cstring>

#include "kernels/layout.h"
#include "runtime/base/convert.hpp"

namespace q4::cpu {

void CpuAdapters::set(std::int64_t index, std::int64_t rank, std::span<const float> a, std::span<const float> b,
                      float scale) {
  Entry entry;
  entry.rank = rank, entry.scale = scale;
  entry.a.assign(a.begin(), a.end());
  entry.b.resize(std::size_t(rank * columns()));
  for (std::int64_t column = 0; column < shape.n; ++column) {
    const std::int64_t packed = shape.gate_up ? paired_place(int(column), int(shape.n)) : column;
    for (std::int64_t r = 0; r < rank; ++r)
      entry.b[std::size_t(r * columns() + packed)] = b[std::size_t(column * rank + r)];
  }
  entries_[std::size_t(index)] = std::move(entry);
}

void CpuAdapters::remove(std::int64_t index) { entries_[std::size_t(index)] = {}; }

std::size_t CpuAdapters::bytes() const {
  std::size_t all = 0;
  for (const Entry& entry : entries_) all += (entry.a.size() + entry.b.size()) * sizeof(float);
  return all;
}

const CpuAdapters::Entry* CpuAdapters::entry(std::int32_t index) const {
  if (index < 0 || index >= shape.adapters) return nullptr;
  const Entry& found = entries_[std::size_t(index)];
  return found.rank > 0 ? &found : nullptr;
}

void shrink(const CpuAdapters::Entry& entry, const std::byte* x, Element element, std::int64_t k, float* values,
            float* low) {
  for (std::int64_t i = 0; i < k; ++i) {
    std::uint16_t bits = 0;
    if (element == Element::kF32)
      std::memcpy(&values[i], x + 4 * i, 4);
    else
      std::memcpy(&bits, x + 2 * i, 2);
    if (element == Element::kF16) values[i] = float_from_half(bits);
    if (element == Element::kBF16) values[i] = float_from_bf16(bits);
  }
  constexpr std::int64_t kLanes = 16;  // sums side by side, which a compiler makes vectors of
  for (std::int64_t r = 0; r < entry.rank; ++r) {
    const float* a = entry.a.data() + r * k;
    float sums[kLanes] = {};
    std::int64_t i = 0;
    for (; i + kLanes <= k; i += kLanes)
      for (std::int64_t j = 0; j < kLanes; ++j) sums[j] += values[i + j] * a[i + j];
    for (; i < k; ++i) sums[i % kLanes] += values[i] * a[i];
    float sum = 0;
    for (const float s : sums) sum += s;
    low[r] = sum * entry.scale;
  }
}

void expand(const CpuAdapters::Entry& entry, const float* low, std::int64_t tile, std::int64_t columns, float* y) {
  for (std::int64_t r = 0; r < entry.rank; ++r) {
    const float* b = entry.b.data() + r * columns + tile * kTile;
    for (int c = 0; c < kTile; ++c) y[c] += low[r] * b[c];
  }
}

}  // namespace q4::cpu
