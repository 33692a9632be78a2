// Groups of packed rows.
#include "runtime/backends/packed_groups.hpp"

#include <algorithm>

namespace q4 {

PackedGroups::PackedGroups(const MatrixSource& s) : groups_(s.groups), group_(s.order.group) {
  std::vector<bool> used(static_cast<std::size_t>(groups_));
  for (const auto group : group_)
    if (group >= 0) used[static_cast<std::size_t>(group)] = true;
  for (std::int64_t g = 0; g < groups_; ++g) {
    if (used[static_cast<std::size_t>(g)]) continue;
    empty_.push_back(static_cast<std::int32_t>(g));
    scales_.insert(scales_.end(), s.scales.begin() + g * s.n, s.scales.begin() + (g + 1) * s.n);
    zeros_.insert(zeros_.end(), s.zeros.begin() + g * s.n, s.zeros.begin() + (g + 1) * s.n);
  }
}

void PackedGroups::begin(UnpackedSource& to, std::int64_t n) const {
  to.scales.resize(static_cast<std::size_t>(groups_ * n));
  to.zeros.resize(to.scales.size());
  for (std::size_t i = 0; i < empty_.size(); ++i) {
    const auto from = static_cast<std::int64_t>(i) * n;
    std::copy_n(scales_.begin() + from, n, to.scales.begin() + empty_[i] * n);
    std::copy_n(zeros_.begin() + from, n, to.zeros.begin() + empty_[i] * n);
  }
}

std::vector<std::int32_t> PackedGroups::g_idx(const std::vector<std::int32_t>& source, std::int64_t unit,
                                              std::int64_t k) const {
  std::vector<std::int32_t> g_idx(static_cast<std::size_t>(k));
  for (std::size_t p = 0; p < source.size(); ++p)
    if (source[p] >= 0) g_idx[static_cast<std::size_t>(source[p])] = group_[p / static_cast<std::size_t>(unit)];
  return g_idx;
}

}  // namespace q4
