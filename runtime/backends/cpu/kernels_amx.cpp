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
constexpr int kSteps = kBlock / kStep;

// --- activations -----------------------------------------------------------------------------------------------------

void pack_x(const PackX& job, std::int64_t row_begin, std::int64_t row_end) {
  const int terms = bf16_terms(job.element);
  const std::int64_t groups = (job.rows + kRows - 1) / kRows;
  alignas(64) float values[kBlock];
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    const bool last = row + 1 == job.rows;
    for (std::int64_t block = job.begin; block < job.end; ++block) {
      Base::load_block(job, row, block, values);
      auto* to = static_cast<std::uint16_t*>(job.out) + (block * groups + row / kRows) * terms * kBlock * kRows;
      for (int step = 0; step < kSteps; ++step)
        Terms::split(values + step * kStep, terms, to + step * kTileElements + row % kRows * kStep, kBlock * kRows,
                     kStep);
      for (int pad = row % kRows + 1; last && pad < kRows; ++pad)
        for (int tile = 0; tile < terms * kSteps; ++tile)
          std::memset(to + tile * kTileElements + pad * kStep, 0, kStep * 2);
    }
  }
}

// --- weights ---------------------------------------------------------------------------------------------------------

/// q - zero, which bf16 holds exactly: sums need no correction for the zeros.
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

  /// 8 packed rows of the 16 columns of `group` as bf16 pairs in the order of tile rows.
  void octet(const std::uint32_t* words, int group, std::uint16_t* to) const {
    const __m512i lanes = _mm512_loadu_si512(words + group * kGroup);
    if (usual_) {
      unroll<4>([&](auto i)
                    __attribute__((always_inline)) { _mm512_store_si512(to + i * 32, Terms::pairs<i>(lanes)); });
      return;
    }
    const __m512i low = _mm512_set1_epi8(15), zero = zeros_[group];
    const __m512i even = _mm512_sub_epi8(_mm512_and_si512(lanes, low), zero);
    const __m512i odd = _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi32(lanes, 4), low), zero);
    _mm512_store_si512(to, value(even));
    _mm512_store_si512(to + 32, value(odd));
    _mm512_store_si512(to + 64, value(_mm512_srli_epi16(even, 8)));
    _mm512_store_si512(to + 96, value(_mm512_srli_epi16(odd, 8)));
  }

 private:
  /// vpermw reads the low five bits of each half: a difference of -15 to 15.
  static __m512i value(__m512i differences) {
    alignas(64) static constexpr std::uint16_t kTable[32] = {
        0x0000, 0x3F80, 0x4000, 0x4040, 0x4080, 0x40A0, 0x40C0, 0x40E0, 0x4100, 0x4110, 0x4120,
        0x4130, 0x4140, 0x4150, 0x4160, 0x4170, 0xC180, 0xC170, 0xC160, 0xC150, 0xC140, 0xC130,
        0xC120, 0xC110, 0xC100, 0xC0E0, 0xC0C0, 0xC0A0, 0xC080, 0xC040, 0xC000, 0xBF80};
    return _mm512_permutexvar_epi16(differences, _mm512_load_si512(kTable));
  }

  __m512i zeros_[kTile / kGroup];
  bool usual_ = true;  // 8 everywhere, as in symmetric quantization
};

/// y += scale * product for one tile register's `rows` rows and 16 columns.
void add(const float* product, int rows, const std::byte* header, int column, float* y) {
  const __m512 scale = Amx::load_f16(reinterpret_cast<const std::uint16_t*>(header) + column);
  y += column;
  for (int row = 0; row < rows; ++row, y += kTile, product += kGroup)
    _mm512_storeu_ps(y, _mm512_fmadd_ps(scale, _mm512_load_ps(product), _mm512_loadu_ps(y)));
}

struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start = 0, reserved[14] = {};
  std::uint16_t column_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  void load() const {
    asm volatile("" : : "m"(*this));  // GCC's intrinsic says that it reads the first eight bytes
    _tile_loadconfig(this);
  }
};
/// Tiles 0..3 hold sums, 4 to 6 terms of x, with `rows` rows; 6 or 7 and 7 weights, with 16.
TileConfig one_row_of_tiles(int count, int terms) {
  TileConfig config;
  for (int tile = 0; tile < (terms == 3 ? 7 : 6); ++tile) config.rows[tile] = std::uint8_t(count);
  return config;
}
/// Tiles 0 and 1 hold sums of the first 16 rows, 2 and 3 those of the `count` - 16 others, 4 and 5 a term of x of the one
/// and of the others; 6 and 7 weights.
TileConfig two_rows_of_tiles(int count) {
  TileConfig config;
  for (const int tile : {2, 3, 5}) config.rows[tile] = std::uint8_t(count - kRows);
  return config;
}

// The intrinsics want literal numbers of tiles.
template <int kTile>
void load_tile(const std::uint16_t* from) {
  if constexpr (kTile == 4) _tile_loadd(4, from, 64);
  if constexpr (kTile == 5) _tile_loadd(5, from, 64);
  if constexpr (kTile == 6) _tile_loadd(6, from, 64);
  if constexpr (kTile == 7) _tile_loadd(7, from, 64);
}

template <int kSum>
void store_sum(float* products) {
  float* to = products + kSum * kTileFloats;
  if constexpr (kSum == 0) _tile_stored(0, to, 64);
  if constexpr (kSum == 0) _tile_zero(0);
  if constexpr (kSum == 1) _tile_stored(1, to, 64);
  if constexpr (kSum == 1) _tile_zero(1);
  if constexpr (kSum == 2) _tile_stored(2, to, 64);
  if constexpr (kSum == 2) _tile_zero(2);
  if constexpr (kSum == 3) _tile_stored(3, to, 64);
  if constexpr (kSum == 3) _tile_zero(3);
}

/// sum += x_term * weights.
template <int kSum, int kTerm, int kWeights>
void product() {
  constexpr int kCase = kSum * 100 + kTerm * 10 + kWeights;
  if constexpr (kCase == 6) _tile_dpbf16ps(0, 4, 6);
  if constexpr (kCase == 16) _tile_dpbf16ps(0, 5, 6);
  if constexpr (kCase == 107) _tile_dpbf16ps(1, 4, 7);
  if constexpr (kCase == 117) _tile_dpbf16ps(1, 5, 7);
  if constexpr (kCase == 206) _tile_dpbf16ps(2, 4, 6);
  if constexpr (kCase == 216) _tile_dpbf16ps(2, 5, 6);
  if constexpr (kCase == 307) _tile_dpbf16ps(3, 4, 7);
  if constexpr (kCase == 317) _tile_dpbf16ps(3, 5, 7);
  if constexpr (kCase == 7) _tile_dpbf16ps(0, 4, 7);  // from here on: three terms
  if constexpr (kCase == 17) _tile_dpbf16ps(0, 5, 7);
  if constexpr (kCase == 27) _tile_dpbf16ps(0, 6, 7);
  if constexpr (kCase == 127) _tile_dpbf16ps(1, 6, 7);
  if constexpr (kCase == 207) _tile_dpbf16ps(2, 4, 7);
  if constexpr (kCase == 217) _tile_dpbf16ps(2, 5, 7);
  if constexpr (kCase == 227) _tile_dpbf16ps(2, 6, 7);
  if constexpr (kCase == 327) _tile_dpbf16ps(3, 6, 7);
}

// --- products --------------------------------------------------------------------------------------------------------

/// Up to 16 rows from `row` on times a tile of 64 columns. While a step of 32 packed rows is multiplied, the next one is
/// decoded into the other half of 8 KiB: the first-level cache, which two threads may share, holds all that is in use.
/// A sum is stored just before the first product of the next segment wants its tile, and added to y after that step.
template <int kTerms>
void multiply(const TileJob& job, int row) {
  constexpr int kHalf = kTile * kStep;  // elements
  constexpr int kGroups = kTile / kGroup, kOctets = kStep / 8;
  constexpr int kAhead = 4096;  // bytes: of the weights asked for
  const int rows = job.rows - row < kRows ? job.rows - row : kRows;
  one_row_of_tiles(rows, kTerms).load();
  alignas(64) std::uint16_t ring[2 * kHalf];
  alignas(64) float products[kGroups * kTileFloats];
  const std::int64_t block_x = (job.x_rows + kRows - 1) / kRows * kTerms * kBlock * kRows;
  const auto* x = static_cast<const std::uint16_t*>(job.x) + job.begin * block_x +
                  (job.row + row) / kRows * kTerms * kBlock * kRows;
  float* const y = job.y + std::int64_t(row) * kTile;
  const int segment_steps = job.segment / kStep, segment_size = int(segment_bytes(job.segment));
  const int lines = int((block_bytes(job.segment) / 64 + kSteps - 1) / kSteps);
  const std::byte *header = job.weights + job.begin * block_bytes(job.segment), *before = nullptr;
  const std::byte* ahead = header + kAhead;
  Decoder decoder;
  decoder.zeros(header);
  const auto* words = reinterpret_cast<const std::uint32_t*>(header + kHeader);
  const auto decode = [&](int group, std::uint16_t* to) __attribute__((always_inline)) {
    for (int octet = 0; octet < kOctets; ++octet)
      decoder.octet(words + octet * kTile, group, to + group * kTileElements + octet * 4 * 32);
  };
  const auto add_all = [&] {
    for (int c = 0; c < kGroups; ++c) add(products + c * kTileFloats, rows, before, c * kGroup, y);
  };
  for (int group = 0; group < kGroups; ++group) decode(group, ring);
  const std::int64_t steps = (job.end - job.begin) * kSteps;
  int in_segment = 0, in_block = 0;
  for (std::int64_t step = 0; step < steps; ++step) {
    const std::uint16_t* from = ring + (step & 1) * kHalf;
    std::uint16_t* to = ring + (~step & 1) * kHalf;
    const bool first = in_segment == 0, more = step + 1 < steps, last = in_segment + 1 == segment_steps;
    if (more && last) decoder.zeros(header + segment_size);
    words = reinterpret_cast<const std::uint32_t*>(header + (last ? segment_size : 0) + kHeader) +
            (last ? 0 : (in_segment + 1) * kOctets * kTile);
    unroll<kTerms>([&](auto term) __attribute__((always_inline)) {
      load_tile<4 + term>(x + term * kBlock * kRows + in_block * kTileElements);
    });
    unroll<kGroups>([&](auto c) __attribute__((always_inline)) {
      constexpr int kWeights = kTerms == 3 ? 7 : 6 + c % 2;
      load_tile<kWeights>(from + c * kTileElements);
      if (first) store_sum<c>(products);
      unroll<kTerms>([&](auto term) __attribute__((always_inline)) { product<c, term, kWeights>(); });
      if (more) decode(c, to);
    });
    for (int line = 0; line < lines; ++line, ahead += 64) Amx::prefetch(ahead);
    if (first && before) add_all();
    if (++in_segment == segment_steps) in_segment = 0, before = header, header += segment_size;
    if (++in_block == kSteps) in_block = 0, x += block_x;
  }
  unroll<kGroups>([&](auto c) __attribute__((always_inline)) { store_sum<c>(products); });
  add_all();
}

/// 17 to 32 rows from `row` on times a tile of 64 columns: half of its columns after the other for each segment, so that
/// a load of a tile serves two products. Codes are decoded a step of 32 x 32 ahead, into the other half of 4 KiB. Sums are
/// those of multiply() to the bit.
template <int kTerms>
void multiply_pair(const TileJob& job, int row) {
  constexpr int kGroups = 2, kUnit = kGroups * kTileElements, kOctets = kStep / 8;
  constexpr int kAhead = 8192;  // bytes: of the weights asked for
  const int rows = job.rows - row < 2 * kRows ? job.rows - row : 2 * kRows;
  two_rows_of_tiles(rows).load();
  alignas(64) std::uint16_t ring[2 * kUnit];
  alignas(64) float products[2 * kGroups * kTileFloats];
  constexpr std::int64_t kRowsOfX = kTerms * kBlock * kRows;
  const std::int64_t block_x = (job.x_rows + kRows - 1) / kRows * kRowsOfX;
  const auto* x = static_cast<const std::uint16_t*>(job.x) + job.begin * block_x + (job.row + row) / kRows * kRowsOfX;
  float* const y = job.y + std::int64_t(row) * kTile;
  const int segment_steps = job.segment / kStep, segment_size = int(segment_bytes(job.segment));
  const int lines = int((block_bytes(job.segment) / 64 + 2 * kSteps - 1) / (2 * kSteps));
  const std::byte* header = job.weights + job.begin * block_bytes(job.segment);
  const std::byte* ahead = header + kAhead;
  struct Sums {
    const std::byte* header;
    int half;
  } before{nullptr, 0};
  Decoder decoder;
  decoder.zeros(header);
  const auto* words = reinterpret_cast<const std::uint32_t*>(header + kHeader);
  int decoded_half = 0;
  const auto decode = [&](auto quarter, std::uint16_t* to) __attribute__((always_inline)) {
    constexpr int kColumns = quarter / 2, kFirst = quarter % 2 * kOctets / 2;
    for (int octet = kFirst; octet < kFirst + kOctets / 2; ++octet)
      decoder.octet(words + octet * kTile, kGroups * decoded_half + kColumns,
                    to + kColumns * kTileElements + octet * 4 * 32);
  };
  const auto add_all = [&] {
    for (int sum = 0; sum < 2 * kGroups; ++sum)
      add(products + sum * kTileFloats, sum < kGroups ? kRows : rows - kRows, before.header,
          (kGroups * before.half + sum % kGroups) * kGroup, y + sum / kGroups * kRows * kTile);
  };
  unroll<4>([&](auto quarter) __attribute__((always_inline)) { decode(quarter, ring); });
  const std::int64_t segments = (job.end - job.begin) * (kBlock / job.segment);
  int parity = 0, in_block = 0;
  for (std::int64_t segment = 0; segment < segments; ++segment) {
    for (int half = 0; half < 2; ++half) {
      for (int step = 0; step < segment_steps; ++step, parity ^= 1) {
        const std::uint16_t *from = ring + parity * kUnit, *x_step = x + (in_block + step) * kTileElements;
        std::uint16_t* to = ring + (parity ^ 1) * kUnit;
        const bool last = step + 1 == segment_steps, more = !last || half == 0 || segment + 1 < segments;
        const bool save = step == 0 && before.header;
        const std::byte* next = header + (last && half == 1 ? segment_size : 0);
        if (more && next != header) decoder.zeros(next);
        words = reinterpret_cast<const std::uint32_t*>(next + kHeader) + (last ? 0 : step + 1) * kOctets * kTile;
        decoded_half = last ? 1 - half : half;
        load_tile<6>(from);
        load_tile<7>(from + kTileElements);
        unroll<kTerms>([&](auto term) __attribute__((always_inline)) {
          constexpr bool kFirst = term == 0,
                         kSecond = term == (kTerms > 1 ? 1 : 0);  // which decode half of the quarters each
          load_tile<4>(x_step + term * kBlock * kRows);
          if (kFirst && save) store_sum<0>(products);
          _tile_dpbf16ps(0, 4, 6);
          if (kFirst && more) decode(Index<0>{}, to);
          if (kFirst && save) store_sum<1>(products);
          _tile_dpbf16ps(1, 4, 7);
          load_tile<5>(x_step + kRowsOfX + term * kBlock * kRows);
          if (kSecond && more) decode(Index<1>{}, to);
          if (kFirst && save) store_sum<2>(products);
          _tile_dpbf16ps(2, 5, 6);
          if (kFirst && more) decode(Index<2>{}, to);
          if (kFirst && save) store_sum<3>(products);
          _tile_dpbf16ps(3, 5, 7);
          if (kSecond && more) decode(Index<3>{}, to);
        });
        for (int line = 0; line < lines; ++line, ahead += 64) Amx::prefetch(ahead);
        if (save) add_all();
      }
      before = {header, half};
    }
    header += segment_size;
    in_block += segment_steps;
    if (in_block == kSteps) in_block = 0, x += block_x;
  }
  unroll<2 * kGroups>([&](auto sum) __attribute__((always_inline)) { store_sum<sum>(products); });
  add_all();
}

template <int kTerms>
void multiply_all(const TileJob& job) {
  for (int row = 0; row < job.rows; row += 2 * kRows) {
    if (job.rows - row > kRows) {
      multiply_pair<kTerms>(job, row);
    } else {
      multiply<kTerms>(job, row);
    }
  }
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
