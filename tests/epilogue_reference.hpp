// Epilogues in fp64, and the order of columns that packs pairs: what tests compare with, independent of kernels/.
#pragma once

#include <cmath>
#include <cstdint>
#include <q4/matmul.hpp>
#include <vector>

#include "reference.hpp"

namespace q4::test {

constexpr bool multiplies(Activation a) { return a >= Activation::kSiluMul; }

inline double activated(Activation a, double v) {
  switch (a) {
    case Activation::kSilu:
    case Activation::kSiluMul:
      return v / (1 + std::exp(-v));
    case Activation::kGeluTanh:
    case Activation::kGeluTanhMul:
      return v / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
    case Activation::kGelu:
    case Activation::kGeluMul:
      return v / 2 * std::erfc(-v / std::sqrt(2.0));
    case Activation::kRelu2:
    case Activation::kRelu2Mul:
      return v > 0 ? v * v : 0;
    case Activation::kNone:
      break;
  }
  return v;
}

/// out [m, n or n / 2] from sums [m, n] whose columns are gates, then ups; `residual` null: none.
inline std::vector<double> finished(const std::vector<double>& sums, std::int64_t m, std::int64_t n, Activation a,
                                    const HostRows* residual) {
  const std::int64_t columns = multiplies(a) ? n / 2 : n;
  std::vector<double> out;
  for (std::int64_t r = 0; r < m; ++r)
    for (std::int64_t c = 0; c < columns; ++c) {
      const double* row = &sums[static_cast<std::size_t>(r * n)];
      double v = activated(a, row[c]);
      if (multiplies(a)) v *= row[columns + c];
      out.push_back(v + (residual ? residual->at(r, c) : 0));
    }
  return out;
}

/// The same matrix with the columns where pairs are packed: eight gates, their ups, the next eight gates, ...
inline PlainMatrix paired(const PlainMatrix& w) {
  PlainMatrix to = w;
  const auto move = [&](auto& into, const auto& from) {
    for (std::size_t row = 0; row < from.size(); row += static_cast<std::size_t>(w.n))
      for (std::int64_t pair = 0; pair < w.n / 2; ++pair)
        for (std::int64_t up = 0; up < 2; ++up)
          into[row + static_cast<std::size_t>(pair / 8 * 16 + up * 8 + pair % 8)] =
              from[row + static_cast<std::size_t>(up * w.n / 2 + pair)];
  };
  move(to.codes, w.codes), move(to.zeros, w.zeros), move(to.scales, w.scales), move(to.bias, w.bias);
  return to;
}

}  // namespace q4::test
