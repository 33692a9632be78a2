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
constexpr int kTileElements = kRows * kStep;
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
  int pair = 0;
  for (int segment = 0; segment < kBlock / segment_rows; ++segment, at += segment_bytes(segment_rows)) {
    Base::prefetch_gap(at);
    const auto* words = reinterpret_cast<const std::uint32_t*>(at + kHeader);
    for (int octet = 0; octet < segment_rows / 8; ++octet, words += kTile, pair += 4) {
      for (int column = 0; column < kTile; column += 16) {
        const __m512i lanes = _mm512_loadu_si512(words + column);
        Amx::prefetch(words + column + Base::kPrefetch);
        std::uint16_t* to = panel + column / 16 * kPanelColumns + pair * 32;
        unroll<4>([&](auto i)
                      __attribute__((always_inline)) { _mm512_store_si512(to + i * 32, Terms::pairs<i>(lanes)); });
      }
    }
  }
}

/// y += scale (sum - (zero - 8) sum of x) for 16 columns.
void add_tile(const float* products, const std::byte* header, int column, const float* sums, int rows, float* y) {
  const __m512 scale = Amx::load_f16(reinterpret_cast<const std::uint16_t*>(header) + column);
  const __m512 zero = _mm512_sub_ps(Amx::load_u8(reinterpret_cast<const std::uint8_t*>(header + kTile * 2) + column),
                                    _mm512_set1_ps(8));
  for (int row = 0; row < rows; ++row) {
    const __m512 part = _mm512_fnmadd_ps(zero, _mm512_set1_ps(sums[row]), _mm512_load_ps(products + row * 16));
    float* to = y + row * kTile + column;
    _mm512_storeu_ps(to, _mm512_fmadd_ps(scale, part, _mm512_loadu_ps(to)));
  }
}

struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start = 0, reserved[14] = {};
  std::uint16_t column_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

/// Tiles 0..3: sums of two groups of rows (0, 1 and 2, 3) by two of columns; 4, 5: x; 6, 7: weights.
template <bool kTwo>
void multiply_segment(const std::uint16_t* x, std::int64_t group_elements, int terms, int steps,
                      const std::uint16_t* weights) {
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (kTwo) {
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int step = 0; step < steps; ++step, x += kTileElements, weights += kTileElements) {
    _tile_loadd(6, weights, 64);
    _tile_loadd(7, weights + kPanelColumns, 64);
    for (int term = 0; term < terms; ++term) {
      _tile_loadd(4, x + term * kBlock * kRows, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if constexpr (kTwo) {
        _tile_loadd(5, x + group_elements + term * kBlock * kRows, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
  }
}

/// The products of one multiply_segment, in memory, on their way into y: up to 32 rows by 32 columns.
struct Products {
  const float* tiles = nullptr;  // [4][kRows][16]; null: none
  const std::byte* header;
  const float* sums;
  float* y;
  int column, first, second;  // rows of tiles 0, 1 and of 2, 3

  void add() const {
    if (!tiles) return;
    add_tile(tiles, header, column, sums, first, y);
    add_tile(tiles + kRows * 16, header, column + 16, sums, first, y);
    if (second == 0) return;
    add_tile(tiles + 2 * kRows * 16, header, column, sums + kRows, second, y + kRows * kTile);
    add_tile(tiles + 3 * kRows * 16, header, column + 16, sums + kRows, second, y + kRows * kTile);
  }
};

/// All rows times one decoded block. The tile unit multiplies one group of rows while the vector unit adds the products
/// of the one before.
void multiply_block(const TileJob& job, std::int64_t block, const std::uint16_t* panel) {
  alignas(64) float products[2][4 * kRows * 16];
  const std::int64_t groups = (job.x_rows + kRows - 1) / kRows,
                     group_elements = std::int64_t(job.terms) * kBlock * kRows;
  const int segments = kBlock / job.segment, steps = job.segment / kStep;
  const std::byte* at = job.weights + block * block_bytes(job.segment);
  const auto* x = static_cast<const std::uint16_t*>(job.x) + (block * groups + job.row / kRows) * group_elements;
  const float* sums = job.sums + block * segments * job.x_rows + job.row;
  Products before;
  int buffer = 0;
  for (int row = 0; row < job.rows; row += 2 * kRows, x += 2 * group_elements) {
    const int rest = job.rows - row, first = rest < kRows ? rest : kRows;
    const int second = rest - first < kRows ? rest - first : kRows;
    for (int column = 0; column < kTile; column += 32) {
      for (int segment = 0; segment < segments; ++segment) {
        const std::int64_t offset = std::int64_t(segment) * steps * kTileElements;
        const std::uint16_t* weights = panel + column / 16 * kPanelColumns + offset;
        if (second > 0) {
          multiply_segment<true>(x + offset, group_elements, job.terms, steps, weights);
        } else {
          multiply_segment<false>(x + offset, group_elements, job.terms, steps, weights);
        }
        before.add();
        float* tiles = products[buffer];
        buffer ^= 1;
        _tile_stored(0, tiles, 64);
        _tile_stored(1, tiles + kRows * 16, 64);
        if (second > 0) {
          _tile_stored(2, tiles + 2 * kRows * 16, 64);
          _tile_stored(3, tiles + 3 * kRows * 16, 64);
        }
        before = {tiles,
                  at + segment * segment_bytes(job.segment),
                  sums + segment * job.x_rows + row,
                  job.y + row * kTile,
                  column,
                  first,
                  second};
      }
    }
  }
  before.add();
}

void amx(const TileJob& job) {
  static constexpr TileConfig kConfig;
  _tile_loadconfig(&kConfig);
  std::memset(job.y, 0, std::size_t(job.rows) * kTile * sizeof(float));
  auto* panel = static_cast<std::uint16_t*>(job.scratch);
  for (std::int64_t block = 0; block < job.blocks; ++block) {
    decode(job.weights + block * block_bytes(job.segment), job.segment, panel);
    multiply_block(job, block, panel);
  }
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
