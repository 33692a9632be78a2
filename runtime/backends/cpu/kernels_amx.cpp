// Products on AMX tiles (TDPBF16PS); built with its flags (flags.cmake).
#include "runtime/backends/cpu/kernels.hpp"

#if (defined(__AMX_BF16__) || defined(__AMXBF16__)) && defined(__AVX512BW__)  // GCC's and clang's names
#include "runtime/backends/cpu/bf16_terms.hpp"

namespace q4::cpu {
namespace {

struct Amx : Avx512 {};
using Base = Fp32Kernels<Amx>;
using Terms = Bf16Terms<Amx>;
constexpr int kRows = 16;  // of a tile register
constexpr int kStep = 32;  // packed rows of W that one instruction multiplies
constexpr int kTileElements = kRows * kStep, kTileFloats = kRows * 16;
constexpr int kPanelColumns = kBlock / 2 * 32;  // elements of the panel from one 16 columns to the next

void pack_x(const PackX& job, std::int64_t row_begin, std::int64_t row_end) {
  const int terms = bf16_terms(job.element);
  const std::int64_t groups = (job.rows + kRows - 1) / kRows;
  alignas(64) float values[kBlock];
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    const bool last = row + 1 == job.rows;
    for (std::int64_t block = 0; block < job.blocks; ++block) {
      Base::load_block(job, row, block, values);
      Base::sum_segments(job, row, block, values);
      auto* to = static_cast<std::uint16_t*>(job.out) + (block * groups + row / kRows) * terms * kBlock * kRows;
      for (int step = 0; step < kBlock / kStep; ++step)
        Terms::split(values + step * kStep, terms, to + step * kTileElements + row % kRows * kStep, kBlock * kRows,
                     kStep);
      for (int pad = row % kRows + 1; last && pad < kRows; ++pad)
        for (int tile = 0; tile < terms * kBlock / kStep; ++tile)
          std::memset(to + tile * kTileElements + pad * kStep, 0, kStep * 2);
    }
  }
}

/// One block's codes as bf16 pairs in the order of tile rows: [column / 16][kBlock / 2][16][2].
void decode(const std::byte* at, int segment_rows, std::uint16_t* panel) {
  for (int segment = 0; segment < kBlock / segment_rows; ++segment, at += segment_bytes(segment_rows)) {
    const auto* words = reinterpret_cast<const std::uint32_t*>(at + kHeader);
    for (int octet = 0; octet < segment_rows / 8; ++octet, words += kTile, panel += 4 * 32) {
      for (int column = 0; column < kTile; column += 16) {
        const __m512i lanes = _mm512_loadu_si512(words + column);
        std::uint16_t* to = panel + column / 16 * kPanelColumns;
        unroll<4>([&](auto i)
                      __attribute__((always_inline)) { _mm512_store_si512(to + i * 32, Terms::pairs<i>(lanes)); });
      }
    }
  }
}

struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start = 0, reserved[14] = {};
  std::uint16_t column_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

/// The products of a unit, 32 rows (or 16) by 32 columns over one segment, on their way from tiles 0..3 into y.
struct Products {
  const std::byte* header = nullptr;  // null: none
  const float* sums;
  float* y;
  int column, tiles;  // 2: no second group of rows

  /// y += scale (product - (zero - 8) sum of x) for one tile.
  void add(const float* products, int tile) const {
    if (!header) return;
    const int first = column + tile % 2 * 16;
    const __m512 scale = Amx::load_f16(reinterpret_cast<const std::uint16_t*>(header) + first);
    const __m512 zero = _mm512_sub_ps(Amx::load_u8(reinterpret_cast<const std::uint8_t*>(header + kTile * 2) + first),
                                      _mm512_set1_ps(8));
    const float *product = products + tile * kTileFloats, *sum = sums + tile / 2 * kRows;
    float* to = y + tile / 2 * kRows * kTile + first;
    for (int row = 0; row < kRows; ++row, to += kTile) {
      const __m512 part = _mm512_fnmadd_ps(zero, _mm512_set1_ps(sum[row]), _mm512_load_ps(product + row * 16));
      _mm512_storeu_ps(to, _mm512_fmadd_ps(scale, part, _mm512_loadu_ps(to)));
    }
  }
};

/// Keeps the tile unit busy. Tiles 0..3 hold the sums of two groups of rows (0, 1 and 2, 3) by two of columns; 4 and 5
/// x, 6 and 7 weights. Each tile of sums is stored just before the first product of the next unit wants it, and added
/// to y between the products that follow. Stored all four at once and added in one go, they fill the processor's store
/// buffer, and the products wait: they then take half as long again.
class Multiplier {
 public:
  explicit Multiplier(const TileJob& job)
      : job_(job),
        slots_((job.rows + 2 * kRows - 1) / (2 * kRows) * (kTile / 32) * (kBlock / kStep) * job.terms),
        lines_(int(block_bytes(job.segment) / 64) + 1) {}

  /// All rows times one decoded block.
  void block(std::int64_t block, const std::uint16_t* panel) {
    const int segments = kBlock / job_.segment, steps = job_.segment / kStep;
    const std::int64_t groups = (job_.x_rows + kRows - 1) / kRows, group_elements = group();
    const std::byte* at = job_.weights + block * block_bytes(job_.segment);
    const auto* x = static_cast<const std::uint16_t*>(job_.x) + (block * groups + job_.row / kRows) * group_elements;
    const float* sums = job_.sums + block * segments * job_.x_rows + job_.row;
    ahead_ = at + block_bytes(job_.segment);
    for (int row = 0; row < job_.rows; row += 2 * kRows, x += 2 * group_elements) {
      const bool two = job_.rows - row > kRows;
      for (int column = 0; column < kTile; column += 32) {
        for (int segment = 0; segment < segments; ++segment) {
          const std::int64_t offset = std::int64_t(segment) * steps * kTileElements;
          const std::uint16_t* weights = panel + column / 16 * kPanelColumns + offset;
          if (two) {
            unit<true>(x + offset, weights, steps);
          } else {
            unit<false>(x + offset, weights, steps);
          }
          before_ = {at + segment * segment_bytes(job_.segment), sums + segment * job_.x_rows + row,
                     job_.y + row * kTile, column, two ? 4 : 2};
        }
      }
    }
  }

  void finish() {
    store_0();
    store_1();
    store_2();
    store_3();
    for (int tile = 0; tile < before_.tiles; ++tile) before_.add(products_, tile);
  }

 private:
  std::int64_t group() const { return std::int64_t(job_.terms) * kBlock * kRows; }

  // The intrinsics want literal numbers of tiles.
  void store_0() {
    _tile_stored(0, products_, 64);
    _tile_zero(0);
  }
  void store_1() {
    _tile_stored(1, products_ + kTileFloats, 64);
    _tile_zero(1);
  }
  void store_2() {
    _tile_stored(2, products_ + 2 * kTileFloats, 64);
    _tile_zero(2);
  }
  void store_3() {
    _tile_stored(3, products_ + 3 * kTileFloats, 64);
    _tile_zero(3);
  }

  template <bool kTwo>
  void unit(const std::uint16_t* x, const std::uint16_t* weights, int steps) {
    const int last = steps * job_.terms - 1;
    int slot = 0, added = 0;
    for (int step = 0; step < steps; ++step, x += kTileElements, weights += kTileElements) {
      _tile_loadd(6, weights, 64);
      _tile_loadd(7, weights + kPanelColumns, 64);
      for (int term = 0; term < job_.terms; ++term, ++slot) {
        const std::uint16_t* from = x + term * kBlock * kRows;
        _tile_loadd(4, from, 64);
        if (slot == 0) store_0();
        _tile_dpbf16ps(0, 4, 6);
        if (slot == 0) store_1();
        _tile_dpbf16ps(1, 4, 7);
        if constexpr (kTwo) _tile_loadd(5, from + group(), 64);
        if (slot == 0 && (kTwo || before_.tiles > 2)) store_2();
        if constexpr (kTwo) _tile_dpbf16ps(2, 5, 6);
        if (slot == 0 && (kTwo || before_.tiles > 2)) store_3();
        if constexpr (kTwo) _tile_dpbf16ps(3, 5, 7);
        for (; added < before_.tiles && (added * last < slot * 4 || slot == last); ++added)
          before_.add(products_, added);
        for (due_ += lines_; due_ >= slots_; due_ -= slots_, ahead_ += 64) Amx::prefetch(ahead_);
      }
    }
  }

  const TileJob& job_;
  Products before_{};
  const int slots_, lines_;           // of a block: products of a step and term; lines to ask for meanwhile
  const std::byte* ahead_ = nullptr;  // in the next block
  int due_ = 0;                       // lines, in parts of slots_
  alignas(64) float products_[4 * kTileFloats];
};

void amx(const TileJob& job) {
  static constexpr TileConfig kConfig;
  _tile_loadconfig(&kConfig);
  if (job.begin == 0) std::memset(job.y, 0, std::size_t(job.rows) * kTile * sizeof(float));
  auto* panel = static_cast<std::uint16_t*>(job.scratch);
  Multiplier multiplier(job);
  for (std::int64_t block = job.begin; block < job.blocks; ++block) {
    decode(job.weights + block * block_bytes(job.segment), job.segment, panel);
    multiplier.block(block, panel);
  }
  multiplier.finish();
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
