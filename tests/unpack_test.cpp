// QuantizedMatrix::unpack() gives back every bit of what the matrix was made of, on the CPU and on GPUs.
#include <doctest/doctest.h>

#include "interpreted.hpp"

namespace q4::test {
namespace {

std::vector<MatrixSpec> specs() {
  std::vector<MatrixSpec> all;
  for (const auto& [k, n, group] : std::vector<std::array<std::int64_t, 3>>{{8, 8, 8},
                                                                            {128, 64, 128},
                                                                            {256, 64, 64},
                                                                            {264, 72, 128},
                                                                            {200, 136, 40},
                                                                            {304, 104, 16},
                                                                            {384, 40, -1},
                                                                            {136, 24, -1},
                                                                            {320, 200, 32},
                                                                            {1032, 128, 256}})
    for (const auto zeros : {ZeroFormat::kV1, ZeroFormat::kV2})
      for (const auto order : {ActOrder::kNone, ActOrder::kTrivial, ActOrder::kPermuted, ActOrder::kUneven}) {
        MatrixSpec spec{.k = k, .n = n, .group_size = group, .act_order = order, .zeros = zeros};
        spec.bias = order == ActOrder::kPermuted;
        spec.seed = all.size() + 1;
        all.push_back(spec);
      }
  return all;
}

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return a == b;
}

void check_gptq(const Runtime& runtime, Device device, const MatrixSpec& spec) {
  GptqMatrix source = make_gptq(spec);
  source.scales[0] = 0x7d01;  // a signaling NaN keeps its payload
  auto tensors = source.tensors();
  tensors.zeros = spec.zeros;
  const auto matrix = QuantizedMatrix::from_gptq(runtime, device, tensors);
  const UnpackedMatrix again = matrix.unpack();
  INFO(device.str(), " k=", spec.k, " n=", spec.n, " group=", spec.group_size, " order=", (int)spec.act_order);
  CHECK(same(again.qweight, source.qweight));
  CHECK(same(again.qzeros, source.qzeros));
  CHECK(same(again.scales, source.scales));
  CHECK(same(again.g_idx, source.g_idx));
  REQUIRE(again.bias.size() == source.bias.size());
  for (std::size_t i = 0; i < again.bias.size(); ++i) CHECK(again.bias[i] == half_value(source.bias[i]));
  CHECK_THROWS_WITH_AS((void)again.awq(), doctest::Contains("call gptq()"), Error);

  const auto reloaded = QuantizedMatrix::from_gptq(runtime, device, again.gptq()).unpack();
  CHECK(same(reloaded.qweight, source.qweight));
  CHECK(same(reloaded.qzeros, source.qzeros));
}

void check_awq(const Runtime& runtime, Device device, const MatrixSpec& spec) {
  const AwqMatrix source = to_awq(make_gptq(spec));
  const auto again = QuantizedMatrix::from_awq(runtime, device, source.tensors()).unpack();
  CHECK(same(again.qweight, source.qweight));
  CHECK(same(again.qzeros, source.qzeros));
  CHECK(same(again.scales, source.scales));
  CHECK(same(QuantizedMatrix::from_awq(runtime, device, again.awq()).unpack().qweight, source.qweight));
  CHECK_THROWS_WITH_AS((void)again.gptq(), doctest::Contains("call awq()"), Error);
}

TEST_CASE("unpack gives back every bit, for every format and odd shapes") {
  for (const auto& info : ready_devices())
    for (const auto& spec : specs()) {
      check_gptq(shared_runtime(), info.device, spec);
      if (spec.act_order == ActOrder::kNone) check_awq(shared_runtime(), info.device, spec);
    }
}

TEST_CASE("interpreted: unpack gives back every bit") {
  const auto info = device("gfx1030");
  if (!info) return;
  int turn = 0;
  for (const auto& spec : specs()) {
    if (turn++ % 5 != 0 || spec.k * spec.n > 60000) continue;  // an interpreter is slow
    check_gptq(interpreted(), info->device, spec);
    if (spec.act_order == ActOrder::kNone) check_awq(interpreted(), info->device, spec);
  }
}

}  // namespace
}  // namespace q4::test
