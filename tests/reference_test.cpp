// The reference itself: roundings, both packings, the product on a matrix small enough to do by hand.
#include "reference.hpp"

#include <doctest/doctest.h>
#include <cmath>

namespace q4::test {
namespace {

TEST_CASE("fp16 and bf16 round to nearest even") {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    const auto h = static_cast<std::uint16_t>(bits);
    if (!std::isnan(half_value(h))) CHECK_MESSAGE(half_bits(half_value(h)) == h, bits);
    if (!std::isnan(bf16_value(h))) CHECK_MESSAGE(bf16_bits(bf16_value(h)) == h, bits);
  }
  CHECK(half_bits(1 + 0x1p-11) == 0x3c00);      // a tie: to even
  CHECK(half_bits(1 + 3 * 0x1p-11) == 0x3c02);  // a tie: to even, upwards
  CHECK(half_bits(1 + 0x1p-11 + 0x1p-40) == 0x3c01);
  CHECK(half_bits(65519.99) == 0x7bff);
  CHECK(half_bits(65520) == 0x7c00);
  CHECK(half_bits(0x1p-25) == 0);  // half of the smallest subnormal: to even
  CHECK(half_bits(-0x1.8p-25) == 0x8001);
  CHECK(std::isnan(half_value(half_bits(NAN))));
  CHECK(bf16_bits(1 + 0x1p-8) == 0x3f80);
  CHECK(bf16_bits(1 + 3 * 0x1p-8) == 0x3f82);
  CHECK(bf16_bits(3.4e38) == 0x7f80);
}

TEST_CASE("unpack reads GPTQ as semantics says") {
  // k = 8, n = 8, one group: code of row r in column 0 is r, of every other column 15 - r; stored zeros 15, 0, 7, ...
  std::vector<std::uint32_t> qweight(8, 0x01234567u), qzeros = {0x7777770fu};
  qweight[0] = 0x76543210u;
  for (int c = 1; c < 8; ++c) qweight[c] = 0x89abcdefu;
  const std::vector<std::uint16_t> scales(8, half_bits(0.5));
  GptqTensors tensors;
  tensors.qweight = {qweight.data(), DType::kI32, 1, 8, -1, {}};
  tensors.qzeros = {qzeros.data(), DType::kI32, 1, 1, -1, {}};
  tensors.scales = {scales.data(), DType::kF16, 1, 8, -1, {}};
  tensors.zeros = ZeroFormat::kV1;
  const PlainMatrix v1 = unpack(tensors);
  CHECK(v1.weight(3, 0) == 0.5 * (3 - 0));   // stored 15 means 0
  CHECK(v1.weight(3, 1) == 0.5 * (12 - 1));  // stored 0 means 1
  CHECK(v1.weight(7, 2) == 0.5 * (8 - 8));
  tensors.zeros = ZeroFormat::kV2;
  CHECK(unpack(tensors).weight(3, 0) == 0.5 * (3 - 15));
  HostRows x(DType::kF16, 2, 8);
  for (int r = 0; r < 8; ++r) x.set(0, r, 1), x.set(1, r, r);
  const auto out = product(x, v1);
  CHECK(out[0] == 0.5 * 28);
  CHECK(out[8] == 0.5 * 140);
  CHECK(out[1] == 0.5 * (8 * 14 - 28));
}

TEST_CASE("the AWQ packing is the same matrix") {
  const GptqMatrix gptq = make_gptq({.k = 64, .n = 40, .group_size = 24, .bias = true});
  const AwqMatrix awq = to_awq(gptq);
  const PlainMatrix a = unpack(gptq.tensors()), b = unpack(awq.tensors());
  CHECK(a.codes == b.codes);
  CHECK(a.zeros == b.zeros);
  CHECK(a.group == b.group);
  CHECK(a.bias == b.bias);
  CHECK((awq.qweight[0] >> 4 & 15u) == a.codes[2]);  // nibble 1 is column 2
  CHECK((awq.qweight[0] >> 16 & 15u) == a.codes[1]);
}

TEST_CASE("errors and poison show") {
  const PlainMatrix w = unpack(make_gptq({.k = 3584, .n = 264, .act_order = ActOrder::kPermuted}).tensors());
  const HostRows x = random_rows(DType::kF16, 5, w.k, 3, w.k + 8);  // large enough for threads
  const auto reference = product(x, w);
  double direct = 0;
  for (std::int64_t r = 0; r < w.k; ++r) direct += x.at(4, r) * w.weight(r, 263);
  CHECK(reference[4 * 264 + 263] == doctest::Approx(direct).epsilon(1e-12));

  HostRows out(DType::kF16, 5, w.n, w.n + 8);
  CHECK(std::isnan(relative_error(out, reference)));
  for (std::int64_t r = 0; r < 5; ++r)
    for (std::int64_t c = 0; c < w.n; ++c) out.set(r, c, reference[r * w.n + c]);
  CHECK(relative_error(out, reference) < tolerance(DType::kF16));
  CHECK(out.padding_intact());
  out.set(4, w.n, 1);
  CHECK_FALSE(out.padding_intact());
}

}  // namespace
}  // namespace q4::test
