// Packed order: which source row stands where in the packed weights (kernels/layout.h), and whose scales it uses.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace q4 {

struct RowOrder {
  std::int64_t k = 0;                ///< packed rows, a multiple of 128
  std::int64_t unit = 0;             ///< packed rows of a set of scales: 16, 32, 64 or a multiple of 128
  bool identity = true;              ///< packed row p is source row p for p < source k, and padding from there on
  std::vector<std::int32_t> source;  ///< [k] source row of a packed row, -1: padding. Empty when identity
  std::vector<std::int32_t> group;   ///< [k / unit rounded up] group of each unit
};

/// Whether so many packed rows can share a set of scales: groups of other sizes are padded.
bool is_unit(std::int64_t rows);

/// `g_idx` empty: row r belongs to group r / group_size. Otherwise it has one group a row, in [0, groups), already
/// checked; rows of one group keep their order (stable). Groups that are no whole unit are padded; the unit is the one
/// that makes the packed weights smallest.
RowOrder make_row_order(std::int64_t k, std::int64_t group_size, std::int64_t groups,
                        std::span<const std::int32_t> g_idx);

}  // namespace q4
