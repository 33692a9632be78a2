// Products on AMX tiles (TDPBF16PS); built with its flags (flags.cmake).
#include "runtime/backends/cpu/kernels.hpp"

#if (defined(__AMX_BF16__) || defined(__AMXBF16__)) && defined(__AVX512BW__)  // GCC's and clang's names
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
constexpr int kPassRows = 128;  // at most, that a decoded panel serves

// --- activations -----------------------------------------------------------------------------------------------------

void pack_x(const PackX& job, std::int64_t row_begin, std::int64_t row_end) {
  const int terms = bf16_terms(job.element);
  alignas(64) float values[kBlock];
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    const bool pads = row + 1 == job.rows && job.rows > kRows;  // of so few no more are read than there are
    for (std::int64_t block = job.begin; block < job.end; ++block) {
      auto* to = static_cast<std::uint16_t*>(job.out) + (row / kRows * job.blocks + block) * terms * kBlock * kRows;
      if (terms == 1 && !job.source && (block + 1) * kBlock <= job.k) {  // as they are
        const auto* from = static_cast<const std::uint16_t*>(job.x) + (job.place ? job.place[row] : row) * job.x_stride;
        for (int step = 0; step < kBlockSteps; ++step)
          std::memcpy(to + step * kTileElements + row % kRows * kStep, from + block * kBlock + step * kStep, kStep * 2);
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

// --- weights ---------------------------------------------------------------------------------------------------------

/// A panel: the weights of a segment and all 64 columns as tiles want them, [row pair][64 columns][2].
constexpr int kPanelRow = kTile * 2;

/// Weights to rows of a panel. q - zero, which bf16 holds exactly: sums need no correction for the zeros.
class Decoder {
 public:
  /// Of the segment at `at`.
  void zeros(const std::byte* at) {
    const __m512i bytes = _mm512_loadu_si512(at + kTile * 2);
    usual_ = _mm512_cmpneq_epi8_mask(bytes, _mm512_set1_epi8(8)) == 0;
    if (usual_) return;
    const __m512i repeat = _mm512_set4_epi32(0x0C0C0C0C, 0x08080808, 0x04040404, 0);
    unroll<kTile / kGroup>([&](auto g) __attribute__((always_inline)) {
      const __m512i lanes = _mm512_cvtepu8_epi32(_mm512_extracti32x4_epi32(bytes, g));
      zeros_[g] = _mm512_shuffle_epi8(lanes, repeat);
    });
  }

  /// `count` octets: 8 packed rows, four rows of the panel each.
  [[gnu::always_inline]] void octets(const std::byte* from, std::uint16_t* to, int count) const {
    if (usual_) {
      for (; count > 0; --count, from += kOctet, to += 4 * kPanelRow)
        unroll<kTile / kGroup>([&](auto g) __attribute__((always_inline)) {
          const __m512i lanes = _mm512_loadu_si512(from + g * 64);
          unroll<4>([&](auto i) __attribute__((always_inline)) { store<i, g>(to, Terms::pairs<i>(lanes)); });
        });
      return;
    }
    const __m512i low = _mm512_set1_epi8(15);
    for (; count > 0; --count, from += kOctet, to += 4 * kPanelRow)
      unroll<kTile / kGroup>([&](auto g) __attribute__((always_inline)) {
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
  template <int kRow, int kColumns>
  [[gnu::always_inline]] static void store(std::uint16_t* to, __m512i pairs) {
    _mm512_store_si512(to + kRow * kPanelRow + kColumns * 2 * kGroup, pairs);
  }
  /// vpermw reads the low five bits of each half: a difference of -15 to 15.
  [[gnu::always_inline]] static __m512i value(__m512i differences) {
    alignas(64) static constexpr std::uint16_t kTable[32] = {
        0x0000, 0x3F80, 0x4000, 0x4040, 0x4080, 0x40A0, 0x40C0, 0x40E0, 0x4100, 0x4110, 0x4120,
        0x4130, 0x4140, 0x4150, 0x4160, 0x4170, 0xC180, 0xC170, 0xC160, 0xC150, 0xC140, 0xC130,
        0xC120, 0xC110, 0xC100, 0xC0E0, 0xC0C0, 0xC0A0, 0xC080, 0xC040, 0xC000, 0xBF80};
    return _mm512_permutexvar_epi16(differences, _mm512_load_si512(kTable));
  }

  __m512i zeros_[kTile / kGroup];
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

// Tiles 0 and 1 hold sums, 4 a term of x, 6 and 7 weights. The others stay empty: a load waits until the processor has a
// tile to rename to, of which all that are not empty take one (README.md has the measurement).
constexpr int kSums = 2;

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

/// Nothing here writes x.
[[gnu::always_inline]] inline void load_x(const std::uint16_t* from, std::int64_t bytes) {
  _tile_loadd(4, from, bytes);
}

// --- products --------------------------------------------------------------------------------------------------------

/// Up to kPassRows rows times a tile of 64 columns, a segment after the other: 16 rows by the 32 columns of one half of
/// the panel, then by those of the other half, which find x in the first-level cache. The last rows decode the next
/// segment into the panel behind them. Sums are stored just before their tiles are wanted again, and added to y later.
template <int kTerms, int kSteps>
class Pass {
 public:
  Pass(const TileJob& job, int row)
      : rows_(job.rows - row < kPassRows ? job.rows - row : kPassRows),
        row_bytes_(job.x_stride ? job.x_stride * 2 : kStep * 2),
        step_x_(job.x_stride ? kStep : kTileElements),
        block_x_(job.x_stride ? kBlock : kRowsOfX),
        group_x_(job.x_stride ? job.x_stride * kRows : job.blocks * kRowsOfX),
        x_(static_cast<const std::uint16_t*>(job.x) + (job.row + row) / kRows * group_x_ + job.begin * block_x_),
        y_(job.y + std::int64_t(row) * kTile),
        header_(job.weights + job.begin * kBlockBytes),
        end_(job.weights + job.end * kBlockBytes),
        ahead_(header_ + kAhead) {}

  void run() {
    TileConfig config;
    if (rows_ < kRows)
      for (const int tile : {0, 1, 4}) config.rows[tile] = std::uint8_t(rows_);
    config.load();
    decoder_.zeros(header_);
    decoder_.octets(header_ + kHeader, panel_, kSteps * kOctets);
    for (int in_block = 0; header_ != end_; header_ += kSegmentBytes) {
      const std::uint16_t* x = x_ + in_block * step_x_;
      int group = 0;
      for (; group + kRows < rows_; group += kRows, x += group_x_) {
        multiply<0, false>(x, group);
        multiply<1, false>(x, group);
      }
      multiply<0, false>(x, group);
      if (header_ + kSegmentBytes != end_) {
        decoder_.zeros(header_ + kSegmentBytes);
        multiply<1, true>(x, group);
      } else {
        multiply<1, false>(x, group);
      }
      in_block += kSteps;
      if (in_block == kBlockSteps) in_block = 0, x_ += block_x_;
    }
    save<0>(), save<1>();
    add<1>(0, kRows, scales_of<1>(0), scales_of<1>(1), rows_ - before_.group);
  }

 private:
  static constexpr int kOctets = kStep / 8, kTerm = kBlock * kRows, kRowsOfX = kTerms * kTerm;
  static constexpr int kSegmentBytes = int(segment_bytes(kSteps * kStep));
  static constexpr std::int64_t kBlockBytes = std::int64_t(kSegmentBytes) * (kBlockSteps / kSteps);
  static constexpr int kLines = (kSegmentBytes + 2 * kSteps * 64 - 1) / (2 * kSteps * 64);  // of weights a step
  static constexpr int kAhead = 8192;  // bytes: of the weights asked for

  template <int kSum>
  [[gnu::always_inline]] void save() {
    if constexpr (kSum == 0) _tile_stored(0, sums_, 64);
    if constexpr (kSum == 0) _tile_zero(0);
    if constexpr (kSum == 1) _tile_stored(1, sums_ + kTileFloats, 64);
    if constexpr (kSum == 1) _tile_zero(1);
  }
  /// Of 16 columns of the sums that were stored, or are still in the tiles.
  template <int kHalf>
  [[gnu::always_inline]] __m512 scales_of(int columns) const {
    return Amx::load_f16(reinterpret_cast<const std::uint16_t*>(before_.header) + (kHalf * kSums + columns) * kGroup);
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

  /// The 16 rows from `group` on times half of the panel's columns; kDecode: the next segment takes its place.
  template <int kHalf, bool kDecode>
  [[gnu::always_inline]] void multiply(const std::uint16_t* x, int group) {
    const bool saves = before_.header != nullptr;
    // A few rows of the sums before after each product, so that loads of tiles never wait behind many.
    constexpr int kSlots = kSteps > 1 ? 2 * (kSteps - 1) : 1, kSlotRows = (kRows + kSlots - 1) / kSlots;
    const int rows_before = saves ? rows_ - before_.group : 0;
    __m512 scale_left = _mm512_setzero_ps(), scale_right = scale_left;
    if (saves) scale_left = scales_of<1 - kHalf>(0), scale_right = scales_of<1 - kHalf>(1);
    const auto add_rows = [&](int slot) __attribute__((always_inline)) {
      const int begin = slot * kSlotRows, end = begin + kSlotRows < kRows ? begin + kSlotRows : kRows;
      add<1 - kHalf>(begin, end, scale_left, scale_right, rows_before);
    };
    unroll<kSteps>([&](auto step) __attribute__((always_inline)) {
      std::uint16_t* const rows = panel_ + step * (kRows * kPanelRow);
      const std::uint16_t *left = rows + kHalf * kSums * kStep, *right = left + kStep;
      const bool save_now = step == 0 && saves;
      if constexpr (kTerms == 1) {
        load_x(x + step * step_x_, row_bytes_);
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
          load_x(x + term * kTerm + step * kTileElements, kStep * 2);
          if (term == 0 && save_now) save<0>();
          _tile_dpbf16ps(0, 4, 6);
          if (term == kTerms - 1 && step > 0) add_rows(2 * (step - 1));
          if (term == 0 && save_now) save<1>();
          _tile_dpbf16ps(1, 4, 7);
        });
        if (step > 0) add_rows(2 * (step - 1) + 1);
      }
      if (kSteps == 1) add_rows(0);
      if constexpr (kDecode)
        decoder_.octets(header_ + kSegmentBytes + kHeader + step * (kOctets * kOctet), rows, kOctets);
      if (group == 0)
        for (int line = 0; line < kLines; ++line) Amx::prefetch(ahead_ + line * 64);
      if (group == 0) ahead_ += kLines * 64;
    });
    before_ = {header_, group};
  }

  alignas(64) std::uint16_t panel_[kSteps * kRows * kPanelRow];
  alignas(64) float sums_[kSums * kTileFloats];
  Decoder decoder_;
  const int rows_;
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
  for (int row = 0; row < job.rows; row += kPassRows) Pass<kTerms, kSteps>(job, row).run();
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
  return true;
}

}  // namespace q4::cpu
#else
namespace q4::cpu {
bool amx_kernels(Kernels&) { return false; }
}  // namespace q4::cpu
#endif
