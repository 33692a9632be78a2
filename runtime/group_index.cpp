// Tells act-order from the ways in which tools write that there is none.
#include "runtime/group_index.hpp"

#include <algorithm>
#include <cstring>

#include "runtime/base/check.hpp"

namespace q4 {
namespace {

std::vector<std::int64_t> widen(DType type, const void* data, std::int64_t k) {
  std::vector<std::int64_t> values(static_cast<std::size_t>(k));
  if (type == DType::kI64) {
    std::memcpy(values.data(), data, values.size() * sizeof(std::int64_t));
    return values;
  }
  for (std::size_t r = 0; r < values.size(); ++r) {
    std::int32_t value;
    std::memcpy(&value, static_cast<const std::byte*>(data) + r * sizeof value, sizeof value);
    values[r] = value;
  }
  return values;
}

/// Literal groups may be of any size (slices of a matrix have such), but more rows than a group has are suspicious.
std::string crowded(const std::vector<std::int32_t>& rows, std::int64_t group_size, std::int64_t groups) {
  std::vector<std::int64_t> counts(static_cast<std::size_t>(groups));
  for (const auto g : rows) ++counts[static_cast<std::size_t>(g)];
  const auto most = std::max_element(counts.begin(), counts.end());
  if (*most <= group_size) return {};
  return fmt::format(
      "a g_idx puts {} rows into group {}, and the group size is {}: it is read literally, but a g_idx that was "
      "written "
      "in part looks like this",
      *most, most - counts.begin(), group_size);
}

}  // namespace

GroupIndex read_group_index(const char* call, DType type, const void* data, std::int64_t k, std::int64_t group_size,
                            std::int64_t groups) {
  const auto values = widen(type, data, k);
  const auto all = [&](std::int64_t value) {
    return std::all_of(values.begin(), values.end(), [&](auto v) { return v == value; });
  };
  GroupIndex index;
  const bool unset = all(-1);
  if (unset || (groups > 1 && all(0))) {
    index.note =
        fmt::format("a g_idx is {} for every row, as tools write it for \"no act-order\": rows are grouped by position",
                    unset ? -1 : 0);
    return index;
  }
  bool trivial = group_size % 8 == 0 && (k + group_size - 1) / group_size == groups;
  for (std::size_t r = 0; r < values.size(); ++r) {
    check(values[r] >= 0 && values[r] < groups,
          "{}: g_idx[{}] = {} is outside [0, groups = {}); a g_idx of -1 (unset) must be so for every row", call, r,
          values[r], groups);
    trivial &= values[r] == static_cast<std::int64_t>(r) / group_size;
  }
  if (trivial) return index;
  index.rows.assign(values.begin(), values.end());
  index.note = crowded(index.rows, group_size, groups);
  return index;
}

}  // namespace q4
