// Models of kernels/mma.h: each lane publishes its registers to its 32, then computes what the PTX manual says it
// receives.
#include "kernels/mma.h"

#include "tests/emulation/engine.hpp"

namespace q4 {
namespace {

struct Operands {
  u32 a[4], b[2];
};

/// Element `upper` (0 or 1) of a register of two.
template <bool kBf16>
double element(u32 pair, int upper) {
  return to_float<kBf16>(static_cast<u16>(pair >> (16 * upper)));
}

/// Exact products, one rounding to fp32 at the end: closer than the hardware, whose own rounding no one documents.
template <bool kBf16>
void multiply(float (&d)[4], const float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  const auto all = emulation::exchange(Operands{{a[0], a[1], a[2], a[3]}, {b0, b1}}, "mma");
  const int lane = emulation::self().thread % 32;
  double sum[4] = {c[0], c[1], c[2], c[3]};
  for (int k = 0; k < 16; ++k) {
    const int t = k % 8 / 2, upper_k = k / 8;  // who holds this k, and in which register
    const Operands row = all[lane / 4 * 4 + t];
    for (int j = 0; j < 2; ++j) {
      const double b = element<kBf16>(all[(lane % 4 * 2 + j) * 4 + t].b[upper_k], k % 2);
      sum[j] += element<kBf16>(row.a[2 * upper_k], k % 2) * b;          // row g
      sum[2 + j] += element<kBf16>(row.a[2 * upper_k + 1], k % 2) * b;  // row g + 8
    }
  }
  for (int i = 0; i < 4; ++i) d[i] = static_cast<float>(sum[i]);
}

}  // namespace

void load_matrix4(u32 (&d)[4], u32 address) {
  const auto addresses = emulation::exchange(address, "ldmatrix");
  const int lane = emulation::self().thread % 32;
  for (int i = 0; i < 4; ++i)
    std::memcpy(&d[i], emulation::at_address(addresses[8 * i + lane / 4], 16, 16) + lane % 4 * 4, 4);
}

u32 odd_bytes(u32 w) { return w >> 8 & 0x00ff00ffu; }

template <bool kBf16>
void mma_16816(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  multiply<kBf16>(d, d, a, b0, b1);
}
template <bool kBf16>
void mma_16816_first(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  multiply<kBf16>(d, {0, 0, 0, 0}, a, b0, b1);
}
template void mma_16816<false>(float (&)[4], const u32 (&)[4], u32, u32);
template void mma_16816<true>(float (&)[4], const u32 (&)[4], u32, u32);
template void mma_16816_first<false>(float (&)[4], const u32 (&)[4], u32, u32);
template void mma_16816_first<true>(float (&)[4], const u32 (&)[4], u32, u32);

}  // namespace q4
