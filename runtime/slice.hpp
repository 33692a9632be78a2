// Which columns or rows a Slice means, and what it makes of the groups.
#pragma once

#include <cstdint>
#include <q4/slice.hpp>
#include <span>
#include <vector>

namespace q4 {

/// `count` columns or rows from `first` on, then `padding` zeros.
struct Extent {
  std::int64_t first = 0, count = 0, padding = 0;
};

/// What the slice takes of an extent ("n" or "k") that it divides; one for each of Slice::parts. Throws
/// kInvalidArgument; `call` begins the text.
std::vector<Extent> extents_of(const char* call, const Slice& slice, std::int64_t whole, const char* name);

/// The rows of a slice and their groups.
struct RowSlice {
  std::int64_t first = 0, count = 0;       ///< of the whole matrix: multiples of 8
  std::int64_t k = 0;                      ///< with the padding
  std::int64_t group_size = 0;             ///< of the slice
  std::vector<std::int32_t> source_group;  ///< of each group of the slice: its group in the whole, -1: scales are 0
  std::vector<std::int32_t> g_idx;         ///< [k] or empty
};

/// `g_idx` empty: row r of the whole is in group r / group_size. Without `may_index` the slice has no g_idx either, even
/// where that would pack smaller.
RowSlice slice_rows(const Extent& rows, std::int64_t whole, std::int64_t group_size, std::int64_t groups,
                    std::span<const std::int32_t> g_idx, bool may_index);

}  // namespace q4
