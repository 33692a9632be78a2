// Products with activations that are quantized to 8 bits, for any set of vector operations S: an option, never the
// default. Codes enter as unsigned bytes, sums are exact in 32 bits over a segment:
//
//   y += scale_w * scale_x * (sum of q xq - zero * sum of xq)
//
// A row's integers and the order of its fp32 sums depend on nothing but the row: the same bits whatever m, tile and
// thread computed it.
#pragma once

#include <cstdint>
#include <cstring>

#include "runtime/backends/cpu/kernels_fp32.hpp"

namespace q4::cpu {

template <class S>
struct Int8Kernels {
  using F = typename S::F;
  using W = typename S::W;
  using I = typename S::I;
  using Base = Fp32Kernels<S>;

  static float largest(F lanes) {
    float values[S::kLanes], most = 0;
    S::store(values, lanes);
    for (int i = 0; i < S::kLanes; ++i) most = values[i] > most ? values[i] : most;
    return most;
  }

  /// One segment of a row to bytes, each octet in the order of its lane: rows 0, 4, 1, 5, 2, 6, 3, 7. The largest
  /// magnitude becomes 127. Infinity and NaN make the scale, and with it the row of the result, NaN.
  static void quantize(const float* values, int count, std::int8_t* to, float& scale, float& sum) {
    F most = S::zero(), finite = S::zero();
    for (int i = 0; i < count; i += S::kLanes) {
      const F value = S::load(values + i);
      most = S::max(most, S::max(value, S::sub(S::zero(), value)));
      finite = S::add(finite, S::sub(value, value));
    }
    float check[S::kLanes], bad = 0;
    S::store(check, finite);
    for (int i = 0; i < S::kLanes; ++i) bad += check[i];
    const float top = largest(most);
    scale = top * (1.0f / 127) + bad;
    const float inverse = top >= 0x1p-120f ? 127 / top : 0;
    constexpr float kRound = 0x1.8p23f;  // puts the integer, rounded to nearest even, into the low bits
    std::int32_t total = 0;
    for (int octet = 0; octet < count; octet += 8) {
      static constexpr int kPlace[8] = {0, 2, 4, 6, 1, 3, 5, 7};  // of row i among the octet's bytes
      for (int i = 0; i < 8; ++i) {
        const float rounded = values[octet + i] * inverse + kRound;
        std::int32_t bits;
        std::memcpy(&bits, &rounded, sizeof bits);
        const auto byte = std::int8_t(bits & 0xFF);
        to[octet + kPlace[i]] = byte;
        total += byte;
      }
    }
    std::memcpy(&sum, &total, sizeof sum);
  }

  /// PackX::sums gets the scales, [block][segment][row], and after them all the sums of bytes as int32.
  static void pack_x(const PackX& job, std::int64_t row_begin, std::int64_t row_end) {
    const int segments = kBlock / job.segment;
    float* const totals = job.sums + job.blocks * segments * job.rows;
    alignas(64) float values[kBlock];
    for (std::int64_t row = row_begin; row < row_end; ++row) {
      for (std::int64_t block = job.begin; block < job.end; ++block) {
        Base::load_block(job, row, block, values);
        auto* to = static_cast<std::int8_t*>(job.out) + (block * job.rows + row) * kBlock;
        for (int segment = 0; segment < segments; ++segment) {
          const std::int64_t at = (block * segments + segment) * job.rows + row;
          quantize(values + segment * job.segment, job.segment, to + segment * job.segment, job.sums[at], totals[at]);
        }
      }
    }
  }

  /// R rows times V vectors of columns over one block, added to y.
  template <int R, int V>
  static void multiply(const TileJob& job, std::int64_t block, int row, int column) {
    const int segments = kBlock / job.segment, octets = job.segment / 8;
    const auto* x = static_cast<const std::int8_t*>(job.x) + (block * job.x_rows + job.row + row) * kBlock;
    const float* x_scales = job.sums + block * segments * job.x_rows + job.row + row;
    const float* x_sums = x_scales + job.blocks * segments * job.x_rows;
    const std::byte* at = job.weights + block * block_bytes(job.segment);
    float* y = job.y + row * kTile + column;
    for (int segment = 0; segment < segments; ++segment) {
      I acc[R * V];
      unroll<R * V>([&](auto i) __attribute__((always_inline)) { acc[i] = S::zero_int(); });
      if constexpr (V == S::kWideVectors) Base::prefetch_gap(at);
      const auto* words = reinterpret_cast<const std::uint32_t*>(at + kHeader) + column;
      for (int octet = 0; octet < octets; ++octet, words += kTile, x += 8) {
        W lanes[V];
        unroll<V>([&](auto v) __attribute__((always_inline)) { lanes[v] = S::load_words(words + v * S::kLanes); });
        if constexpr (V == S::kWideVectors)
          unroll<V * S::kLanes / 16>([&](auto line) __attribute__((always_inline)) {
            S::prefetch(words + line * 16 + Base::kPrefetch);
          });
        unroll<2>([&](auto half) __attribute__((always_inline)) {
          W codes[V];
          unroll<V>([&](auto v) __attribute__((always_inline)) { codes[v] = S::template bytes<half>(lanes[v]); });
          unroll<R>([&](auto r) __attribute__((always_inline)) {
            unroll<V>([&](auto v) __attribute__((always_inline)) {
              acc[r * V + v] = S::dot(acc[r * V + v], codes[v], x + r * kBlock + 4 * half);
            });
          });
        });
      }
      asm volatile("" ::: "memory");  // as in the fp32 kernels
      const auto* scales = reinterpret_cast<const std::uint16_t*>(at) + column;
      const auto* zeros = reinterpret_cast<const std::uint8_t*>(at + kTile * 2) + column;
      unroll<V>([&](auto v) __attribute__((always_inline)) {
        const F scale = S::load_f16(scales + v * S::kLanes);
        const I zero = S::load_u8_int(zeros + v * S::kLanes);
        unroll<R>([&](auto r) __attribute__((always_inline)) {
          std::int32_t x_sum;
          std::memcpy(&x_sum, x_sums + r, sizeof x_sum);
          float* to = y + r * kTile + v * S::kLanes;
          const F part = S::correct(acc[r * V + v], zero, x_sum);
          S::store(to, S::fma(S::mul(scale, S::set(x_scales[r])), part, S::load(to)));
        });
      });
      at += segment_bytes(job.segment);
      x_scales += job.x_rows;
      x_sums += job.x_rows;
    }
  }

  using Multiply = void (*)(const TileJob&, std::int64_t, int, int);
  template <int V, int... R>
  static Multiply pick(std::integer_sequence<int, R...>, int rows) {
    static constexpr Multiply table[] = {&multiply<R + 1, V>...};
    return table[rows - 1];
  }

  /// Codes are decoded in registers: three operations beside 2 R products, so nothing is kept for later rows.
  static void direct(const TileJob& job) {
    if (!job.add) std::memset(job.y, 0, std::size_t(job.rows) * kTile * sizeof(float));
    for (std::int64_t block = job.begin; block < job.end; ++block) {
      for (int row = 0, count = 0; row < job.rows; row += count) {
        count = Base::pass_rows(job.rows - row, S::kRows);
        const bool wide = count <= S::kWideRows;
        const Multiply run = wide ? pick<S::kWideVectors>(std::make_integer_sequence<int, S::kWideRows>{}, count)
                                  : pick<S::kVectors>(std::make_integer_sequence<int, S::kRows>{}, count);
        const int step = (wide ? S::kWideVectors : S::kVectors) * S::kLanes;
        for (int column = 0; column < kTile; column += step) run(job, block, row, column);
      }
    }
  }

  static void fill(Kernels& kernels) {
    kernels.pack_x_int8 = &pack_x;
    kernels.int8 = &direct;
  }
};

}  // namespace q4::cpu
