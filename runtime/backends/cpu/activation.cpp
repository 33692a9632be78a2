// Loops that the compiler turns into vectors: the exponential has no call and no branch.
#include "runtime/backends/cpu/activation.hpp"

#include <bit>
#include <cmath>
#include <cstdint>

namespace q4::cpu {
namespace {

/// e^x within 2e-7 of itself; below -87 and above 87 that of the bound. Coefficients: the Taylor series, which is good to 1e-8
/// on half a power of two.
inline float exponential(float x) {
  x = x < -87.0f ? -87.0f : x > 87.0f ? 87.0f : x;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: a sum with it has the nearest whole number in its low bits
  const float shifted = x * 1.44269504f + kRound;
  const float whole = shifted - kRound;
  const float rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;  // ln 2 in two parts
  float sum = 1.0f / 5040.0f;
  sum = sum * rest + 1.0f / 720.0f;
  sum = sum * rest + 1.0f / 120.0f;
  sum = sum * rest + 1.0f / 24.0f;
  sum = sum * rest + 1.0f / 6.0f;
  sum = sum * rest + 0.5f;
  sum = sum * rest * rest + rest + 1.0f;
  const std::uint32_t power = (std::bit_cast<std::uint32_t>(shifted) - std::bit_cast<std::uint32_t>(kRound) + 127u)
                              << 23;
  return sum * std::bit_cast<float>(power);
}

/// value / (1 + e^-x)
inline float times_sigmoid(float value, float x) { return value / (1.0f + exponential(-x)); }

}  // namespace

void Activation::multiply(float* gate, const float* up, int count) const {
  switch (kind) {
    case MoeActivation::kNone:
      return;
    case MoeActivation::kSiluMul:
      for (int i = 0; i < count; ++i) gate[i] = times_sigmoid(gate[i], gate[i]) * up[i];
      return;
    case MoeActivation::kGeluMul:
      for (int i = 0; i < count; ++i) gate[i] = 0.5f * gate[i] * std::erfc(gate[i] * -0.70710678f) * up[i];
      return;
    case MoeActivation::kGeluTanhMul:  // (1 + tanh u) / 2 is the sigmoid of 2 u
      for (int i = 0; i < count; ++i) {
        const float g = gate[i], u = 0.79788456f * (g + 0.044715f * g * g * g);
        gate[i] = times_sigmoid(g, 2.0f * u) * up[i];
      }
      return;
    case MoeActivation::kSwigluClamp:
      for (int i = 0; i < count; ++i) {
        const float g = gate[i] > limit ? limit : gate[i];
        const float u = up[i] > limit ? limit : up[i] < -limit ? -limit : up[i];
        gate[i] = times_sigmoid(g, alpha * g) * (u + 1.0f);
      }
      return;
  }
}

}  // namespace q4::cpu
