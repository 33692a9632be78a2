// Products with AVX-512 BF16 (VDPBF16PS); built with its flags (flags.cmake).
#include "runtime/backends/cpu/kernels.hpp"

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#include "runtime/backends/cpu/bf16_terms.hpp"

namespace q4::cpu {
namespace {

struct Avx512Bf16 : Avx512 {};
using Base = Fp32Kernels<Avx512Bf16>;
using Terms = Bf16Terms<Avx512Bf16>;
using F = __m512;
constexpr int kVectors = 2, kRows = 12, kWideVectors = 4, kWideRows = 4;
constexpr int kPanelColumns = kVectors * 16;

void pack_x(const PackX& job, std::int64_t row_begin, std::int64_t row_end) {
  alignas(64) float values[kBlock];
  for (std::int64_t row = row_begin; row < row_end; ++row) {
    for (std::int64_t block = job.begin; block < job.end; ++block) {
      Base::load_block(job, row, block, values);
      Base::sum_segments(job, row, block, values);
      Terms::split(values, 1, static_cast<std::uint16_t*>(job.out) + (block * job.rows + row) * kBlock, kBlock, kBlock);
    }
  }
}

F dot(F sum, __m512i weights, const std::uint16_t* pair) {
  int both;
  std::memcpy(&both, pair, sizeof both);
  return _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)_mm512_set1_epi32(both));
}

/// As Fp32Kernels::multiply, on pairs of rows: bf16 activations as they are. More terms
/// would cost what fp32 costs.
template <int R, int V, bool kPanel>
void multiply(const TileJob& job, std::int64_t block, const std::uint16_t* panel, int row, int column) {
  const int segments = kBlock / job.segment;
  const auto* x = static_cast<const std::uint16_t*>(job.x) + (block * job.x_rows + job.row + row) * kBlock;
  const float* sums = job.sums + block * segments * job.x_rows + job.row + row;
  const std::byte* at = job.weights + block * block_bytes(job.segment);
  float* y = job.y + row * kTile + column;
  for (int segment = 0; segment < segments; ++segment) {
    F acc[R * V];
    unroll<R * V>([&](auto i) __attribute__((always_inline)) { acc[i] = _mm512_setzero_ps(); });
    if constexpr (!kPanel && V == kWideVectors) Base::prefetch_gap(at);
    const auto* words = reinterpret_cast<const std::uint32_t*>(at + kHeader) + column;
    for (int octet = 0; octet < job.segment / 8; ++octet, words += kTile, x += 8) {
      __m512i lanes[V];
      if constexpr (!kPanel)
        unroll<V>([&](auto v) __attribute__((always_inline)) {
          lanes[v] = _mm512_loadu_si512(words + v * 16);
          if constexpr (V == kWideVectors) Avx512Bf16::prefetch(words + v * 16 + Base::kPrefetch);
        });
      unroll<4>([&](auto i) __attribute__((always_inline)) {
        __m512i weights[V];
        unroll<V>([&](auto v) __attribute__((always_inline)) {
          if constexpr (kPanel) {
            weights[v] = _mm512_load_si512(panel + (i * V + v) * 32);
          } else {
            weights[v] = Terms::pairs<i>(lanes[v]);
          }
        });
        unroll<R>([&](auto r) __attribute__((always_inline)) {
          unroll<V>([&](auto v) __attribute__((always_inline)) {
            acc[r * V + v] = dot(acc[r * V + v], weights[v], x + r * kBlock + 2 * i);
          });
        });
      });
      if constexpr (kPanel) panel += 4 * V * 32;
    }
    asm volatile("" ::: "memory");  // as in the fp32 kernels
    const auto* scales = reinterpret_cast<const std::uint16_t*>(at) + column;
    const auto* zeros = reinterpret_cast<const std::uint8_t*>(at + kTile * 2) + column;
    unroll<V>([&](auto v) __attribute__((always_inline)) {
      const F scale = Avx512Bf16::load_f16(scales + v * 16);
      const F zero = _mm512_sub_ps(Avx512Bf16::load_u8(zeros + v * 16), _mm512_set1_ps(8));
      unroll<R>([&](auto r) __attribute__((always_inline)) {
        float* to = y + r * kTile + v * 16;
        const F part = _mm512_fnmadd_ps(zero, _mm512_set1_ps(sums[r]), acc[r * V + v]);
        _mm512_storeu_ps(to, _mm512_fmadd_ps(scale, part, _mm512_loadu_ps(to)));
      });
    });
    at += segment_bytes(job.segment);
    sums += job.x_rows;
  }
}

using Multiply = void (*)(const TileJob&, std::int64_t, const std::uint16_t*, int, int);
template <int V, bool kPanel, int... R>
Multiply pick(std::integer_sequence<int, R...>, int rows) {
  static constexpr Multiply kTable[] = {&multiply<R + 1, V, kPanel>...};
  return kTable[rows - 1];
}
using Rows = std::make_integer_sequence<int, kRows>;
using WideRows = std::make_integer_sequence<int, kWideRows>;

void direct(const TileJob& job) {
  if (!job.add) std::memset(job.y, 0, std::size_t(job.rows) * kTile * sizeof(float));
  for (std::int64_t block = job.begin; block < job.end; ++block) {
    for (int row = 0, count = 0; row < job.rows; row += count) {
      count = Base::pass_rows(job.rows - row, kRows);
      const bool wide = count <= kWideRows;
      const Multiply run = wide ? pick<kWideVectors, false>(WideRows{}, count) : pick<kVectors, false>(Rows{}, count);
      const int step = (wide ? kWideVectors : kVectors) * 16;
      for (int column = 0; column < kTile; column += step) run(job, block, nullptr, row, column);
    }
  }
}

/// One block's codes as bf16 pairs, [kTile / kPanelColumns][kBlock / 2][kPanelColumns][2].
void decode(const std::byte* at, int segment_rows, std::uint16_t* panel) {
  int pair = 0;
  for (int segment = 0; segment < kBlock / segment_rows; ++segment, at += segment_bytes(segment_rows)) {
    Base::prefetch_gap(at);
    const auto* words = reinterpret_cast<const std::uint32_t*>(at + kHeader);
    for (int octet = 0; octet < segment_rows / 8; ++octet, words += kTile, pair += 4) {
      for (int column = 0; column < kTile; column += 16) {
        const __m512i lanes = _mm512_loadu_si512(words + column);
        Avx512Bf16::prefetch(words + column + Base::kPrefetch);
        std::uint16_t* to =
            panel + (column / kPanelColumns * kBlock / 2 + pair) * kPanelColumns * 2 + column % kPanelColumns * 2;
        unroll<4>([&](auto i) __attribute__((always_inline)) {
          _mm512_store_si512(to + i * kPanelColumns * 2, Terms::pairs<i>(lanes));
        });
      }
    }
  }
}

void panel(const TileJob& job) {
  if (!job.add) std::memset(job.y, 0, std::size_t(job.rows) * kTile * sizeof(float));
  auto* panel = static_cast<std::uint16_t*>(job.scratch);
  for (std::int64_t block = job.begin; block < job.end; ++block) {
    decode(job.weights + block * block_bytes(job.segment), job.segment, panel);
    for (int column = 0; column < kTile; column += kPanelColumns) {
      for (int row = 0, count = 0; row < job.rows; row += count) {
        count = Base::pass_rows(job.rows - row, kRows);
        pick<kVectors, true>(Rows{}, count)(job, block, panel + column * kBlock, row, column);
      }
    }
  }
}

}  // namespace

bool avx512_bf16_kernels(Kernels& kernels) {
  kernels.pack_x_bf16 = &pack_x;
  kernels.direct_bf16 = &direct;
  kernels.panel_bf16 = &panel;
  kernels.direct_rows_bf16 = kRows;
  return true;
}

}  // namespace q4::cpu
#else
namespace q4::cpu {
bool avx512_bf16_kernels(Kernels&) { return false; }
}  // namespace q4::cpu
#endif
