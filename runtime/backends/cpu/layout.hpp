// The packed layout of the CPU backend: sizes and offsets that the packer, the kernels and the tests share.
//
// A tile is 64 columns, stored as one contiguous stream of blocks; a block is 128 packed rows; a segment is the 16, 32,
// 64 or 128 rows of a block that share scales:
//
//   tile 0: [block 0][block 1]...   tile 1: [block 0]...        block: [segment 0][segment 1]...
//   segment: [fp16 scale x 64][u8 zero x 64][octet 0: u32 x 64][octet 1: u32 x 64]...
//
// An octet is 8 consecutive packed rows: one 32-bit lane per column with the even rows in the low half and the odd rows
// in the high half, so that `lane >> 4 i` has row 2 i in the low nibble of its low half and row 2 i + 1 in the low
// nibble of its high half. A 16-bit table look-up then gives the pair of bf16 values that dot-product instructions and
// AMX want, and a 32-bit look-up gives one fp32 value:
//
//   bits  31..28 27..24 23..20 19..16 15..12 11..8  7..4   3..0
//   row      7      5      3      1      6     4     2      0
#pragma once

#include <cstddef>
#include <cstdint>

namespace q4::cpu {

inline constexpr int kTile = 64;                   // columns of a tile
inline constexpr int kBlock = 128;                 // packed rows of a block
inline constexpr int kHeader = kTile * 2 + kTile;  // bytes of scales and zeros before a segment's codes
inline constexpr int kOctet = kTile * 4;           // bytes of 8 rows

constexpr std::size_t segment_bytes(int segment) { return kHeader + std::size_t(segment / 8) * kOctet; }
constexpr std::size_t block_bytes(int segment) { return std::size_t(kBlock / segment) * segment_bytes(segment); }
constexpr int nibble_shift(int row) { return (row % 2) * 16 + (row / 2) * 4; }  // of row 0..7 in its octet's lane

/// GPTQ's word (row i in bits 4 i .. 4 i + 3) to the order above: swap nibbles 1, 2 and 5, 6, then bytes 1, 2.
constexpr std::uint32_t even_odd(std::uint32_t word) {
  std::uint32_t swap = ((word >> 4) ^ word) & 0x00F000F0u;
  word ^= swap ^ (swap << 4);
  swap = ((word >> 8) ^ word) & 0x0000FF00u;
  return word ^ swap ^ (swap << 8);
}
static_assert(even_odd(0x76543210u) == 0x75316420u);

}  // namespace q4::cpu
