// Zeros of checkpoints, eight in a word, to a byte each.
#pragma once

#include <cstdint>
#include <cstring>

namespace q4 {

/// Nibbles of GPTQ's words, low bits first: pairs of bytes. `columns`: a multiple of 8.
inline void unpack_gptq_zeros(const std::uint32_t* words, std::int64_t columns, int add, std::uint8_t* to) {
  const auto* bytes = reinterpret_cast<const std::uint8_t*>(words);
  for (std::int64_t i = 0; i < columns / 2; ++i) {
    to[2 * i] = static_cast<std::uint8_t>((bytes[i] + add) & 15);
    to[2 * i + 1] = static_cast<std::uint8_t>(((bytes[i] >> 4) + add) & 15);
  }
}

/// Four nibbles to the low ends of four 16-bit lanes.
inline std::uint64_t spread_nibbles(std::uint64_t nibbles) {
  nibbles = (nibbles | nibbles << 24) & 0x000000FF000000FFu;
  return (nibbles | nibbles << 12) & 0x000F000F000F000Fu;
}

/// AWQ's order 0, 2, 4, 6, 1, 3, 5, 7: even columns in the lower half of a word, odd ones in the upper.
inline void unpack_awq_zeros(const std::uint32_t* words, std::int64_t columns, std::uint8_t* to) {
  for (std::int64_t w = 0; w < columns / 8; ++w) {
    const std::uint64_t bytes = spread_nibbles(words[w] & 0xFFFFu) | spread_nibbles(words[w] >> 16) << 8;
    std::memcpy(to + 8 * w, &bytes, sizeof bytes);
  }
}

}  // namespace q4
