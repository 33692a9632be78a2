// The yardsticks multiply: oneDNN's products with bf16 and with 4-bit weights, where the library is installed.
#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "reference.hpp"
#include "report.hpp"
#include "runtime/base/check.hpp"
#include "tools/bench/onednn.hpp"

namespace q4::test {

namespace {

void check_product(std::int64_t k, tools::OneDnnWeights weights) {
  constexpr std::int64_t kN = 40, kM = 5;
  const tools::OneDnnMatmul matmul(k, kN, kM, 2, weights);
  CHECK(matmul.copies() == 2);
  for (std::int64_t i = 0; i < kM * k; ++i) matmul.x()[i] = std::uint16_t(0x3F80 + i % 5 * 16);  // 1, 1.125 .. 1.5
  for (const std::size_t copy : {0, 1}) {
    matmul.run(copy);
    int wrong = 0;
    for (std::int64_t row = 0; row < kM; ++row)
      for (std::int64_t column = 0; column < kN; ++column) {
        double sum = 0;
        for (std::int64_t i = 0; i < k; ++i)
          sum += bf16_value(matmul.x()[row * k + i]) * double(tools::OneDnnMatmul::weight(i, column));
        wrong += !(std::fabs(bf16_value(matmul.out()[row * kN + column]) - sum) <= 0x1p-8 * std::fabs(sum) + 1e-3);
      }
    CHECK(wrong == 0);
  }
}

}  // namespace

TEST_CASE("onednn: the dense bf16 product is right for each copy of the weights") {
  if (!tools::onednn_available()) return skip(tools::onednn_name());
  check_product(96, tools::OneDnnWeights::kBf16);
}

TEST_CASE("onednn: the product with 4-bit weights is right, with scales of groups and columns") {
  if (!tools::onednn_available()) return skip(tools::onednn_name());
  try {
    check_product(384, tools::OneDnnWeights::kU4);
  } catch (const Error& error) { skip(error.what()); }
}

}  // namespace q4::test
