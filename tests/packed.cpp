// The drawing of kernels/layout.h, followed element by element.
#include "packed.hpp"

#include <algorithm>
#include <cstring>

namespace q4::test {
namespace {

constexpr int kPadding = -1;

void order_rows(PackedMatrix& packed, const PlainMatrix& plain) {
  const int unit = packed.unit;
  bool whole = true;  // every unit lies in one group
  for (int p = 0; p < plain.k; ++p) whole = whole && plain.group[p] == plain.group[p / unit * unit];
  packed.identity = whole && std::is_sorted(plain.group.begin(), plain.group.end());
  if (packed.identity) {
    for (int p = 0; p < plain.k; ++p) packed.x_map.push_back(p);
    return;
  }
  for (int g = 0; g < plain.groups; ++g) {
    for (int r = 0; r < plain.k; ++r)
      if (plain.group[r] == g) packed.x_map.push_back(r);
    while (packed.x_map.size() % static_cast<std::size_t>(unit) != 0) packed.x_map.push_back(kPadding);
  }
}

void put(PackedMatrix& packed, int p, int column, std::uint8_t code) {
  const int strip = column / 64, tile = column % 64 / 16, g = column % 8, upper_column = column % 16 / 8;
  const int slab = p / 128, half = p % 128 / 64, word = p % 64 / 16, upper_row = p % 16 / 8, t = p % 8 / 2, odd = p % 2;
  const int lane = 4 * g + t, nibble = 4 * odd + 2 * upper_row + upper_column;
  const std::size_t byte = (static_cast<std::size_t>(strip) * (packed.k / 128) + slab) * 4096 + tile * 1024 +
                           half * 512 + lane * 16 + word * 4 + nibble / 2;
  packed.codes[byte] |= static_cast<std::uint8_t>(code << (4 * (nibble % 2)));
}

}  // namespace

PackedMatrix pack_reference(const PlainMatrix& plain, int unit, int least_k) {
  PackedMatrix packed;
  packed.n = static_cast<int>(plain.n), packed.unit = unit, packed.x_k = static_cast<int>(plain.k);
  order_rows(packed, plain);
  while (packed.x_map.size() % 128 != 0 || static_cast<int>(packed.x_map.size()) < least_k)
    packed.x_map.push_back(kPadding);
  packed.k = static_cast<int>(packed.x_map.size());

  const int strips = (packed.n + 63) / 64, sets = (packed.k + unit - 1) / unit;
  packed.codes.resize(static_cast<std::size_t>(strips) * (packed.k / 128) * 4096);
  packed.meta.resize(static_cast<std::size_t>(strips) * sets * 160);
  for (int p = 0; p < packed.k; ++p)
    for (int c = 0; c < packed.n && packed.x_map[p] != kPadding; ++c)
      put(packed, p, c, plain.codes[packed.x_map[p] * plain.n + c]);

  for (int set = 0; set < sets; ++set) {
    const int first = packed.x_map[set * unit];  // padding stands at the end of a unit, so this says if all of it is
    packed.group.push_back(first == kPadding ? 0 : plain.group[first]);
    for (int c = 0; c < packed.n; ++c) {
      const std::size_t from = packed.group.back() * plain.n + c;
      std::uint8_t* at = &packed.meta[(static_cast<std::size_t>(c / 64) * sets + set) * 160];
      const int tile = c % 64 / 16, g = c % 8, upper = c % 16 / 8;
      const std::uint16_t scale = half_bits(plain.scales[from]);
      std::memcpy(at + g * 16 + tile * 4 + upper * 2, &scale, 2);
      at[128 + g * 4 + tile] |= static_cast<std::uint8_t>(plain.zeros[from] << (4 * upper));
    }
  }
  return packed;
}

ApartMeta apart(const PackedMatrix& packed) {
  ApartMeta to;
  const std::size_t strips = (packed.n + 63) / 64, sets = packed.meta.size() / 160 / strips;
  for (std::size_t set = 0; set < sets; ++set)
    for (std::size_t strip = 0; strip < strips; ++strip) {
      const auto from = packed.meta.begin() + static_cast<std::ptrdiff_t>((strip * sets + set) * 160);
      to.scales.insert(to.scales.end(), from, from + 128);
      to.zeros.insert(to.zeros.end(), from + 128, from + 160);
    }
  return to;
}

}  // namespace q4::test
