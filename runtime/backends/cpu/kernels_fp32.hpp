// The fp32 kernels, for any set of vector operations S. Included by one file per instruction set.
//
// Every path adds a row's products in the same order: over the rows of a segment, then one correction for the zeros and
// one multiply-add with the scales per segment. So a row of the result has the same bits whatever m, tile and thread
// computed it, and `direct` and `panel` agree to the bit.
#pragma once

#include <cstdint>
#include <cstring>

#include "runtime/backends/cpu/kernels.hpp"
#include "runtime/backends/cpu/unroll.hpp"

namespace q4::cpu {

template <class S>
struct Fp32Kernels {
  using F = typename S::F;
  using W = typename S::W;
  static constexpr int kPanelColumns = S::kPanelVectors * S::kLanes;
  /// Words that codes are asked for ahead of their use. Without it the stream runs at two thirds of the memory's speed,
  /// and from 4 KiB on the requests crowd out each other.
  static constexpr int kPrefetch = 1024 / 4;

  // --- activations ---------------------------------------------------------------------------------------------------

  template <class T>
  static void gather(const T* x, const std::int32_t* source, T* values) {
    for (int i = 0; i < kBlock; ++i) values[i] = source[i] < 0 ? T(0) : x[source[i]];
  }

  /// 128 packed columns of one row of x, as fp32.
  static void load_block(const PackX& job, std::int64_t row, std::int64_t block, float* values) {
    const std::int64_t first = block * kBlock;
    const std::int64_t there = job.source ? kBlock : job.k - first < kBlock ? job.k - first : kBlock;
    if (job.place) row = job.place[row];
    if (job.element == Element::kF32) {
      const float* x = static_cast<const float*>(job.x) + row * job.x_stride;
      if (job.source) return gather(x, job.source + first, values);
      std::memset(values, 0, kBlock * sizeof(float));
      if (there > 0) std::memcpy(values, x + first, std::size_t(there) * sizeof(float));
      return;
    }
    const std::uint16_t* x = static_cast<const std::uint16_t*>(job.x) + row * job.x_stride;
    alignas(64) std::uint16_t halves[kBlock];
    const std::uint16_t* from = halves;
    if (job.source) {
      gather(x, job.source + first, halves);
    } else if (there == kBlock) {
      from = x + first;
    } else {
      std::memset(halves, 0, sizeof halves);
      if (there > 0) std::memcpy(halves, x + first, std::size_t(there) * 2);
    }
    for (int i = 0; i < kBlock; i += S::kLanes)
      S::store(values + i, job.element == Element::kF16 ? S::load_f16(from + i) : S::load_bf16(from + i));
  }

  static void sum_segments(const PackX& job, std::int64_t row, std::int64_t block, const float* values) {
    const int segments = kBlock / job.segment;
    for (int segment = 0; segment < segments; ++segment) {
      F sum = S::zero();
      for (int i = 0; i < job.segment; i += S::kLanes) sum = S::add(sum, S::load(values + segment * job.segment + i));
      float lanes[S::kLanes], total = 0;
      S::store(lanes, sum);
      for (int i = 0; i < S::kLanes; ++i) total += lanes[i];
      job.sums[(block * segments + segment) * job.rows + row] = total;
    }
  }

  static void pack_x(const PackX& job, std::int64_t row_begin, std::int64_t row_end) {
    float* out = static_cast<float*>(job.out);
    for (std::int64_t row = row_begin; row < row_end; ++row) {
      for (std::int64_t block = job.begin; block < job.end; ++block) {
        float* values = out + (block * job.rows + row) * kBlock;
        load_block(job, row, block, values);
        sum_segments(job, row, block, values);
      }
    }
  }

  /// Rows of a pass over `left` rows that are split into equal passes of at most `most`.
  static int pass_rows(std::int64_t left, int most) {
    const std::int64_t passes = (left + most - 1) / most;
    return int((left + passes - 1) / passes);
  }

  /// Rows of the register tile that `left` rows begin with. A short last one would leave the units idle: two share.
  static int group_rows(std::int64_t left) {
    return left >= 2 * S::kPanelRows ? S::kPanelRows : pass_rows(left, S::kPanelRows);
  }

  /// The same for `panel`: groups of group_rows(), [block][group][128][row of the group]. A register tile then reads
  /// one stream instead of one a row, which is worth a tenth of its speed.
  static void pack_x_panel(const PackX& job, std::int64_t row_begin, std::int64_t row_end) {
    alignas(64) float values[S::kPanelRows][kBlock];
    for (std::int64_t row = row_begin, rows = 0; row < row_end; row += rows) {
      rows = group_rows(job.rows - row);
      for (std::int64_t block = job.begin; block < job.end; ++block) {
        for (int r = 0; r < rows; ++r) {
          load_block(job, row + r, block, values[r]);
          sum_segments(job, row + r, block, values[r]);
        }
        float* out = static_cast<float*>(job.out) + (block * job.rows + row) * kBlock;
        for (int i = 0; i < kBlock; ++i, out += rows)
          for (int r = 0; r < rows; ++r) out[r] = values[r][i];
      }
    }
  }

  /// Asks for what lies kPrefetch words after a segment's header; the codes' own requests leave that gap.
  static void prefetch_gap(const std::byte* at) {
    for (int line = 0; line < kHeader; line += 64) S::prefetch(at + line + kPrefetch * 4);
  }

  // --- products ------------------------------------------------------------------------------------------------------

  /// Where the codes come from: the block itself; the block, and decoded they also go to the panel; the panel.
  enum class From { kBlock, kBlockToPanel, kPanel };

  /// R rows times V vectors of columns over one block, added to y. The panel is [kBlock][V vectors] floats.
  template <int R, int V, From kFrom>
  static void multiply(const TileJob& job, std::int64_t block, float* panel, int row, int column) {
    constexpr bool kPanel = kFrom != From::kBlock;
    const int segments = kBlock / job.segment, octets = job.segment / 8;
    const float* x = static_cast<const float*>(job.x) + (block * job.x_rows + job.row + row) * kBlock;
    const float* sums = job.sums + block * segments * job.x_rows + job.row + row;
    const std::byte* at = job.weights + block * block_bytes(job.segment);
    float* y = job.y + row * kTile + column;
    for (int segment = 0; segment < segments; ++segment) {
      F acc[R * V];
      unroll<R * V>([&](auto i) __attribute__((always_inline)) { acc[i] = S::zero(); });
      if constexpr (!kPanel && V == S::kWideVectors) prefetch_gap(at);
      const auto* words = reinterpret_cast<const std::uint32_t*>(at + kHeader) + column;
      for (int octet = 0; octet < octets; ++octet, words += kTile, x += kPanel ? 8 * R : 8) {
        W lanes[V];
        if constexpr (!kPanel) {
          unroll<V>([&](auto v) __attribute__((always_inline)) { lanes[v] = S::load_words(words + v * S::kLanes); });
          if constexpr (V == S::kWideVectors)
            unroll<V * S::kLanes / 16>([&](auto line) __attribute__((always_inline)) {
              S::prefetch(words + line * 16 + kPrefetch);
            });
        }
        unroll<8>([&](auto i) __attribute__((always_inline)) {
          F weights[V];
          unroll<V>([&](auto v) __attribute__((always_inline)) {
            if constexpr (kFrom == From::kPanel) {
              weights[v] = S::load(panel + (i * V + v) * S::kLanes);
            } else if constexpr (kFrom == From::kBlockToPanel) {
              weights[v] = S::template code<i>(S::load_words(words + v * S::kLanes));
              S::store(panel + (i * V + v) * S::kLanes, weights[v]);
            } else {
              weights[v] = S::template code<i>(lanes[v]);
            }
          });
          unroll<R>([&](auto r) __attribute__((always_inline)) {
            const F value = S::set(kPanel ? x[i * R + r] : x[r * kBlock + i]);
            unroll<V>([&](auto v) __attribute__((always_inline)) {
              acc[r * V + v] = S::fma(weights[v], value, acc[r * V + v]);
            });
          });
        });
        if constexpr (kPanel) panel += 8 * V * S::kLanes;
      }
      asm volatile("" ::: "memory");  // keeps the compiler from carrying y in registers that the sums need
      const auto* scales = reinterpret_cast<const std::uint16_t*>(at) + column;
      const auto* zeros = reinterpret_cast<const std::uint8_t*>(at + kTile * 2) + column;
      unroll<V>([&](auto v) __attribute__((always_inline)) {
        const F scale = S::load_f16(scales + v * S::kLanes);
        const F zero = S::sub(S::load_u8(zeros + v * S::kLanes), S::set(8));
        unroll<R>([&](auto r) __attribute__((always_inline)) {
          float* to = y + r * kTile + v * S::kLanes;
          const F part = S::fnma(zero, S::set(sums[r]), acc[r * V + v]);
          S::store(to, S::fma(scale, part, S::load(to)));
        });
      });
      at += segment_bytes(job.segment);
      sums += job.x_rows;
    }
  }

  using Multiply = void (*)(const TileJob&, std::int64_t, float*, int, int);
  template <int V, From kFrom, int... R>
  static Multiply pick(std::integer_sequence<int, R...>, int rows) {
    static constexpr Multiply table[] = {&multiply<R + 1, V, kFrom>...};
    return table[rows - 1];
  }

  static void direct(const TileJob& job) {
    if (!job.add) std::memset(job.y, 0, std::size_t(job.rows) * kTile * sizeof(float));
    for (std::int64_t block = job.begin; block < job.end; ++block) {
      for (int row = 0, count = 0; row < job.rows; row += count) {
        count = pass_rows(job.rows - row, S::kRows);
        const bool wide = count <= S::kWideRows;
        const Multiply run =
            wide ? pick<S::kWideVectors, From::kBlock>(std::make_integer_sequence<int, S::kWideRows>{}, count)
                 : pick<S::kVectors, From::kBlock>(std::make_integer_sequence<int, S::kRows>{}, count);
        const int step = (wide ? S::kWideVectors : S::kVectors) * S::kLanes;
        for (int column = 0; column < kTile; column += step) run(job, block, nullptr, row, column);
      }
    }
  }

  /// The first rows of a block decode it for the others. The panel is [kTile / kPanelColumns][kBlock][kPanelColumns].
  static void panel(const TileJob& job) {
    if (!job.add) std::memset(job.y, 0, std::size_t(job.rows) * kTile * sizeof(float));
    float* panel = static_cast<float*>(job.scratch);
    const std::size_t bytes = block_bytes(job.segment);
    const std::size_t passes = kTile / kPanelColumns * ((job.rows + S::kPanelRows - 1) / S::kPanelRows);
    const std::size_t lines = (bytes / 64 + passes - 1) / passes;
    for (std::int64_t block = job.begin; block < job.end; ++block) {
      const std::byte* ahead = job.weights + (block + 1) * bytes;
      for (int column = 0; column < kTile; column += kPanelColumns) {
        for (int row = 0, count = 0; row < job.rows; row += count) {
          // The next block comes while this one is multiplied, a few lines a pass: asked for at once, it would crowd
          // out the loads of x.
          for (std::size_t line = 0; line < lines; ++line, ahead += 64) S::prefetch(ahead);
          count = group_rows(job.x_rows - job.row - row);
          const auto rows = std::make_integer_sequence<int, S::kPanelRows>{};
          const Multiply run = row == 0 ? pick<S::kPanelVectors, From::kBlockToPanel>(rows, count)
                                        : pick<S::kPanelVectors, From::kPanel>(rows, count);
          run(job, block, panel + column * kBlock, row, column);
        }
      }
    }
  }

  // --- results -------------------------------------------------------------------------------------------------------

  static void store(const StoreJob& job) {
    const std::size_t size = job.element == Element::kF32 ? 4 : 2;
    for (int row = 0; row < job.rows; ++row) {
      char* out = static_cast<char*>(job.out) + row * job.out_stride * std::int64_t(size);
      alignas(64) char converted[kTile * 4];
      for (int column = 0; column < kTile; column += S::kLanes) {
        F value = S::load(job.y + row * job.y_stride + column);
        if (job.bias) value = S::add(value, S::load(job.bias + column));
        char* to = converted + column * size;
        if (job.element == Element::kF32) S::store(reinterpret_cast<float*>(to), value);
        if (job.element == Element::kF16) S::store_f16(reinterpret_cast<std::uint16_t*>(to), value);
        if (job.element == Element::kBF16) S::store_bf16(reinterpret_cast<std::uint16_t*>(to), value);
      }
      std::memcpy(out, converted, std::size_t(job.columns) * size);
    }
  }

  static void dequantize(const std::byte* at, std::int64_t blocks, int segment_rows, float* out,
                         std::int64_t out_stride) {
    for (std::int64_t segment = 0; segment < blocks * (kBlock / segment_rows);
         ++segment, at += segment_bytes(segment_rows)) {
      for (int octet = 0; octet < segment_rows / 8; ++octet, out += 8 * out_stride) {
        for (int column = 0; column < kTile; column += S::kLanes) {
          const F scale = S::load_f16(reinterpret_cast<const std::uint16_t*>(at) + column);
          const F zero = S::sub(S::load_u8(reinterpret_cast<const std::uint8_t*>(at + kTile * 2) + column), S::set(8));
          const W lanes = S::load_words(reinterpret_cast<const std::uint32_t*>(at + kHeader) + octet * kTile + column);
          unroll<8>([&](auto i) __attribute__((always_inline)) {
            S::store(out + i * out_stride + column, S::mul(scale, S::sub(S::template code<i>(lanes), zero)));
          });
        }
      }
    }
  }

  static void fill(Kernels& kernels) {
    kernels.pack_x = &pack_x;
    kernels.direct = &direct;
    kernels.pack_x_panel = &pack_x_panel;
    kernels.panel = &panel;
    kernels.panel_rows = S::kPanelRows;
    kernels.direct_rows = S::kRows;
    kernels.store = &store;
    kernels.dequantize = &dequantize;
  }
};

}  // namespace q4::cpu
