// The vector operations of the fp32 kernels in GCC's and clang's vector extension: SSE2, SSE4, or whatever there is.
#pragma once

#include <cstdint>
#include <cstring>

#include "runtime/backends/cpu/kernels.hpp"

namespace q4::cpu {

/// Isa names the including file's own copy of the code, which its target flags shape.
template <class Isa>
struct Portable {
  typedef float F __attribute__((vector_size(16)));
  typedef std::uint32_t W __attribute__((vector_size(16)));
  typedef std::int32_t I32 __attribute__((vector_size(16)));
  static constexpr int kLanes = 4;
  static constexpr int kWideRows = 1, kWideVectors = 4, kRows = 5, kVectors = 2;
  static constexpr int kPanelRows = 5, kPanelVectors = 2;

  static F zero() { return F{}; }
  static F set(float value) { return F{value, value, value, value}; }
  static F load(const float* from) { return read<F>(from); }
  static void store(float* to, F value) { std::memcpy(to, &value, sizeof value); }
  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F fma(F a, F b, F c) { return c + a * b; }
  static F fnma(F a, F b, F c) { return c - a * b; }
  static F max(F a, F b) { return F((I32(a > b) & I32(a)) | (~I32(a > b) & I32(b))); }

  static W load_words(const std::uint32_t* from) { return read<W>(from); }
  /// q - 8 of row I of the octet.
  template <int I>
  static F code(W words) {
    return __builtin_convertvector(I32((words >> nibble_shift(I)) & 15u) - 8, F);
  }
  // Of 8-bit activations: 32-bit lanes, each with four codes of one column.
  using I = I32;
  static I zero_int() { return I{}; }
  /// Rows 0, 4, 1, 5 (half 0) or 2, 6, 3, 7 (half 1) of the octet as unsigned bytes.
  template <int kHalf>
  static W bytes(W words) {
    return (words >> (4 * kHalf)) & 0x0F0F0F0Fu;
  }
  /// sum + the products of each lane's four codes with four signed bytes.
  static I dot(I sum, W codes, const std::int8_t* x) {
    for (int i = 0; i < 4; ++i) sum += I((codes >> (8 * i)) & 15u) * std::int32_t(x[i]);
    return sum;
  }
  /// float(sum - zero x)
  static F correct(I sum, I zero, std::int32_t x) { return __builtin_convertvector(sum - zero * x, F); }
  static I load_u8_int(const std::uint8_t* from) { return I{from[0], from[1], from[2], from[3]}; }

  static F load_u8(const std::uint8_t* from) {
    return F{float(from[0]), float(from[1]), float(from[2]), float(from[3])};
  }
  /// Exponent and mantissa moved to fp32's place, then scaled by 2^112: exact for subnormals too. Infinity and NaN,
  /// which that would make 2^16 and more, get the largest exponent back.
  static F load_f16(const std::uint16_t* from) {
    const W half{from[0], from[1], from[2], from[3]};
    const F magnitude = F((half & 0x7FFFu) << 13) * set(0x1p112f);
    const W special = W(magnitude >= set(65536.0f));
    return F(W(magnitude) | (special & 0x7F800000u) | ((half & 0x8000u) << 16));
  }
  static F load_bf16(const std::uint16_t* from) { return F(W{from[0], from[1], from[2], from[3]} << 16); }
  static void store_f16(std::uint16_t* to, F value) {
    for (int i = 0; i < kLanes; ++i) to[i] = to_f16(value[i]);
  }
  static void store_bf16(std::uint16_t* to, F value) {  // to nearest even; NaN stays NaN
    for (int i = 0; i < kLanes; ++i) {
      const float element = value[i];
      const std::uint32_t bits = read<std::uint32_t>(&element);
      const bool nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
      to[i] = std::uint16_t((nan ? bits | 0x00400000u : bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
    }
  }
  static void prefetch(const void* at) { __builtin_prefetch(at); }

 private:
  template <class T>
  static T read(const void* from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
  }
  /// Adding a power of two whose last bit is worth the last bit of the result lets the FPU round to nearest even.
  static std::uint16_t to_f16(float value) {
    const std::uint32_t bits = read<std::uint32_t>(&value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
    if (magnitude > 0x7F800000u) return std::uint16_t(sign | 0x7E00u);
    if (magnitude >= 0x477FF000u) return std::uint16_t(sign | 0x7C00u);  // 65520 and more round to infinity
    if (magnitude < 0x38800000u) {                                       // below 2^-14: subnormal, last bit 2^-24
      const float shifted = read<float>(&magnitude) + 0.5f;
      return std::uint16_t(sign | (read<std::uint32_t>(&shifted) - 0x3F000000u));
    }
    const std::uint32_t rounded = magnitude + 0xFFFu + (magnitude >> 13 & 1);
    return std::uint16_t(sign | ((rounded - 0x38000000u) >> 13));
  }
};

}  // namespace q4::cpu
