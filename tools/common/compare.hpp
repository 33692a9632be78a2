// How q4-verify decides that an output is right.
#pragma once

#include <cstddef>
#include <cstdint>
#include <q4/device.hpp>
#include <set>
#include <vector>

namespace q4::tools {

/// `count` normal numbers, the same every time.
std::vector<std::byte> random_rows(DType type, std::int64_t count);

/// The columns that the reference computes: the first 8, the last 8 and random ones. `wanted` 0: all; -1: as many as a
/// matrix of k rows multiplied by m rows affords in a fraction of a second, at least 64.
std::set<std::int64_t> sample_columns(std::int64_t k, std::int64_t n, std::int64_t m, std::int64_t wanted);

/// Adds columns of `out` [m, n] with an element that is not finite, at most 64: poison that was left shows wherever it
/// is.
void add_suspects(DType type, const std::vector<std::byte>& out, std::int64_t m, std::int64_t n,
                  std::set<std::int64_t>& columns);

/// ||out - reference|| / ||reference|| over these columns of `out` [m, n]; reference is [m, columns]. A NaN where the
/// reference has one, and an infinity where it is too large for the type, are right; any other value that is not finite
/// makes the error infinite. Below the type's normal range half a step of its subnormals is not counted as an error: no
/// value of the type could be nearer.
double relative_error(DType type, const std::vector<std::byte>& out, const std::vector<double>& reference,
                      std::int64_t m, std::int64_t n, const std::vector<std::int64_t>& columns);

}  // namespace q4::tools
