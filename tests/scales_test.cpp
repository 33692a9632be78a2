// Scales that fp16 does not hold: kept as they are, rounded within a limit and said, or refused; never changed
// silently.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <q4/q4.hpp>

#include "checkpoint_maker.hpp"
#include "tools/common/compare.hpp"
#include "tools/common/weights.hpp"

namespace q4::test {
namespace {

TEST_CASE("scales: bf16 and fp32 are right within fp16's tolerance, or refused") {
  std::vector<std::string> said;
  const Runtime runtime({.log = [&](LogLevel, const std::string& text) { said.push_back(text); }});
  const GptqMatrix matrix = make_gptq({.k = 256, .n = 64, .group_size = 32});
  const HostRows x = random_rows(DType::kF16, 3, 256);
  const struct {
    double scale;
    DType dtype;
    bool accepted;
  } cases[] = {
      {1e-2, DType::kBF16, true},  {1e-2, DType::kF32, true},  {1e-4, DType::kBF16, true},  {1e-5, DType::kF32, false},
      {1e-6, DType::kBF16, false}, {1e-7, DType::kF32, false}, {1e-9, DType::kBF16, false}, {1e-30, DType::kF32, false},
      {6e4, DType::kF32, true},    {1e5, DType::kF32, false},  {1e30, DType::kBF16, false}, {1e38, DType::kF32, false},
  };
  for (const auto& c : cases) {
    CAPTURE(c.scale);
    Random random(5);
    std::vector<float> wide;
    std::vector<std::uint16_t> narrow;
    std::vector<double> exact;
    for (std::size_t i = 0; i < matrix.scales.size(); ++i) {
      wide.push_back(static_cast<float>(c.scale * (0.25 + 0.75 * random.uniform())));
      narrow.push_back(bf16_bits(wide.back()));
      exact.push_back(c.dtype == DType::kF32 ? static_cast<double>(wide.back()) : bf16_value(narrow.back()));
    }
    GptqTensors tensors = matrix.tensors();
    tensors.scales.dtype = c.dtype;
    tensors.scales.data = c.dtype == DType::kF32 ? static_cast<const void*>(wide.data()) : narrow.data();
    QuantizedMatrix made;
    const std::string error = error_of([&] { made = QuantizedMatrix::from_gptq(runtime, Device{}, tensors); });
    if (!c.accepted) {
      CHECK_MESSAGE(error.find("unsupported: QuantizedMatrix::from_gptq: scales in ") == 0, error);
      CHECK_MESSAGE(error.find("power of two") != std::string::npos, error);
      continue;
    }
    REQUIRE(error == "no error");
    PlainMatrix plain = unpack(matrix.tensors());
    plain.scales = exact;
    HostRows out(DType::kF16, 3, 64);
    if (c.scale < 1) {
      MatmulPlan(runtime, made, {.max_m = 3}).run({}, {x.data()}, {out.data()}, 3);
      CHECK(relative_error(out, product(x, plain)) <= tolerance(DType::kF16));
    }
  }
  CHECK(std::count(said.begin(), said.end(), "scales in fp32 are rounded to fp16, which the kernels use") == 1);
}

TEST_CASE("scales: q4-verify's reference uses the original ones and knows what cannot be compared") {
  const GptqMatrix matrix = make_gptq({.k = 64, .n = 16, .group_size = 32, .bias = true});
  std::vector<float> scales(matrix.scales.size(), 1e-6f);
  std::vector<float> bias(16, 0.5f);
  GptqTensors tensors = matrix.tensors();
  tensors.scales = {scales.data(), DType::kF32, 2, 16};
  tensors.bias = TensorView{bias.data(), DType::kF32, 1, 16};
  const auto problem = [&] { return tools::Weights(tensors).problem(); };
  CHECK(problem().empty());
  CHECK_FALSE(tools::Weights(tensors).scales_fit_fp16());
  std::vector<double> column(64);
  tools::Weights(tensors).column(3, column);
  const PlainMatrix plain = unpack(matrix.tensors());
  for (std::size_t r = 0; r < 64; ++r) {
    const int code = plain.codes[r * 16 + 3] - plain.zeros[r / 32 * 16 + 3];
    CHECK(column[r] == double{1e-6f} * code);
  }
  scales.assign(scales.size(), 0);
  CHECK(problem() == "every scale is 0");
  scales[17] = std::numeric_limits<float>::quiet_NaN();
  CHECK(problem() == "scales[1, 1] is nan");
  scales[17] = -INFINITY;
  CHECK(problem() == "scales[1, 1] is -inf");
  scales[17] = 0.5f;
  CHECK(problem().empty());
  CHECK(tools::Weights(tensors).scales_fit_fp16());
  bias[4] = INFINITY;
  CHECK(problem() == "bias[4] is inf");
}

TEST_CASE("scales: subnormal outputs are compared with what the type can hold") {
  const std::vector<std::int64_t> columns = {0, 1, 2, 3};
  const std::vector<double> want = {3.3e-8, -1.2e-7, 2e-8, 5.1e-6};
  for (const DType type : {DType::kF16, DType::kBF16, DType::kF32}) {
    const double scale = type == DType::kF16 ? 1 : std::ldexp(1.0, type == DType::kBF16 ? -109 : -125);
    std::vector<double> reference = want;
    for (double& value : reference) value *= scale;
    std::vector<std::byte> out(16);
    for (std::int64_t c = 0; c < 4; ++c) tools::set_value(type, out.data(), c, reference[static_cast<std::size_t>(c)]);
    const auto error = [&] { return tools::relative_error(type, out, reference, 1, 4, columns); };
    CHECK(error() == 0);  // rounded to nearest: nothing could be better
    tools::set_value(type, out.data(), 3, 2 * reference[3]);
    CHECK(error() > 0.9);  // and what is wrong is still wrong
  }
  CHECK(tolerance(DType::kF32) == 1e-6);
  CHECK(autotune::tolerance_of_rounded_scales(DType::kF32) == 5e-4);
  CHECK(autotune::tolerance_of_rounded_scales(DType::kBF16) == 4e-3);
}

}  // namespace
}  // namespace q4::test
