// Orders rows by group and pads groups to whole units.
#include "runtime/choose/row_order.hpp"

#include <algorithm>

namespace q4 {
namespace {

constexpr std::int64_t kSlab = 128;  // kSlabRows of kernels/layout.h

std::int64_t round_up(std::int64_t value, std::int64_t to) { return (value + to - 1) / to * to; }

/// 4-bit codes and 20 bits a column for each unit: what `unit` makes the packed weights weigh, in bits a column.
std::int64_t weight(const std::vector<std::int64_t>& counts, std::int64_t unit) {
  std::int64_t units = 0;
  for (const auto count : counts) units += (count + unit - 1) / unit;
  return round_up(units * unit, kSlab) * 4 + units * 20;
}

}  // namespace

bool is_unit(std::int64_t rows) { return rows == 16 || rows == 32 || rows == 64 || rows % kSlab == 0; }

RowOrder make_row_order(std::int64_t k, std::int64_t group_size, std::int64_t groups,
                        std::span<const std::int32_t> g_idx) {
  RowOrder order;
  if (g_idx.empty() && (groups == 1 || is_unit(group_size))) {
    // One group may be padded at its end; so may the last of several.
    order.unit = groups == 1 ? round_up(k, kSlab) : group_size;
    order.k = round_up(k, kSlab);
    order.group.resize(static_cast<std::size_t>((order.k + order.unit - 1) / order.unit));
    for (std::size_t u = 0; u < order.group.size(); ++u)
      order.group[u] = static_cast<std::int64_t>(u) < groups ? static_cast<std::int32_t>(u) : -1;
    return order;
  }
  order.identity = false;
  std::vector<std::vector<std::int32_t>> rows(static_cast<std::size_t>(groups));
  for (std::int64_t r = 0; r < k; ++r) {
    const auto g = g_idx.empty() ? r / group_size : g_idx[static_cast<std::size_t>(r)];
    rows[static_cast<std::size_t>(g)].push_back(static_cast<std::int32_t>(r));
  }
  std::vector<std::int64_t> counts;
  for (const auto& members : rows) counts.push_back(static_cast<std::int64_t>(members.size()));
  order.unit = 16;
  for (const std::int64_t unit : {32, 64, 128})
    if (weight(counts, unit) <= weight(counts, order.unit)) order.unit = unit;
  // Large uniform groups: one set of scales a group, not one a slab.
  const auto most = *std::max_element(counts.begin(), counts.end());
  if (const auto large = round_up(most, kSlab); order.unit == kSlab && weight(counts, large) <= weight(counts, kSlab))
    order.unit = large;

  for (std::size_t g = 0; g < rows.size(); ++g) {
    const auto padded = round_up(counts[g], order.unit);
    order.source.insert(order.source.end(), rows[g].begin(), rows[g].end());
    order.source.insert(order.source.end(), static_cast<std::size_t>(padded - counts[g]), -1);
    order.group.insert(order.group.end(), static_cast<std::size_t>(padded / order.unit), static_cast<std::int32_t>(g));
  }
  order.k = round_up(static_cast<std::int64_t>(order.source.size()), kSlab);
  order.source.resize(static_cast<std::size_t>(order.k), -1);
  order.group.resize(static_cast<std::size_t>((order.k + order.unit - 1) / order.unit), -1);
  return order;
}

}  // namespace q4
