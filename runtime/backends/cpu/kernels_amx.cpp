// Products on AMX tiles (TDPBF16PS, TDPBSUD); built with its flags (flags.cmake).
#include "runtime/backends/cpu/kernels.hpp"

#if (defined(__AMX_BF16__) || defined(__AMXBF16__)) && (defined(__AMX_INT8__) || defined(__AMXINT8__)) && \
    defined(__AVX512BW__)  // GCC's and clang's names
#include "runtime/backends/cpu/amx_digits.hpp"
#include "runtime/backends/cpu/amx_few_rows.hpp"
#include "runtime/backends/cpu/amx_tiles.hpp"

namespace q4::cpu {
namespace {

// --- activations -----------------------------------------------------------------------------------------------------

/// 32 fp16 as exact sums of two bf16. Infinity minus itself is NaN: such a row's sums are computed again (exact.cpp).
[[gnu::always_inline]] inline void split_f16(const std::uint16_t* from, std::uint16_t* to) {
  const __m512 left = Amx::load_f16(from), right = Amx::load_f16(from + 16);
  const __m512 mask = _mm512_castsi512_ps(_mm512_set1_epi32(int(0xFFFF0000u)));
  const __m512 left_high = _mm512_and_ps(left, mask), right_high = _mm512_and_ps(right, mask);
  const auto both = [](__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); };
  _mm512_storeu_si512(to, both(left_high, right_high));
  _mm512_storeu_si512(to + kBlock * kRows, both(_mm512_sub_ps(left, left_high), _mm512_sub_ps(right, right_high)));
}

void pack_x(const PackX& job, std::int64_t row_begin, std::int64_t row_end) {
  const int terms = bf16_terms(job.element);
  alignas(64) float values[kBlock];
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    const bool pads = row + 1 == job.rows && job.rows > kRows;  // of so few no more are read than there are
    for (std::int64_t block = job.begin; block < job.end; ++block) {
      auto* to = static_cast<std::uint16_t*>(job.out) + (row / kRows * job.blocks + block) * terms * kBlock * kRows;
      if (terms < 3 && !job.source && (block + 1) * kBlock <= job.k) {
        const auto* from = static_cast<const std::uint16_t*>(job.x) + (job.place ? job.place[row] : row) * job.x_stride;
        for (int step = 0; step < kBlockSteps; ++step) {
          std::uint16_t* const row_to = to + step * kTileElements + row % kRows * kStep;
          if (terms == 1)
            std::memcpy(row_to, from + block * kBlock + step * kStep, kStep * 2);
          else
            split_f16(from + block * kBlock + step * kStep, row_to);
        }
      } else {
        Base::load_block(job, row, block, values);
        for (int step = 0; step < kBlockSteps; ++step)
          Terms::split(values + step * kStep, terms, to + step * kTileElements + row % kRows * kStep, kBlock * kRows,
                       kStep);
      }
      for (int pad = row % kRows + 1; pads && pad < kRows; ++pad)
        for (int tile = 0; tile < terms * kBlockSteps; ++tile)
          std::memset(to + tile * kTileElements + pad * kStep, 0, kStep * 2);
    }
  }
}

// --- products --------------------------------------------------------------------------------------------------------

// Tiles 0 and 1 hold sums, 4 a term of x, 6 and 7 weights. The others stay empty: a load waits until the processor has a
// tile to rename to, of which all that are not empty take one (README.md has the measurement).
constexpr int kSums = 2;
constexpr int kPassRows = 128;  // at most, that a decoded panel serves

/// Up to kPassRows rows times 32 or 64 columns of a tile, a segment after the other: 16 rows by the 32 columns of one
/// half of the panel, then by those of the other half, which find x in the first-level cache. The last rows decode the
/// next segment into the panel behind them. Sums are stored just before their tiles are wanted again, and added to y later.
template <int kTerms, int kSteps, int kHalves>
class Pass {
 public:
  Pass(const TileJob& job, int row)
      : rows_(job.rows - row < kPassRows ? job.rows - row : kPassRows),
        first_(job.column),
        row_bytes_(job.x_stride ? job.x_stride * 2 : kStep * 2),
        step_x_(job.x_stride ? kStep : kTileElements),
        block_x_(job.x_stride ? kBlock : kRowsOfX),
        group_x_(job.x_stride ? job.x_stride * kRows : job.blocks * kRowsOfX),
        x_(static_cast<const std::uint16_t*>(job.x) + (job.row + row) / kRows * group_x_ + job.begin * block_x_),
        y_(job.y + std::int64_t(row) * kTile + job.column),
        header_(job.weights + job.begin * kBlockBytes),
        end_(job.weights + job.end * kBlockBytes),
        ahead_(header_ + kAhead) {}

  void run() {
    TileConfig config;
    if (rows_ < kRows)
      for (const int tile : {0, 1, 4}) config.rows[tile] = std::uint8_t(rows_);
    config.load();
    decoder_.zeros(header_, first_);
    decoder_.octets(codes(header_), panel_, kSteps * kOctets);
    for (int in_block = 0; header_ != end_; header_ += kSegmentBytes) {
      const std::uint16_t* x = x_ + in_block * step_x_;
      int group = 0;
      for (; group + kRows < rows_; group += kRows, x += group_x_) {
        multiply<0, false>(x, group);
        if constexpr (kHalves == 2) multiply<1, false>(x, group);
      }
      const bool more = header_ + kSegmentBytes != end_;
      if constexpr (kHalves == 2) multiply<0, false>(x, group);
      if (more) {
        decoder_.zeros(header_ + kSegmentBytes, first_);
        multiply<kHalves - 1, true>(x, group);
      } else {
        multiply<kHalves - 1, false>(x, group);
      }
      in_block += kSteps;
      if (in_block == kBlockSteps) in_block = 0, x_ += block_x_;
    }
    save<0>(), save<1>();
    add<kHalves - 1>(0, kRows, scales_of<kHalves - 1>(0), scales_of<kHalves - 1>(1), rows_ - before_.group);
  }

 private:
  using Panel = Decoder<kHalves * kSums * kGroup>;
  static constexpr int kPanelRow = Panel::kPanelRow;
  static constexpr int kOctets = kStep / 8, kTerm = kBlock * kRows, kRowsOfX = kTerms * kTerm;
  static constexpr int kSegmentBytes = int(segment_bytes(kSteps * kStep));
  static constexpr std::int64_t kBlockBytes = std::int64_t(kSegmentBytes) * (kBlockSteps / kSteps);
  static constexpr int kLines = (kSegmentBytes + 2 * kSteps * 64 - 1) / (2 * kSteps * 64);  // of weights a step
  static constexpr int kAhead = 8192;  // bytes: of the weights asked for

  const std::byte* codes(const std::byte* header) const { return header + kHeader + first_ * 4; }

  template <int kSum>
  [[gnu::always_inline]] void save() {
    take_sums<kSum>(sums_ + kSum * kTileFloats);
  }
  /// Of 16 columns of the sums that were stored, or are still in the tiles.
  template <int kHalf>
  [[gnu::always_inline]] __m512 scales_of(int columns) const {
    return Amx::load_f16(reinterpret_cast<const std::uint16_t*>(before_.header) + first_ +
                         (kHalf * kSums + columns) * kGroup);
  }
  /// Rows [begin, end) of `rows` of the sums that were stored, of columns of kHalf, scaled, to y.
  template <int kHalf>
  [[gnu::always_inline]] void add(int begin, int end, __m512 left, __m512 right, int rows) {
    const float* sum = sums_ + begin * kGroup;
    float* y = y_ + (before_.group + begin) * kTile + kHalf * kSums * kGroup;
    for (int row = begin; row < end && row < rows; ++row, y += kTile, sum += kGroup) {
      _mm512_storeu_ps(y, _mm512_fmadd_ps(left, _mm512_load_ps(sum), _mm512_loadu_ps(y)));
      _mm512_storeu_ps(y + kGroup,
                       _mm512_fmadd_ps(right, _mm512_load_ps(sum + kTileFloats), _mm512_loadu_ps(y + kGroup)));
    }
  }

  /// For one step's share of the weights some segments from here on; past the end they are the next task's.
  [[gnu::always_inline]] void ask(int step) {
    if constexpr (kHalves == 2) {
      for (int line = 0; line < kLines; ++line) Amx::prefetch(ahead_ + line * 64);
      ahead_ += kLines * 64;
    } else {  // its own half of each line of codes
      const std::byte* const at = header_ + kAhead / kSegmentBytes * kSegmentBytes;
      if (step == 0) Amx::prefetch(at + first_ * 2), Amx::prefetch(at + kTile * 2);
      for (int octet = 0; octet < kOctets; ++octet)
        for (int line = 0; line < 2; ++line) Amx::prefetch(codes(at) + (step * kOctets + octet) * kOctet + line * 64);
    }
  }

  /// The 16 rows from `group` on times 32 columns; kDecode: the next segment takes its place.
  template <int kHalf, bool kDecode>
  [[gnu::always_inline]] void multiply(const std::uint16_t* x, int group) {
    constexpr int kBefore = kHalves - 1 - kHalf;  // the half of the sums before
    const bool saves = before_.header != nullptr;
    // A few rows of the sums before after each product, so that loads of tiles never wait behind many.
    constexpr int kSlots = kSteps > 1 ? 2 * (kSteps - 1) : 1, kSlotRows = (kRows + kSlots - 1) / kSlots;
    const int rows_before = saves ? rows_ - before_.group : 0;
    __m512 scale_left = _mm512_setzero_ps(), scale_right = scale_left;
    if (saves) scale_left = scales_of<kBefore>(0), scale_right = scales_of<kBefore>(1);
    const auto add_rows = [&](int slot) __attribute__((always_inline)) {
      const int begin = slot * kSlotRows, end = begin + kSlotRows < kRows ? begin + kSlotRows : kRows;
      add<kBefore>(begin, end, scale_left, scale_right, rows_before);
    };
    unroll<kSteps>([&](auto step) __attribute__((always_inline)) {
      std::uint16_t* const rows = panel_ + step * (kRows * kPanelRow);
      const std::uint16_t *left = rows + kHalf * kSums * kStep, *right = left + kStep;
      const bool save_now = step == 0 && saves;
      if constexpr (kTerms == 1) {
        load_x<4>(x + step * step_x_, row_bytes_);
        load_tile<6, kPanelRow>(left);
        if (save_now) save<0>();
        _tile_dpbf16ps(0, 4, 6);
        if (step > 0) add_rows(2 * (step - 1));
        load_tile<6, kPanelRow>(right);
        if (save_now) save<1>();
        _tile_dpbf16ps(1, 4, 6);
        if (step > 0) add_rows(2 * (step - 1) + 1);
      } else {
        load_tile<6, kPanelRow>(left);
        load_tile<7, kPanelRow>(right);
        unroll<kTerms>([&](auto term) __attribute__((always_inline)) {
          load_x<4>(x + term * kTerm + step * kTileElements, kStep * 2);
          if (term == 0 && save_now) save<0>();
          _tile_dpbf16ps(0, 4, 6);
          if (term == kTerms - 1 && step > 0) add_rows(2 * (step - 1));
          if (term == 0 && save_now) save<1>();
          _tile_dpbf16ps(1, 4, 7);
        });
        if (step > 0) add_rows(2 * (step - 1) + 1);
      }
      if (kSteps == 1) add_rows(0);
      if constexpr (kDecode) decoder_.octets(codes(header_ + kSegmentBytes) + step * (kOctets * kOctet), rows, kOctets);
      if (group == 0) ask(step);
    });
    before_ = {header_, group};
  }

  alignas(64) std::uint16_t panel_[kSteps * kRows * kPanelRow];
  alignas(64) float sums_[kSums * kTileFloats];
  Panel decoder_;
  const int rows_, first_;
  const std::int64_t row_bytes_, step_x_, block_x_, group_x_;  // of x, the last from 16 rows to the next
  const std::uint16_t* x_;
  float* const y_;
  const std::byte *header_, *const end_, *ahead_;
  struct {
    const std::byte* header = nullptr;
    int group = 0;
  } before_;  // whose sums are in the tiles, or stored
};

template <int kTerms, int kSteps>
void multiply_all(const TileJob& job) {
  if constexpr (kTerms < 3)
    if (job.rows <= kRows && job.columns == kTile) return FewRows<kTerms, kSteps>(job).run();
  for (int row = 0; row < job.rows; row += kPassRows) {
    if (job.columns == kTile)
      Pass<kTerms, kSteps, 2>(job, row).run();
    else
      Pass<kTerms, kSteps, 1>(job, row).run();
  }
}
template <int kTerms>
void multiply_all(const TileJob& job) {
  if (job.segment == 32) multiply_all<kTerms, 1>(job);
  if (job.segment == 64) multiply_all<kTerms, 2>(job);
  if (job.segment == 128) multiply_all<kTerms, 4>(job);
}

void amx(const TileJob& job) {
  if (!job.add) std::memset(job.y, 0, std::size_t(job.rows) * kTile * sizeof(float));
  if (job.terms == 1) multiply_all<1>(job);
  if (job.terms == 2) multiply_all<2>(job);
  if (job.terms == 3) multiply_all<3>(job);
  _tile_release();
}

}  // namespace

bool amx_kernels(Kernels& kernels) {
  kernels.pack_x_amx = &pack_x;
  kernels.amx = &amx;
  kernels.pack_x_amx_digits = &pack_x_digits;
  kernels.amx_digits = &digits;
  return true;
}

}  // namespace q4::cpu
#else
namespace q4::cpu {
bool amx_kernels(Kernels&) { return false; }
}  // namespace q4::cpu
#endif
