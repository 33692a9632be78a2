// Slice: what one of several ranks holds of a matrix (tensor parallelism).
#pragma once

#include <cstdint>
#include <q4/export.hpp>
#include <vector>

namespace q4 {

/// The part of W that rank `rank` of `world` holds. With x_r the columns of x that belong to the rows of rank r:
///
///     columns   x @ W = [x @ W_0, x @ W_1, ...]        each rank has its own columns of the result, and of the bias
///     rows      x @ W = x_0 @ W_0 + x_1 @ W_1 + ...    the bias is in rank 0's
///
/// The divided extent consists of units of `unit` columns or rows, of which every rank gets as many, in order. Where
/// they do not divide, loading is a kInvalidArgument unless `pad` is set.
///
/// Rows of a group that two ranks share: each gets the group's scales. Rows with act-order keep their groups, and only
/// the groups that the rank's rows belong to are kept: x_r are the columns of x from rank * k / world on, as ever.
struct Slice {
  enum class Along : std::uint8_t { kWhole, kColumns, kRows };
  Along along = Along::kWhole;
  int rank = 0, world = 1;
  std::int64_t unit = 8;  ///< columns or rows that stay together, such as a head's: a multiple of 8
  /// Columns of each matrix that was fused into this one (q, k, v: {4096, 1024, 1024}): each is divided by itself, and
  /// the rank's parts stand side by side. Empty: it is one.
  std::vector<std::int64_t> parts = {};
  /// Columns only. Fewer units than ranks: rank r gets unit r / (world / units), which ranks then share, as key and
  /// value heads are. `world` must be a multiple of the units.
  bool share = false;
  /// Where units do not divide, every rank holds ceil(units / world) of them, and what the last ranks lack is zero:
  /// further columns that are 0 in the result, or rows that want further elements of x (of any finite value).
  bool pad = false;

  static Slice columns(int rank, int world) { return {Along::kColumns, rank, world}; }
  static Slice rows(int rank, int world) { return {Along::kRows, rank, world}; }
  /// Columns by whole heads of `head` columns, which ranks may share. `fused`: heads of each matrix that was fused into
  /// one ({32, 8, 8}); empty: every matrix is one.
  static Slice heads(int rank, int world, std::int64_t head, const std::vector<std::int64_t>& fused = {}) {
    Slice slice{Along::kColumns, rank, world, head};
    for (const std::int64_t count : fused) slice.parts.push_back(count * head);
    slice.share = true;
    return slice;
  }
};

}  // namespace q4
