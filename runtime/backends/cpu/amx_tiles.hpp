// What the kernels on AMX tiles share: tiles' sizes, their configuration and loads, and the decoding of weights for them.
// For kernels_amx.cpp alone, which has the instructions.
#pragma once

#include "runtime/backends/cpu/bf16_terms.hpp"

namespace q4::cpu {
namespace {

struct Amx : Avx512 {};
using Base = Fp32Kernels<Amx>;
using Terms = Bf16Terms<Amx>;
constexpr int kRows = 16;   // of a tile register
constexpr int kStep = 32;   // packed rows of W that one instruction multiplies
constexpr int kGroup = 16;  // columns of a tile register
constexpr int kTileElements = kRows * kStep, kTileFloats = kRows * kGroup;
constexpr int kBlockSteps = kBlock / kStep;

/// Weights to a panel, as tiles want them: [row pair][32 or 64 columns][2]. q - zero, which bf16 holds exactly: sums need
/// no correction for the zeros.
template <int kColumns>
class Decoder {
 public:
  static constexpr int kPanelRow = kColumns * 2;

  /// Of the segment at `at`, from its column `first` on.
  void zeros(const std::byte* at, int first) {
    at += kTile * 2 + first;
    const __mmask64 ours = ~__mmask64(0) >> (kTile - kColumns);
    usual_ = _mm512_mask_cmpneq_epi8_mask(ours, _mm512_maskz_loadu_epi8(ours, at), _mm512_set1_epi8(8)) == 0;
    if (usual_) return;
    const __m512i repeat = _mm512_set4_epi32(0x0C0C0C0C, 0x08080808, 0x04040404, 0);
    unroll<kColumns / kGroup>([&](auto g) __attribute__((always_inline)) {
      const __m512i lanes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at) + g));
      zeros_[g] = _mm512_shuffle_epi8(lanes, repeat);
    });
  }

  /// `count` octets: 8 packed rows, four rows of the panel each.
  [[gnu::always_inline]] void octets(const std::byte* from, std::uint16_t* to, int count) const {
    if (usual_) {
      for (; count > 0; --count, from += kOctet, to += 4 * kPanelRow)
        unroll<kColumns / kGroup>([&](auto g) __attribute__((always_inline)) {
          const __m512i lanes = _mm512_loadu_si512(from + g * 64);
          unroll<4>([&](auto i) __attribute__((always_inline)) { store<i, g>(to, Terms::pairs<i>(lanes)); });
        });
      return;
    }
    const __m512i low = _mm512_set1_epi8(15);
    for (; count > 0; --count, from += kOctet, to += 4 * kPanelRow)
      unroll<kColumns / kGroup>([&](auto g) __attribute__((always_inline)) {
        const __m512i lanes = _mm512_loadu_si512(from + g * 64);
        const __m512i even = _mm512_sub_epi8(_mm512_and_si512(lanes, low), zeros_[g]);
        const __m512i odd = _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi32(lanes, 4), low), zeros_[g]);
        store<0, g>(to, value(even));
        store<1, g>(to, value(odd));
        store<2, g>(to, value(_mm512_srli_epi16(even, 8)));
        store<3, g>(to, value(_mm512_srli_epi16(odd, 8)));
      });
  }

 private:
  template <int kRow, int kAt>
  [[gnu::always_inline]] static void store(std::uint16_t* to, __m512i pairs) {
    _mm512_store_si512(to + kRow * kPanelRow + kAt * 2 * kGroup, pairs);
  }
  /// vpermw reads the low five bits of each half: a difference of -15 to 15.
  [[gnu::always_inline]] static __m512i value(__m512i differences) {
    alignas(64) static constexpr std::uint16_t kTable[32] = {
        0x0000, 0x3F80, 0x4000, 0x4040, 0x4080, 0x40A0, 0x40C0, 0x40E0, 0x4100, 0x4110, 0x4120,
        0x4130, 0x4140, 0x4150, 0x4160, 0x4170, 0xC180, 0xC170, 0xC160, 0xC150, 0xC140, 0xC130,
        0xC120, 0xC110, 0xC100, 0xC0E0, 0xC0C0, 0xC0A0, 0xC080, 0xC040, 0xC000, 0xBF80};
    return _mm512_permutexvar_epi16(differences, _mm512_load_si512(kTable));
  }

  __m512i zeros_[kColumns / kGroup];
  bool usual_ = true;  // 8 everywhere, as in symmetric quantization
};

struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start = 0, reserved[14] = {};
  std::uint16_t column_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  void load() const {
    asm volatile("" : : "m"(*this));  // GCC's intrinsic says that it reads the first eight bytes
    _tile_loadconfig(this);
  }
};

/// The intrinsics want literal numbers of tiles. GCC's do not say that they read memory: stores stay where they are.
/// `kStride`: elements from row to row.
template <int kNumber, int kStride>
[[gnu::always_inline]] inline void load_tile(const std::uint16_t* from) {
  const auto& tile = *reinterpret_cast<const std::uint16_t(*)[(kRows - 1) * kStride + kStep]>(from);
  asm volatile("" : : "m"(tile));
  if constexpr (kNumber == 6) _tile_loadd(6, from, kStride * 2);
  if constexpr (kNumber == 7) _tile_loadd(7, from, kStride * 2);
  asm volatile("" : : "m"(tile));
}

/// The sums of a tile to memory, and zeros in their place.
template <int kNumber>
[[gnu::always_inline]] inline void take_sums(void* to) {
  if constexpr (kNumber == 0) _tile_stored(0, to, 64);
  if constexpr (kNumber == 0) _tile_zero(0);
  if constexpr (kNumber == 1) _tile_stored(1, to, 64);
  if constexpr (kNumber == 1) _tile_zero(1);
  if constexpr (kNumber == 2) _tile_stored(2, to, 64);
  if constexpr (kNumber == 2) _tile_zero(2);
  if constexpr (kNumber == 3) _tile_stored(3, to, 64);
  if constexpr (kNumber == 3) _tile_zero(3);
}

/// To the second-level cache: the first has no room for what is far ahead.
[[gnu::always_inline]] inline void prefetch_far(const std::byte* at) { asm volatile("prefetcht1 %0" : : "m"(*at)); }

/// Nothing here writes x. `bytes`: from row to row.
template <int kNumber>
[[gnu::always_inline]] inline void load_x(const std::uint16_t* from, std::int64_t bytes) {
  if constexpr (kNumber == 4) _tile_loadd(4, from, bytes);
  if constexpr (kNumber == 5) _tile_loadd(5, from, bytes);
}

}  // namespace
}  // namespace q4::cpu
