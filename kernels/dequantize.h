// A word of codes becomes the register A fragment of one k16 step of mma.sync or wgmma, scaled, in 16-bit floats.
#pragma once
#include "layout.h"
#include "words.h"

namespace q4 {

/// Scales and zeros of columns g and g + 8. Pairs hold a value twice. offset + the bits of `center` = q - z, exactly:
///   fp16  0x6400 | q = 1024 + q, offset -(1024 + z) = 0xe400 | z                          (column g)
///         0x6400 | 16 q = 1024 + 16 q; / 16 = 64 + q, offset -(64 + z) = 0xd400 | 16 z    (column g + 8: no shift)
///   bf16  0x4300 | q = 128 + q, offset -(128 + z) = 0xc300 | z          (both: its mantissa of 7 bits has no room for
///   16 q)
struct Scaling {
  float scale[2];
  u32 scale_pair[2], offset[2];
};

/// From a tile's word of scales and its byte of zeros.
template <bool kBf16>
Q4_DEVICE Scaling make_scaling(u32 pair, u32 zero_byte) {
  const u32 zeros = zero_byte * 0x00010001u;
  Scaling v;
  v.scale[0] = half_to_float(static_cast<u16>(pair));
  v.scale[1] = half_to_float(static_cast<u16>(pair >> 16));
  if constexpr (kBf16) {
    v.scale_pair[0] = pack<true>(v.scale[0], v.scale[0]);
    v.scale_pair[1] = pack<true>(v.scale[1], v.scale[1]);
    v.offset[0] = and_or<0x000f000fu, 0xc300c300u>(zeros);
    v.offset[1] = and_or<0x000f000fu, 0xc300c300u>(zeros >> 4);
  } else {
    v.scale_pair[0] = byte_perm(pair, pair, 0x1010);
    v.scale_pair[1] = byte_perm(pair, pair, 0x3232);
    v.offset[0] = and_or<0x000f000fu, 0xe400e400u>(zeros);
    v.offset[1] = and_or<0x00f000f0u, 0xd400d400u>(zeros);
  }
  return v;
}

/// q - z: 9 instructions for 8 weights in fp16, 11 in bf16.
template <bool kBf16>
Q4_DEVICE void center(u32 (&frag)[4], u32 word, const Scaling& v) {
  if constexpr (kBf16) {
#pragma unroll
    for (int i = 0; i < 4; ++i) frag[i] = bf16x2_add(and_or<0x000f000fu, 0x43004300u>(word >> 4 * i), v.offset[i & 1]);
  } else {
    constexpr u32 kSixteenth = 0x2c002c00u;
    const u32 high = word >> 8;
    frag[0] = half2_add(and_or<0x000f000fu, 0x64006400u>(word), v.offset[0]);
    frag[1] = half2_fma(and_or<0x00f000f0u, 0x64006400u>(word), kSixteenth, v.offset[1]);
    frag[2] = half2_add(and_or<0x000f000fu, 0x64006400u>(high), v.offset[0]);
    frag[3] = half2_fma(and_or<0x00f000f0u, 0x64006400u>(high), kSixteenth, v.offset[1]);
  }
}

/// (q - z) * scale, rounded once to 16 bits (bf16: the scale too): four instructions more.
template <bool kBf16>
Q4_DEVICE void dequantize(u32 (&frag)[4], u32 word, const Scaling& v) {
  center<kBf16>(frag, word, v);
#pragma unroll
  for (int i = 0; i < 4; ++i)
    frag[i] = kBf16 ? bf16x2_mul(frag[i], v.scale_pair[i & 1]) : half2_mul(frag[i], v.scale_pair[i & 1]);
}

}  // namespace q4
