// A second, independent packing for tests: from (packed row, column) to bits, where kernels/pack.h goes the other way.
#pragma once

#include <cstdint>
#include <vector>

#include "reference.hpp"

namespace q4::test {

struct PackedMatrix {
  int k = 0, n = 0, unit = 0;       ///< k: packed rows
  int x_k = 0;                      ///< rows of W
  bool identity = true;             ///< packed row p is row p of W
  std::vector<std::int32_t> x_map;  ///< [k] source row of each packed row, -1: padding
  std::vector<std::int32_t> group;  ///< [k / unit rounded up]
  std::vector<std::uint8_t> codes, meta;
};

/// Rows sorted by group, groups padded to units, k padded to 128 and then up to `least_k`. `unit`: 16, 32, 64 or a
/// multiple of 128; without act-order, rows stay where they are if groups are whole units.
PackedMatrix pack_reference(const PlainMatrix& plain, int unit, int least_k = 0);

/// The same scales and zeros apart: set > strip, scales in one memory and zeros in another.
struct ApartMeta {
  std::vector<std::uint8_t> scales, zeros;
};
ApartMeta apart(const PackedMatrix& packed);

}  // namespace q4::test
