// Definitions of what kernels/device.h declares: places, barriers, shuffles, and fp16 arithmetic with IEEE rounding.
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/device.h"
#include "tests/emulation/engine.hpp"

namespace q4 {
namespace {

using emulation::self;

const std::array<float, 65536>& half_table() {
  static const auto table = [] {
    std::array<float, 65536> values{};
    for (std::uint32_t h = 0; h < 65536; ++h) {
      const std::uint32_t sign = (h & 0x8000u) << 16, exponent = h >> 10 & 31u, mantissa = h & 1023u;
      float value = static_cast<float>(mantissa) * 0x1p-24f;  // zero and subnormal numbers
      if (exponent == 31)
        value = std::bit_cast<float>(0x7f800000u | mantissa << 13);
      else if (exponent != 0)
        value = std::bit_cast<float>((exponent + 112) << 23 | mantissa << 13);
      values[h] = std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) | sign);
    }
    return values;
  }();
  return table;
}

/// One rounding from double, to nearest even; NaN gives the GPU's canonical 0x7fff.
u16 round_to_half(double value) {
  if (std::isnan(value)) return 0x7fffu;
  const u16 sign = std::signbit(value) ? 0x8000u : 0u;
  const double size = std::fabs(value);
  if (size >= 65520) return sign | 0x7c00u;
  if (size < 0x1p-14) return sign | static_cast<u16>(std::nearbyint(size * 0x1p24));  // 1024 carries into the exponent
  auto bits = std::bit_cast<std::uint64_t>(size);
  bits += (std::uint64_t{1} << 41) - 1 + (bits >> 42 & 1u);  // 42 of 52 mantissa bits go
  return sign | static_cast<u16>((bits >> 42) - (std::uint64_t{1023 - 15} << 10));
}

double low(u32 pair) { return half_table()[pair & 0xffffu]; }
double high(u32 pair) { return half_table()[pair >> 16]; }
u32 pair(u16 low, u16 high) { return low | static_cast<u32>(high) << 16; }

}  // namespace

int thread_index() { return self().thread; }
int block_index() { return self().block->index; }
int block_count() { return static_cast<int>(self().launch->grid); }
void sync_block() { self().block->barriers[0].arrive_and_wait(self().launch->threads, "sync_block"); }
void sync_warp() {
  const auto& lane = self();
  const int warp = lane.launch->warp, first = lane.thread / warp * warp;
  lane.block->warps[static_cast<std::size_t>(lane.thread / warp)].arrive_and_wait(
      smaller(warp, lane.launch->threads - first), "sync_warp");
}
u8* shared_memory() { return reinterpret_cast<u8*>(self().block->shared); }

u32 shuffle_bits(u32 v, int lane) { return emulation::exchange(v, "shuffle")[lane & 31]; }
u32 shuffle_xor_bits(u32 v, int mask) { return emulation::exchange(v, "shuffle_xor")[(self().thread ^ mask) & 31]; }

float half_to_float(u16 h) { return half_table()[h]; }
u16 float_to_half(float f) { return round_to_half(f); }
u32 half2_add(u32 a, u32 b) { return pair(round_to_half(low(a) + low(b)), round_to_half(high(a) + high(b))); }
u32 half2_mul(u32 a, u32 b) { return pair(round_to_half(low(a) * low(b)), round_to_half(high(a) * high(b))); }
/// In double the product is exact, and the sum too, but where the product lies so far below c that no tie of halves is
/// near: rounding twice does no harm.
u32 half2_fma(u32 a, u32 b, u32 c) {
  return pair(round_to_half(low(a) * low(b) + low(c)), round_to_half(high(a) * high(b) + high(c)));
}

Words4 load_stream(const void* p) { return *static_cast<const Words4*>(p); }

}  // namespace q4
