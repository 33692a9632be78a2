// Products of few rows with integer dot products and no loss: for any set of vector operations S with dot products of
// bytes. An activation is a whole number of 24 bits times a power of two that its row shares over a segment, and that
// number is three signed bytes, its digits to the base 256:
//
//   x = scale_x * (65536 d2 + 256 d1 + d0)      y += scale_w * scale_x * (65536 D2 + 256 D1 + D0),  Di = sum of (q - zero) di
//
// The sums Di are exact. fp16 and bf16 activations lose nothing within a factor of 2^12 (2^15) under their segment's
// largest; below that, and in fp32, the error is 2^-24 of the largest, as that of fp32 sums. Codes of eight rows cost
// three operations and six products a row, where fp32 takes sixteen and eight.
//
// A row's integers and the order of its fp32 sums depend on nothing but the row: the same bits whatever m, tile and
// thread computed it.
#pragma once

#include <cstdint>
#include <cstring>

#include "runtime/backends/cpu/kernels_int8.hpp"

namespace q4::cpu {

/// A segment of a row beside its digits. The digits' sums, negated, meet the zeros of W as a product of 16-bit pairs.
struct DigitSums {
  float scale;
  std::int32_t sums[3];
};

template <class S>
struct DigitKernels {
  using F = typename S::F;
  using W = typename S::W;
  using I = typename S::I;
  using Base = Fp32Kernels<S>;
  static constexpr int kDigits = 3;
  /// Of a row and block: for each octet rows 0, 4, 1, 5 and then 2, 6, 3, 7, each as their first, second and third digits; then
  /// DigitSums of its segments.
  static constexpr int kOctetBytes = 8 * kDigits, kDigitBytes = kBlock / 8 * kOctetBytes, kRecord = 4 * kBlock;
  static_assert(kDigitBytes + kBlock / 16 * sizeof(DigitSums) <= kRecord);

  // --- activations ---------------------------------------------------------------------------------------------------

  static float power_of_two(int exponent) {  // from 2^-149, the least fp32, on
    const std::uint32_t bits = exponent >= -126 ? std::uint32_t(exponent + 127) << 23 : 1u << (exponent + 149);
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }

  template <int N>
  struct Vector {
    typedef std::int32_t Type __attribute__((vector_size(4 * N), may_alias));
  };
  using Lanes = typename Vector<S::kLanes>::Type;

  /// By halves, in registers.
  template <int N, class Combine>
  static std::int32_t reduce(typename Vector<N>::Type lanes, const Combine& combine) {
    if constexpr (N == 2) {
      return combine(lanes[0], lanes[1]);
    } else {
      typename Vector<N / 2>::Type halves[2];
      std::memcpy(halves, &lanes, sizeof halves);
      return reduce<N / 2>(combine(halves[0], halves[1]), combine);
    }
  }

  /// One segment of a row as whole numbers of at most 0x7F7F7F, the most that three digits of -128 to 127 hold. Infinity
  /// and NaN make the scale, and with it the row of the result, NaN.
  /// store(i, numbers): of values i to i + S::kLanes - 1, in their low three bytes.
  template <class Store>
  static void pack_segment(const float* values, int count, DigitSums& result, const Store& store) {
    constexpr float kMost = 0x7F7F7F;
    constexpr std::int32_t kInfinity = 0x7F800000;
    Lanes most{};
    for (int i = 0; i < count; i += S::kLanes) {  // magnitudes are in the order of their bits
      const Lanes bits = (Lanes)S::load(values + i) & 0x7FFFFFFF;
      most = bits > most ? bits : most;
    }
    const std::int32_t bits = reduce<S::kLanes>(most, [](auto x, auto y) { return x > y ? x : y; });
    float top;
    std::memcpy(&top, &bits, sizeof top);
    const int exponent = (bits >> 23) < 1 ? -126 : (bits >> 23) - 127;
    int power = 22 - exponent;  // x 2^power is less than 2^23
    const auto first = [&] { return power_of_two(power > 100 ? 100 : power); };
    const auto second = [&] { return power_of_two(power > 100 ? power - 100 : 0); };
    if (!(top * first() * second() <= kMost)) --power;
    const F one = S::set(first()), other = S::set(second());
    // Bytes of -128 to 127 that add up to a number: those of number + 0x808080, each less 128.
    constexpr std::int32_t kBias = 0x808080;
    Lanes even{}, middle{};  // sums of bytes 0 and 2, and of byte 1
    for (int i = 0; i < count; i += S::kLanes) {
      const Lanes biased = (Lanes)S::to_int(S::mul(S::mul(S::load(values + i), one), other)) + kBias;
      even += biased & 0x00FF00FF, middle += (biased >> 8) & 0xFF;
      store(i, (I)(biased ^ kBias));
    }
    const auto add = [](auto x, auto y) { return x + y; };
    const std::int32_t evens = reduce<S::kLanes>(even, add), bias = 128 * count;
    result.scale = bits < kInfinity ? power_of_two(-power) : __builtin_nanf("");
    result.sums[0] = bias - (evens & 0xFFFF);
    result.sums[1] = bias - reduce<S::kLanes>(middle, add);
    result.sums[2] = bias - (evens >> 16);
  }

  static void pack_x(const PackX& job, std::int64_t row_begin, std::int64_t row_end) {
    alignas(64) float values[kBlock];
    for (std::int64_t row = row_begin; row < row_end; ++row) {
      for (std::int64_t block = job.begin; block < job.end; ++block) {
        Base::load_block(job, row, block, values);
        auto* to = static_cast<std::int8_t*>(job.out) + (block * job.rows + row) * kRecord;
        DigitSums sums[kBlock / 16];
        for (int first = 0; first < kBlock; first += job.segment)
          pack_segment(values + first, job.segment, sums[first / job.segment],
                       [&](int i, I numbers) { S::store_digits(to + (first + i) * kDigits, numbers); });
        std::memcpy(to + kDigitBytes, sums, sizeof(DigitSums) * std::size_t(kBlock / job.segment));
      }
    }
  }

  // --- products ------------------------------------------------------------------------------------------------------

  /// A segment's three sums, scaled, added to y.
  static F combine(float x_scale, F scale, I third, I second, I first, F y) {
    const F low = S::mul(S::set(x_scale), S::low_digits(second, first));
    return S::fma(scale, S::fma(S::set(x_scale * 65536), S::to_float(third), low), y);
  }

  /// R rows times V vectors of columns over one block, added to y. Asks for the same columns of the next block.
  template <int R, int V>
  static void multiply(const TileJob& job, std::int64_t block, int row, int column) {
    constexpr bool kWide = V * S::kLanes == kTile;
    constexpr int kSums = R * V * kDigits;
    const std::size_t bytes = block_bytes(job.segment);
    const std::size_t ahead = kWide ? Base::kPrefetch * 4 : bytes;
    const std::byte* at = job.weights + block * bytes;
    const auto* x = static_cast<const std::int8_t*>(job.x) + (block * job.x_rows + job.row + row) * kRecord;
    const std::int8_t* sums = x + kDigitBytes;
    float* const y = job.y + row * kTile + column;
    for (int segment = 0; segment < kBlock / job.segment; ++segment, sums += sizeof(DigitSums)) {
      I acc[kSums];
      const auto sum_of = [&](int r, std::size_t field) __attribute__((always_inline)) {
        return sums + r * kRecord + field;
      };
      unroll<V>([&](auto v) __attribute__((always_inline)) {
        const I zeros = S::load_u8_int(reinterpret_cast<const std::uint8_t*>(at + kTile * 2) + column + v * S::kLanes);
        unroll<R * kDigits>([&](auto i) __attribute__((always_inline)) {
          constexpr int kRow = i / kDigits, kDigit = i % kDigits;
          acc[kRow * V * kDigits + v * kDigits + kDigit] =
              S::dot_pair(zeros, sum_of(kRow, offsetof(DigitSums, sums) + 4 * kDigit));
        });
      });
      if constexpr (kWide) Base::prefetch_gap(at);
      const auto* words = reinterpret_cast<const std::uint32_t*>(at + kHeader) + column;
      for (int octet = 0; octet < job.segment / 8; octet += S::kDotOctets) {
        typename S::Dots dots[kSums];  // where products are added in 16 bits first, else nothing
        unroll<kSums>([&](auto i) __attribute__((always_inline)) { S::clear(dots[i]); });
        const int end = octet + S::kDotOctets < job.segment / 8 ? octet + S::kDotOctets : job.segment / 8;
        for (int o = octet; o < end; ++o, words += kTile, x += kOctetBytes) {
          W lanes[V];
          unroll<V>([&](auto v) __attribute__((always_inline)) {
            lanes[v] = S::load_words(words + v * S::kLanes);
            S::prefetch(reinterpret_cast<const std::byte*>(words + v * S::kLanes) + ahead);
          });
          unroll<2>([&](auto half) __attribute__((always_inline)) {
            W codes[V];
            unroll<V>([&](auto v) __attribute__((always_inline)) { codes[v] = S::template bytes<half>(lanes[v]); });
            unroll<R * kDigits>([&](auto i) __attribute__((always_inline)) {
              constexpr int kRow = i / kDigits, kDigit = i % kDigits;
              unroll<V>([&](auto v) __attribute__((always_inline)) {
                constexpr int kSum = kRow * V * kDigits + v * kDigits + kDigit;
                S::add_dot(acc[kSum], dots[kSum], codes[v], x + kRow * kRecord + 4 * (half * kDigits + kDigit));
              });
            });
          });
        }
        unroll<kSums>([&](auto i) __attribute__((always_inline)) { S::widen(acc[i], dots[i]); });
      }
      asm volatile("" ::: "memory");  // as in the fp32 kernels
      unroll<V>([&](auto v) __attribute__((always_inline)) {
        const F scale = S::load_f16(reinterpret_cast<const std::uint16_t*>(at) + column + v * S::kLanes);
        unroll<R>([&](auto r) __attribute__((always_inline)) {
          float x_scale;
          std::memcpy(&x_scale, sum_of(r, offsetof(DigitSums, scale)), sizeof x_scale);
          const I* digits = acc + (r * V + v) * kDigits;
          float* to = y + r * kTile + v * S::kLanes;
          S::store(to, combine(x_scale, scale, digits[2], digits[1], digits[0], S::load(to)));
        });
      });
      at += segment_bytes(job.segment);
    }
  }

  using Multiply = void (*)(const TileJob&, std::int64_t, int, int);
  struct Pass {
    Multiply run;
    int columns;
  };
  /// As many columns at a time as leave room for the sums of R rows.
  template <int R>
  static constexpr Pass pass() {
    constexpr int kRoom = S::kDigitSums / (R * kDigits), V = kRoom >= 4 && S::kLanes == 16 ? 4 : kRoom >= 2 ? 2 : 1;
    return {&multiply<R, V>, V * S::kLanes};
  }
  template <int... R>
  static const Pass& pick(std::integer_sequence<int, R...>, int rows) {
    static constexpr Pass kTable[] = {pass<R + 1>()...};
    return kTable[rows - 1];
  }

  static void direct(const TileJob& job) {
    if (!job.add) std::memset(job.y, 0, std::size_t(job.rows) * kTile * sizeof(float));
    for (std::int64_t block = job.begin; block < job.end; ++block) {
      for (int row = 0, count = 0; row < job.rows; row += count) {
        count = Base::pass_rows(job.rows - row, S::kDigitPass);
        const Pass& pass = pick(std::make_integer_sequence<int, S::kDigitPass>{}, count);
        for (int column = 0; column < kTile; column += pass.columns) pass.run(job, block, row, column);
      }
    }
  }

  static void fill(Kernels& kernels) {
    kernels.pack_x_digits = &pack_x;
    kernels.digits = &direct;
    kernels.digit_rows = S::kDigitRows;
  }
};

}  // namespace q4::cpu
