// Divides units among ranks, and groups among slices of rows.
#include "runtime/slice.hpp"

#include <algorithm>
#include <numeric>

#include "runtime/base/check.hpp"
#include "runtime/choose/row_order.hpp"

namespace q4 {
namespace {

Extent extent_of(const char* call, const Slice& s, std::int64_t first, std::int64_t extent, const char* name) {
  check(extent > 0 && extent % s.unit == 0,
        "{}: slice.unit = {} does not divide {} = {}: use a unit (a head's columns) that does", call, s.unit, name,
        extent);
  const std::int64_t units = extent / s.unit, world = s.world, rank = s.rank;
  if (s.share && units < world) {
    check(s.along == Slice::Along::kColumns, "{}: slice.share is set for rows: shared rows would be summed twice",
          call);
    check(world % units == 0,
          "{}: slice.world = {} ranks cannot share {} units of {} columns evenly: use a multiple of {} ranks", call,
          world, units, s.unit, units);
    return {first + rank / (world / units) * s.unit, s.unit, 0};
  }
  const std::int64_t each = (units + world - 1) / world;
  check(units % world == 0 || s.pad,
        "{}: {} = {} in units of {} makes {} units, which {} ranks cannot share evenly: set slice.pad to pad it with "
        "zeros to {}, or use another number of ranks",
        call, name, extent, s.unit, units, world, each * world * s.unit);
  const std::int64_t from = std::min(rank * each, units), to = std::min(from + each, units);
  return {first + from * s.unit, (to - from) * s.unit, (each - (to - from)) * s.unit};
}

}  // namespace

std::vector<Extent> extents_of(const char* call, const Slice& s, std::int64_t whole, const char* name) {
  if (s.along == Slice::Along::kWhole) return {{0, whole, 0}};
  check(s.along <= Slice::Along::kRows, "{}: slice.along = {} is not a value of Slice::Along", call,
        static_cast<int>(s.along));
  check(s.world >= 1 && s.rank >= 0 && s.rank < s.world, "{}: slice.rank = {} is outside [0, slice.world = {})", call,
        s.rank, s.world);
  check(s.unit >= 8 && s.unit % 8 == 0, "{}: slice.unit = {} must be a positive multiple of 8", call, s.unit);
  if (s.parts.empty()) return {extent_of(call, s, 0, whole, name)};
  check(s.along == Slice::Along::kColumns, "{}: slice.parts is set for rows: matrices are fused by columns", call);
  std::vector<Extent> extents;
  std::int64_t first = 0;
  for (const std::int64_t part : s.parts) {
    check(part > 0 && part <= whole, "{}: slice.parts has an element of {}, outside [1, {} = {}]", call, part, name,
          whole);
    extents.push_back(extent_of(call, s, first, part, "an element of slice.parts"));
    first += part;
  }
  check(first == whole, "{}: slice.parts add up to {}, but {} = {}", call, first, name, whole);
  return extents;
}

RowSlice slice_rows(const Extent& rows, std::int64_t whole, std::int64_t group_size, std::int64_t groups,
                    std::span<const std::int32_t> g_idx, bool may_index) {
  RowSlice slice{rows.first, rows.count, rows.count + rows.padding, group_size, {}, {}};
  slice.source_group.resize(static_cast<std::size_t>(groups));
  std::iota(slice.source_group.begin(), slice.source_group.end(), 0);
  if (rows.count == whole && rows.padding == 0) {
    slice.g_idx.assign(g_idx.begin(), g_idx.end());
    return slice;
  }
  if (groups == 1 && rows.count > 0 && rows.padding == 0) {
    slice.group_size = slice.k;
    return slice;
  }
  // Whole groups stay groups; where one is divided, smaller groups with the same scales serve as well.
  const std::int64_t part = std::gcd(std::gcd(group_size, rows.first), rows.padding > 0 ? rows.count : 0);
  if (g_idx.empty() && (is_unit(part) || !may_index)) {
    slice.group_size = part;
    slice.source_group.clear();
    for (std::int64_t row = 0; row < slice.k; row += part)
      slice.source_group.push_back(row < rows.count ? static_cast<std::int32_t>((rows.first + row) / group_size) : -1);
    return slice;
  }
  // Else each row names its group, of those that the slice has.
  std::vector<std::int32_t> number(static_cast<std::size_t>(groups) + 1, -1);
  const auto group_of = [&](std::int64_t row) -> std::int64_t {
    if (row >= rows.count) return groups;
    return g_idx.empty() ? (rows.first + row) / group_size : g_idx[static_cast<std::size_t>(rows.first + row)];
  };
  for (std::int64_t row = 0; row < slice.k; ++row) number[static_cast<std::size_t>(group_of(row))] = 0;
  slice.source_group.clear();
  for (std::int64_t g = 0; g <= groups; ++g) {
    if (number[static_cast<std::size_t>(g)] != 0) continue;
    number[static_cast<std::size_t>(g)] = static_cast<std::int32_t>(slice.source_group.size());
    slice.source_group.push_back(g == groups ? -1 : static_cast<std::int32_t>(g));
  }
  for (std::int64_t row = 0; row < slice.k; ++row)
    slice.g_idx.push_back(number[static_cast<std::size_t>(group_of(row))]);
  return slice;
}

}  // namespace q4
