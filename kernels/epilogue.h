// What is done to the sums of a product before they are rounded, in fp32, in this order:
//
//   out = residual + activation(x W + bias)           gated: out = residual + activation(gate) * up
//
// Each part is a field of Problem; one that is 0 leaves no instruction. A new activation is one struct here and its
// name in include/q4/matmul.hpp. The kernels and the CPU backend share these functions.
#pragma once
#include "problem.h"

namespace q4 {

/// Values of Problem::activation.
enum ActivationKind : int { kNoActivation = 0, kSilu = 1, kGeluTanh = 2, kGeluErf = 3, kRelu2 = 4, kSwigluClamp = 5 };

/// of(v), with an error of some 1e-6 of it.
template <int kKind>
struct ActivationOf {
  Q4_DEVICE static float of(float v) { return v; }
};
/// v / (1 + exp(-v))
template <>
struct ActivationOf<kSilu> {
  Q4_DEVICE static float of(float v) { return divide_fast(v, 1.f + exp2_fast(v * -1.44269504f)); }
};
/// v (1 + tanh(u)) / 2, u = sqrt(2 / pi) (v + 0.044715 v^3): the logistic function of 2 u.
template <>
struct ActivationOf<kGeluTanh> {
  Q4_DEVICE static float of(float v) {
    const float u = v * (0.79788456f + 0.035677408f * v * v);
    return divide_fast(v, 1.f + exp2_fast(u * -2.88539008f));
  }
};
/// v (1 + erf(v / sqrt(2))) / 2, with 1 - erf from Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26:
/// its error is 1.5e-7 of v, and small beside the result for negative v too.
template <>
struct ActivationOf<kGeluErf> {
  Q4_DEVICE static float of(float v) {
    const float size = v < 0.f ? -v : v, w = size < 16.f ? size : 16.f;  // beyond it the tail is 0
    const float z = w * 0.70710678f, t = divide_fast(1.f, 1.f + 0.3275911f * z);
    const float p =
        t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    const float tail = 0.5f * w * p * exp2_fast(z * z * -1.44269504f);  // |v| (1 - erf(z)) / 2
    return v < 0.f ? -tail : v - tail;
  }
};
/// max(v, 0)^2
template <>
struct ActivationOf<kRelu2> {
  Q4_DEVICE static float of(float v) {
    const float positive = v < 0.f ? 0.f : v;  // a NaN stays one
    return positive * positive;
  }
};

// ---- columns --------------------------------------------------------------------------------------------------------
/// Columns of out that come of so many packed columns.
Q4_BOTH constexpr int out_columns(const Problem& p, int columns) { return p.gated ? columns / 2 : columns; }
/// The column of out that packed column `column` goes to; of a pair, that of the gate or of the up.
Q4_BOTH constexpr int out_column(const Problem& p, int column) {
  return p.gated ? column / kTileColumns * 8 + column % 8 : column;
}

// ---- the parts, each of one element ---------------------------------------------------------------------------------
/// Of packed column `column` < n; 0 without a bias.
template <Problem P>
Q4_DEVICE float bias_of(const MatmulArgs& a, int column) {
  if constexpr (P.bias)
    return to_float<P.bf16 != 0>(a.bias[column]);
  else
    return 0.f;
}
/// From one sum with its bias; not gated.
template <Problem P>
Q4_DEVICE float finish_one(float v) {
  return ActivationOf<P.activation>::of(v);
}
/// From the two sums of a pair with their biases.
template <Problem P>
Q4_DEVICE float finish_pair(float gate, float up) {
  if constexpr (P.activation == kSwigluClamp) {  // gpt-oss; a NaN stays one
    const float alpha = bits_to_float(static_cast<u32>(P.alpha)), limit = bits_to_float(static_cast<u32>(P.limit));
    const float g = gate > limit ? limit : gate, u = up > limit ? limit : up < -limit ? -limit : up;
    return divide_fast(g, 1.f + exp2_fast(g * alpha * -1.44269504f)) * (u + 1.f);
  }
  return ActivationOf<P.activation>::of(gate) * up;
}
/// Of out's column; 0 without a residual.
template <Problem P>
Q4_DEVICE float residual_of(const MatmulArgs& a, i64 row, int column) {
  if constexpr (P.residual)
    return to_float<P.bf16 != 0>(a.residual[row * a.residual_stride + column]);
  else
    return 0.f;
}

}  // namespace q4
