// Products of up to 16 rows on AMX tiles, of one or two bf16 terms. For kernels_amx.cpp alone.
#pragma once

#include "runtime/backends/cpu/amx_tiles.hpp"

namespace q4::cpu {
namespace {

/// Up to 16 rows times the 64 columns of a tile: 32 packed rows at a time, which are decoded into one of two panels of
/// 4 KiB while the other is multiplied. Where decoding is most of the work, two threads of a core then share a
/// first-level cache that holds all of it. Sums are added in the order of Pass, to the bit.
template <int kTerms, int kSteps>
class FewRows {
 public:
  explicit FewRows(const TileJob& job)
      : rows_(job.rows),
        row_bytes_(job.x_stride ? job.x_stride * 2 : kStep * 2),
        step_x_(job.x_stride ? kStep : kTileElements),
        block_x_(job.x_stride ? kBlock : kTerms * kTerm),
        x_(static_cast<const std::uint16_t*>(job.x) +
           job.row / kRows * (job.x_stride ? job.x_stride * kRows : job.blocks * kTerms * kTerm) +
           job.begin * block_x_),
        y_(job.y),
        header_(job.weights + job.begin * kBlockBytes),
        end_(job.weights + job.end * kBlockBytes) {}

  void run() {
    TileConfig config;
    if (rows_ < kRows)
      for (const int tile : {0, 1, 2, 3, 4, 5}) config.rows[tile] = std::uint8_t(rows_);
    config.load();
    decoder_.zeros(header_, 0);
    decoder_.octets(header_ + kHeader, panel_[0], kOctets);
    const bool odd = kSteps % 2;
    int panel = 0;
    for (int in_block = 0; header_ != end_; header_ += kSegmentBytes) {
      const std::uint16_t* x = x_ + in_block * step_x_;
      const std::byte* const next = header_ + kSegmentBytes != end_ ? header_ + kSegmentBytes : header_;
      const bool saves = before_ != nullptr;
      unroll<kSteps>([&](auto step) __attribute__((always_inline)) {
        const std::uint16_t* const now = panel_[odd ? panel : step % 2];
        std::uint16_t* const then = panel_[odd ? 1 - panel : 1 - step % 2];
        const std::byte* from =
            step + 1 < kSteps ? header_ + kHeader + (step + 1) * (kOctets * kOctet) : next + kHeader;
        if (step + 1 == kSteps) decoder_.zeros(next, 0);
        if constexpr (kTerms == 1) {
          load_x<4>(x + step * step_x_, row_bytes_);
        } else {
          load_x<4>(x + step * kTileElements, kStep * 2);
          load_x<5>(x + kTerm + step * kTileElements, kStep * 2);
        }
        unroll<4>([&](auto c) __attribute__((always_inline)) {
          load_tile<6, kPanelRow>(now + c * kStep);
          if (step == 0 && saves) save<c>();
          product<c>();
          decoder_.octets(from + c * kOctet, then + c * (4 * kPanelRow), 1);
          constexpr int kSlot = step * 4 + c, kSlots = 4 * kSteps;
          for (int line = kSlot * kLines / kSlots; line < (kSlot + 1) * kLines / kSlots; ++line)
            prefetch_far(header_ + kAhead + line * 64);
          if (saves && (kSteps == 1 ? c == 3 : step > 0)) {
            constexpr int kAdds = kSteps == 1 ? 1 : kSlots - 4, kAdd = kSteps == 1 ? 0 : kSlot - 4;
            add((kAdd * kRows + kAdds - 1) / kAdds, ((kAdd + 1) * kRows + kAdds - 1) / kAdds);
          }
        });
        if (odd) panel = 1 - panel;
      });
      before_ = header_;
      in_block += kSteps;
      if (in_block == kBlockSteps) in_block = 0, x_ += block_x_;
    }
    save<0>(), save<1>(), save<2>(), save<3>();
    add(0, kRows);
  }

 private:
  static constexpr int kOctets = kStep / 8, kTerm = kBlock * kRows;
  static_assert(kOctets == 4);
  static constexpr int kPanelRow = Decoder<kTile>::kPanelRow;
  static constexpr int kSegmentBytes = int(segment_bytes(kSteps * kStep));
  static constexpr std::int64_t kBlockBytes = std::int64_t(kSegmentBytes) * (kBlockSteps / kSteps);
  static constexpr int kLines = (kSegmentBytes + 63) / 64;
  static constexpr int kAhead = 32768;  // bytes: of the weights asked for

  template <int c>
  [[gnu::always_inline]] void save() {
    take_sums<c>(sums_ + c * kTileFloats);
  }
  template <int c>
  [[gnu::always_inline]] void product() {
    if constexpr (c == 0) _tile_dpbf16ps(0, 4, 6);
    if constexpr (c == 1) _tile_dpbf16ps(1, 4, 6);
    if constexpr (c == 2) _tile_dpbf16ps(2, 4, 6);
    if constexpr (c == 3) _tile_dpbf16ps(3, 4, 6);
    if constexpr (c == 0 && kTerms > 1) _tile_dpbf16ps(0, 5, 6);
    if constexpr (c == 1 && kTerms > 1) _tile_dpbf16ps(1, 5, 6);
    if constexpr (c == 2 && kTerms > 1) _tile_dpbf16ps(2, 5, 6);
    if constexpr (c == 3 && kTerms > 1) _tile_dpbf16ps(3, 5, 6);
  }
  [[gnu::always_inline]] void add(int begin, int end) {
    const auto* scales = reinterpret_cast<const std::uint16_t*>(before_);
    for (int row = begin; row < end && row < rows_; ++row)
      for (int c = 0; c < 4; ++c) {
        float* y = y_ + row * kTile + c * kGroup;
        _mm512_storeu_ps(y,
                         _mm512_fmadd_ps(Amx::load_f16(scales + c * kGroup),
                                         _mm512_load_ps(sums_ + c * kTileFloats + row * kGroup), _mm512_loadu_ps(y)));
      }
  }

  alignas(64) std::uint16_t panel_[2][kRows * kPanelRow];
  alignas(64) float sums_[4 * kTileFloats];
  Decoder<kTile> decoder_;
  const int rows_;
  const std::int64_t row_bytes_, step_x_, block_x_;
  const std::uint16_t* x_;
  float* const y_;
  const std::byte *header_, *const end_, *before_ = nullptr;
};

}  // namespace
}  // namespace q4::cpu
