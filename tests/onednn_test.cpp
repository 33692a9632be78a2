// The yardstick multiplies: oneDNN's bf16 product, where the library is installed.
#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "reference.hpp"
#include "report.hpp"
#include "runtime/base/check.hpp"
#include "tools/bench/onednn.hpp"

namespace q4::test {

TEST_CASE("onednn: the dense bf16 product is right for each copy of the weights") {
  if (!tools::onednn_available()) return skip(tools::onednn_name());
  constexpr std::int64_t kK = 96, kN = 40, kM = 5;
  const tools::OneDnnMatmul matmul(kK, kN, kM, 2);
  CHECK(matmul.copies() == 2);
  for (std::int64_t i = 0; i < kM * kK; ++i) matmul.x()[i] = std::uint16_t(0x3F80 + i % 5 * 16);  // 1, 1.125 .. 1.5
  for (const std::size_t copy : {0, 1}) {
    matmul.run(copy);
    int wrong = 0;
    for (std::int64_t row = 0; row < kM; ++row)
      for (std::int64_t column = 0; column < kN; ++column) {
        double sum = 0;
        for (std::int64_t i = 0; i < kK; ++i)
          sum += bf16_value(matmul.x()[row * kK + i]) * double(tools::OneDnnMatmul::weight(i, column));
        wrong += !(std::fabs(bf16_value(matmul.out()[row * kN + column]) - sum) <= 0x1p-8 * std::fabs(sum) + 1e-3);
      }
    CHECK(wrong == 0);
  }
}

}  // namespace q4::test
