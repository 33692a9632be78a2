// Products of up to five rows on AMX tiles, in whole numbers: what kernels_digits.hpp computes, to the bit. The three
// digits of five rows are fifteen rows of one tile, and codes are bytes as they are: half the decoding, half the loads of
// tiles and half the products of bf16 weights. For kernels_amx.cpp alone.
#pragma once

#include "runtime/backends/cpu/amx_tiles.hpp"
#include "runtime/backends/cpu/kernels_digits.hpp"

namespace q4::cpu {
namespace {

using Digits = DigitKernels<Amx>;

/// Of a block and `rows` rows: [row][digit][128] bytes, in the order of codes (rows 0, 4, 1, 5, 2, 6, 3, 7 of each octet);
/// then DigitSums [segment][row].
struct DigitBlock {
  static constexpr int kRow = Digits::kDigits * kBlock, kBytes = Digits::kRecord;  // of a row; with its sums
  static_assert(kRow + kBlock / 32 * sizeof(DigitSums) <= kBytes);

  static std::int8_t* of(void* x, std::int64_t block, std::int64_t rows) {
    return static_cast<std::int8_t*>(x) + block * rows * kBytes;
  }
  static const std::int8_t* of(const void* x, std::int64_t block, std::int64_t rows) {
    return static_cast<const std::int8_t*>(x) + block * rows * kBytes;
  }
  static std::int64_t sums(std::int64_t rows, std::int64_t segment, std::int64_t row) {
    return rows * kRow + (segment * rows + row) * std::int64_t(sizeof(DigitSums));
  }
};

void pack_x_digits(const PackX& job, std::int64_t row_begin, std::int64_t row_end) {
  const __m512i rows = _mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15);
  const __m512i bytes = _mm512_set4_epi32(0x0F0B0703, 0x0E0A0602, 0x0D090501, 0x0C080400);
  const __m512i digits = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  alignas(64) float values[kBlock];
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    for (std::int64_t block = job.begin; block < job.end; ++block) {
      Base::load_block(job, row, block, values);
      std::int8_t* const record = DigitBlock::of(job.out, block, job.rows);
      for (int first = 0; first < kBlock; first += job.segment) {
        std::int8_t* const to = record + row * DigitBlock::kRow + first;
        DigitSums sums;
        Digits::pack_segment(values + first, job.segment, sums, [&](int at, __m512i numbers) {
          const __m512i fours = _mm512_shuffle_epi8(_mm512_permutexvar_epi32(rows, numbers), bytes);
          const __m512i apart = _mm512_permutexvar_epi32(digits, fours);
          _mm_storeu_si128(reinterpret_cast<__m128i*>(to + at), _mm512_castsi512_si128(apart));
          _mm_storeu_si128(reinterpret_cast<__m128i*>(to + kBlock + at), _mm512_extracti32x4_epi32(apart, 1));
          _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 2 * kBlock + at), _mm512_extracti32x4_epi32(apart, 2));
        });
        std::memcpy(record + DigitBlock::sums(job.rows, first / job.segment, row), &sums, sizeof sums);
      }
    }
  }
}

/// Up to five rows times the 64 columns of a tile: kDepth packed rows at a time, which are decoded into one of two panels
/// of up to 4 KiB while the other is multiplied, as in FewRows.
template <int kDepth, int kSteps>
class DigitRows {
 public:
  static constexpr int kMost = kRows / Digits::kDigits;

  DigitRows(const TileJob& job, int first)
      : rows_(job.rows - first < kMost ? job.rows - first : kMost),
        x_rows_(job.x_rows),
        row_(job.row + first),
        x_(DigitBlock::of(job.x, job.begin, job.x_rows)),
        y_(job.y + first * kTile),
        header_(job.weights + job.begin * kBlockBytes),
        end_(job.weights + job.end * kBlockBytes) {}

  void run() {
    TileConfig config;
    for (const int tile : {0, 1, 2, 3, 4}) config.rows[tile] = std::uint8_t(rows_ * Digits::kDigits);
    config.column_bytes[4] = kDepth;
    config.rows[6] = kDepth / 4;
    config.load();
    for (int c = 0; c < 4; ++c) decode(header_ + kHeader, panel_[0], c);
    int panel = 0;
    for (int segment = 0; header_ != end_; header_ += kSegmentBytes) {
      const std::int8_t* const x = x_ + row_ * DigitBlock::kRow + segment * (kDepth * kSteps);
      const std::byte* const next = header_ + kSegmentBytes != end_ ? header_ + kSegmentBytes : header_;
      const bool saves = before_.header != nullptr;
      unroll<kSteps>([&](auto step) __attribute__((always_inline)) {
        const std::int8_t* const now = panel_[kSteps == 1 ? panel : step % 2];
        std::int8_t* const then = panel_[kSteps == 1 ? 1 - panel : 1 - step % 2];
        const std::byte* const from =
            step + 1 < kSteps ? header_ + kHeader + (step + 1) * (kOctets * kOctet) : next + kHeader;
        load_x(x + step * kDepth);
        unroll<4>([&](auto c) __attribute__((always_inline)) {
          load_codes(now + c * 64);
          if (step == 0 && saves) save<c>();
          product<c>();
          decode(from, then, c);
          constexpr int kSlot = step * 4 + c, kSlots = 4 * kSteps;
          for (int line = kSlot * kLines / kSlots; line < (kSlot + 1) * kLines / kSlots; ++line)
            prefetch_far(header_ + kAhead + line * 64);
          if (saves && step == kSteps - 1 && (kSteps > 1 || c > 0)) add(kSteps > 1 ? c : c - 1);
          if (saves && kSteps == 1 && c == 3) add(3);
        });
      });
      panel = 1 - panel;
      before_ = {header_, x_ + DigitBlock::sums(x_rows_, segment, row_)};
      if (++segment == kBlock / (kDepth * kSteps)) segment = 0, x_ += x_rows_ * DigitBlock::kBytes;
    }
    save<0>(), save<1>(), save<2>(), save<3>();
    for (int c = 0; c < 4; ++c) add(c);
  }

 private:
  static constexpr int kOctets = kDepth / 8, kPanelRow = kTile * 4;
  static constexpr int kSegmentBytes = int(segment_bytes(kSteps * kDepth));
  static constexpr std::int64_t kBlockBytes = std::int64_t(kSegmentBytes) * (kBlock / (kSteps * kDepth));
  static constexpr int kLines = (kSegmentBytes + 63) / 64;
  static constexpr int kAhead = 32768;  // bytes: of the weights asked for

  /// The quarter `part` of the octets of a step: two rows of the panel each.
  [[gnu::always_inline]] static void decode(const std::byte* from, std::int8_t* to, int part) {
    const __m512i low = _mm512_set1_epi8(15);
    for (int octet = part * kOctets / 4; octet < (part + 1) * kOctets / 4; ++octet)
      unroll<4>([&](auto g) __attribute__((always_inline)) {
        const __m512i lanes = _mm512_loadu_si512(from + octet * kOctet + g * 64);
        std::int8_t* const row = to + octet * (2 * kPanelRow) + g * 64;
        _mm512_store_si512(row, _mm512_and_si512(lanes, low));
        _mm512_store_si512(row + kPanelRow, _mm512_and_si512(_mm512_srli_epi32(lanes, 4), low));
      });
  }
  /// GCC's intrinsics do not say that they read memory: stores stay where they are.
  [[gnu::always_inline]] static void load_codes(const std::int8_t* from) {
    const auto& tile = *reinterpret_cast<const std::int8_t(*)[(kDepth / 4 - 1) * kPanelRow + 64]>(from);
    asm volatile("" : : "m"(tile));
    _tile_loadd(6, from, kPanelRow);
    asm volatile("" : : "m"(tile));
  }
  [[gnu::always_inline]] static void load_x(const std::int8_t* from) { _tile_loadd(4, from, kBlock); }
  template <int c>
  [[gnu::always_inline]] void save() {
    take_sums<c>(sums_ + c * kTileFloats);
  }
  template <int c>
  [[gnu::always_inline]] static void product() {
    if constexpr (c == 0) _tile_dpbsud(0, 4, 6);
    if constexpr (c == 1) _tile_dpbsud(1, 4, 6);
    if constexpr (c == 2) _tile_dpbsud(2, 4, 6);
    if constexpr (c == 3) _tile_dpbsud(3, 4, 6);
  }
  /// 16 columns of the sums that were stored, less the zeros' share, scaled, to y.
  [[gnu::always_inline]] void add(int c) {
    const auto* const scales = reinterpret_cast<const std::uint16_t*>(before_.header) + c * kGroup;
    const __m512 scale = Amx::load_f16(scales);
    const __m512i zeros = Amx::load_u8_int(reinterpret_cast<const std::uint8_t*>(before_.header) + kTile * 2 + c * 16);
    const std::int8_t* x = before_.sums;
    const std::int32_t* sums = sums_ + c * kTileFloats;
    float* y = y_ + c * kGroup;
    for (int row = 0; row < rows_; ++row, x += sizeof(DigitSums), sums += Digits::kDigits * kGroup, y += kTile) {
      const auto digit = [&](int i) __attribute__((always_inline)) {
        const std::int8_t* const negated = x + offsetof(DigitSums, sums) + 4 * i;
        return _mm512_add_epi32(_mm512_load_si512(sums + i * kGroup), Amx::dot_pair(zeros, negated));
      };
      float x_scale;
      std::memcpy(&x_scale, x + offsetof(DigitSums, scale), sizeof x_scale);
      _mm512_storeu_ps(y, Digits::combine(x_scale, scale, digit(2), digit(1), digit(0), _mm512_loadu_ps(y)));
    }
  }

  alignas(64) std::int8_t panel_[2][kDepth / 4 * kPanelRow];
  alignas(64) std::int32_t sums_[4 * kTileFloats];
  const int rows_;
  const std::int64_t x_rows_, row_;
  const std::int8_t* x_;  // of a block
  float* const y_;
  const std::byte *header_, *const end_;
  struct {
    const std::byte* header = nullptr;
    const std::int8_t* sums = nullptr;  // DigitSums of row_
  } before_;                            // whose sums are in the tiles, or stored
};

template <int kDepth, int kSteps>
void multiply_digits(const TileJob& job) {
  using Rows = DigitRows<kDepth, kSteps>;
  for (int row = 0; row < job.rows; row += Rows::kMost) Rows(job, row).run();
}

void digits(const TileJob& job) {
  if (!job.add) std::memset(job.y, 0, std::size_t(job.rows) * kTile * sizeof(float));
  if (job.segment == 32) multiply_digits<32, 1>(job);
  if (job.segment == 64) multiply_digits<64, 1>(job);
  if (job.segment == 128) multiply_digits<64, 2>(job);
  _tile_release();
}

}  // namespace
}  // namespace q4::cpu
