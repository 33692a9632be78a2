// Bad input, once: what is wrong, and what the error must say. Used through C++ (badinput_test) and C (capi_test).
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <q4/matmul.hpp>
#include <string>
#include <vector>

#include "reference.hpp"

namespace q4::test {

using Words = std::vector<std::string>;

/// The words that `text` lacks; empty is good. "call", "argument", "value" and "limit" of the message, mostly.
inline std::string lacking(const std::string& text, const Words& words) {
  std::string result;
  for (const auto& word : words)
    if (text.find(word) == std::string::npos) result += " '" + word + "'";
  return result;
}

template <class T>
struct Bad {
  std::string what;
  std::function<void(T&)> spoil;
  Words words;
  ErrorCode code = ErrorCode::kInvalidArgument;
};

/// Every entry spoils valid tensors with k = 256, n = 64, 2 groups of 128, g_idx and bias.
inline MatrixSpec bad_input_spec() {
  return {.k = 256, .n = 64, .group_size = 128, .act_order = ActOrder::kPermuted, .bias = true};
}

inline const void* shifted(const void* data, std::ptrdiff_t bytes) { return static_cast<const char*>(data) + bytes; }

inline std::vector<Bad<GptqTensors>> bad_tensors() {
  static std::vector<std::int32_t> high(256), low(256), more(264);
  high[7] = 2, low[200] = -1;
  const auto tensor = [](const std::vector<std::int32_t>& g) {
    return TensorView{g.data(), DType::kI32, 1, static_cast<std::int64_t>(g.size()), -1, {}};
  };
  constexpr std::int64_t kHuge = std::int64_t{1} << 61;
  using T = GptqTensors;
  return {
      {"dtype of qweight", [](T& t) { t.qweight.dtype = DType::kF16; }, {"qweight", "fp16", "int32"}},
      {"dtype of qzeros", [](T& t) { t.qzeros.dtype = DType::kU8; }, {"qzeros", "uint8", "int32"}},
      {"dtype of scales", [](T& t) { t.scales.dtype = DType::kI32; }, {"scales", "int32", "fp16"}},
      {"dtype of g_idx", [](T& t) { t.g_idx->dtype = DType::kF16; }, {"g_idx", "fp16", "int32"}},
      {"dtype of bias", [](T& t) { t.bias->dtype = DType::kI64; }, {"bias", "int64", "fp16"}},
      {"null qweight", [](T& t) { t.qweight.data = nullptr; }, {"qweight", "null"}},
      {"null qzeros", [](T& t) { t.qzeros.data = nullptr; }, {"qzeros", "null"}},
      {"null scales", [](T& t) { t.scales.data = nullptr; }, {"scales", "null"}},
      {"null g_idx", [](T& t) { t.g_idx->data = nullptr; }, {"g_idx", "null"}},
      {"null bias", [](T& t) { t.bias->data = nullptr; }, {"bias", "null"}},
      {"negative rows", [](T& t) { t.qweight.rows = -4; }, {"qweight", "-4"}},
      {"negative columns", [](T& t) { t.qweight.cols = -64; }, {"qweight", "-64"}},
      {"negative rows of scales", [](T& t) { t.scales.rows = -2; }, {"scales", "-2"}},
      {"no rows", [](T& t) { t.qweight.rows = 0; }, {"0 x 64"}},
      {"no columns", [](T& t) { t.qweight.cols = 0; }, {"256 x 0"}},
      {"n not a multiple of 8", [](T& t) { t.qweight.cols = t.scales.cols = t.bias->cols = 60; }, {"60", "8"}},
      {"k beyond 2^31", [](T& t) { t.qweight.rows = std::int64_t{1} << 28; }, {"k = 2147483648"}},
      {"k beyond 2^63", [](T& t) { t.qweight.rows = kHuge; }, {"qweight", std::to_string(kHuge)}},
      {"n beyond 2^31", [](T& t) { t.qweight.cols = kHuge; }, {"qweight", std::to_string(kHuge)}},
      {"stride shorter than a row", [](T& t) { t.qweight.row_stride = 56; }, {"qweight", "stride", "56", "64"}},
      {"negative stride", [](T& t) { t.scales.row_stride = -64; }, {"scales", "stride", "-64"}},
      {"stride that overflows",
       [](T& t) { t.qweight.row_stride = kHuge; },
       {"qweight", "stride", std::to_string(kHuge)}},
      {"misaligned qweight", [](T& t) { t.qweight.data = shifted(t.qweight.data, 2); }, {"qweight", "align", "4"}},
      {"misaligned scales", [](T& t) { t.scales.data = shifted(t.scales.data, 1); }, {"scales", "align", "2"}},
      {"misaligned g_idx", [](T& t) { t.g_idx->data = shifted(t.g_idx->data, 1); }, {"g_idx", "align", "4"}},
      {"columns of qzeros", [](T& t) { t.qzeros.cols = 7; }, {"qzeros", "7", "8"}},
      {"columns of scales", [](T& t) { t.scales.cols = 56; }, {"scales", "56", "64"}},
      {"groups that disagree", [](T& t) { t.qzeros.rows = 1; }, {"qzeros", "scales", "1", "2"}},
      {"no groups", [](T& t) { t.qzeros.rows = t.scales.rows = 0; }, {"scales", "0"}},
      {"groups against group_size", [](T& t) { t.g_idx.reset(), t.group_size = 64; }, {"groups of 64", "4", "2"}},
      {"groups against -1", [](T& t) { t.g_idx.reset(), t.group_size = -1; }, {"group_size = -1", "2"}},
      {"group_size not a multiple of 8", [](T& t) { t.g_idx.reset(), t.group_size = 100; }, {"100", "8"}},
      {"group_size below -1", [](T& t) { t.group_size = -128; }, {"group_size", "-128"}},
      {"g_idx too short", [](T& t) { t.g_idx->cols = 255; }, {"g_idx", "255", "256"}},
      {"g_idx too long", [=](T& t) { t.g_idx = tensor(more); }, {"g_idx", "264", "256"}},
      {"g_idx beyond the groups", [=](T& t) { t.g_idx = tensor(high); }, {"g_idx", "[7]", "2"}},
      {"negative g_idx", [=](T& t) { t.g_idx = tensor(low); }, {"g_idx", "[200]", "-1"}},
      {"length of bias", [](T& t) { t.bias->cols = 63; }, {"bias", "63", "64"}},
      {"elements of bias are 2^64",
       [](T& t) { t.bias->rows = t.bias->cols = std::int64_t{1} << 32; },
       {"bias", "4294967296"}},
      {"elements of g_idx are 2^64",
       [](T& t) { t.g_idx->rows = t.g_idx->cols = std::int64_t{1} << 32; },
       {"g_idx", "4294967296"}},
      {"elements of bias overflow", [](T& t) { t.bias->rows = kHuge; }, {"bias", std::to_string(kHuge)}},
      {"negative rows of bias", [](T& t) { t.bias->rows = -1; }, {"bias", "-1"}},
      {"tensors of another device",
       [](T& t) {
         t.qweight.device = Device{BackendKind::kCuda, 0};
       },
       {"qweight", "cuda:0", "cpu"}},
  };
}

/// Arguments of MatmulPlan::run.
struct RunCall {
  const void* x = nullptr;
  std::int64_t x_stride = 0;
  void* out = nullptr;
  std::int64_t out_stride = 0;
  std::int64_t m = 0;
};

/// Every entry spoils a valid call of a plan with k = 256, n = 64, max_m = 4 and fp16, of 4 rows. A GPU also wants
/// 16-byte alignment and strides that are multiples of 8.
inline std::vector<Bad<RunCall>> bad_runs(bool gpu) {
  constexpr std::int64_t kHuge = std::int64_t{1} << 61;
  using C = RunCall;
  const auto writable = [](const void* data) { return const_cast<void*>(data); };
  std::vector<Bad<RunCall>> all = {
      {"null x", [](C& c) { c.x = nullptr; }, {"x is null"}},
      {"null out", [](C& c) { c.out = nullptr; }, {"out is null"}},
      {"misaligned x", [](C& c) { c.x = shifted(c.x, 1); }, {"x", "align", gpu ? "16" : "2"}},
      {"misaligned out", [=](C& c) { c.out = writable(shifted(c.out, 1)); }, {"out", "align", gpu ? "16" : "2"}},
      {"stride of x shorter than a row", [](C& c) { c.x_stride = 248; }, {"x", "stride", "248", "256"}},
      {"stride of out shorter than a row", [](C& c) { c.out_stride = 8; }, {"out", "stride", "8", "64"}},
      {"negative stride of x", [](C& c) { c.x_stride = -256; }, {"x", "stride", "-256"}},
      {"negative stride of out", [](C& c) { c.out_stride = -64; }, {"out", "stride", "-64"}},
      {"stride of x that overflows", [](C& c) { c.x_stride = kHuge; }, {"x", "stride", std::to_string(kHuge)}},
      {"stride of out that overflows", [](C& c) { c.out_stride = kHuge; }, {"out", "stride", std::to_string(kHuge)}},
      {"negative m", [](C& c) { c.m = -1; }, {"m", "-1"}},
      {"m over max_m", [](C& c) { c.m = 5; }, {"m", "5", "max_m", "4"}},
      {"out is x", [=](C& c) { c.out = writable(c.x); }, {"out", "x", "overlap"}},
      {"out within x", [=](C& c) { c.out = writable(shifted(c.x, 3 * 512 + 16)); }, {"out", "x", "overlap"}},
      {"x within out", [](C& c) { c.x = shifted(c.out, 64); }, {"out", "x", "overlap"}},
  };
  if (!gpu) return all;
  all.push_back({"x aligned to 8", [](C& c) { c.x = shifted(c.x, 8); }, {"x", "align", "16"}});
  all.push_back({"stride of x not a multiple of 8", [](C& c) { c.x_stride = 260; }, {"x", "stride", "260", "8"}});
  all.push_back({"stride of out not a multiple of 8", [](C& c) { c.out_stride = 65; }, {"out", "stride", "65", "8"}});
  return all;
}

}  // namespace q4::test
