// From which m an untuned plan reconstructs W for the BLAS, and in slices of which size.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/reconstruct.h"

namespace q4::choose {

/// First m at which an untuned plan reconstructs W for the BLAS where gemv alone serves.
constexpr std::int64_t kReconstructFrom = 33;
/// The same where the batch kernel serves, estimated (kernels/README.md): mma.sync is what the BLAS has too on sm_80 to
/// 89 and sm_120, but a third of its rate on sm_100.
constexpr std::int64_t reconstruct_from(const Limits& limits) {
  if (limits.arch < 80 || limits.arch == 90) return INT64_MAX;
  return limits.arch >= 100 && limits.arch < 120 ? 257 : 2049;
}

/// W is reconstructed in slices of at most this many bytes, so that the workspace stays small beside the weights.
constexpr std::int64_t kSliceBytes = 256 << 20;
/// Columns of a slice of a k x n matrix.
constexpr std::int64_t slice_columns(std::int64_t k, std::int64_t n) {
  return std::clamp<std::int64_t>(kSliceBytes / (2 * k) / kStripColumns * kStripColumns, kStripColumns,
                                  (n + kStripColumns - 1) / kStripColumns * kStripColumns);
}

}  // namespace q4::choose
