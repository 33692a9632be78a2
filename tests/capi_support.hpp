// What the tests of the C ABI share: C tensors of C++ ones, errors by status and words, and a runtime with a plan.
#pragma once

#include <doctest/doctest.h>
#include <q4/q4.h>

#include <string>

#include "bad_input.hpp"

namespace q4::test {

inline const q4_device kHere = {Q4_CPU, 0};

/// The C tensors of C++ ones; the optional ones are in `store`.
struct CTensors {
  q4_tensor g_idx{}, bias{};
  q4_tensors all{};
};
inline q4_tensor c_tensor(const TensorView& t) {
  q4_tensor result = {t.data, static_cast<q4_dtype>(t.dtype),        t.rows,
                      t.cols, t.row_stride == -1 ? 0 : t.row_stride, {}};
  if (t.device) result.device = {static_cast<q4_backend>(t.device->kind), t.device->ordinal};
  return result;
}
template <class Tensors>
void to_c(const Tensors& from, CTensors& to) {
  to.all = {};
  to.all.size = sizeof to.all;
  to.all.qweight = c_tensor(from.qweight);
  to.all.qzeros = c_tensor(from.qzeros);
  to.all.scales = c_tensor(from.scales);
  if (from.bias) to.bias = c_tensor(*from.bias), to.all.bias = &to.bias;
  if constexpr (requires { from.g_idx; }) {
    if (from.g_idx) to.g_idx = c_tensor(*from.g_idx), to.all.g_idx = &to.g_idx;
    to.all.zeros = static_cast<q4_zeros>(from.zeros);
  }
  to.all.group_size = from.group_size;
}

inline void rejects(const std::string& what, q4_status expected, const Words& words, q4_status status) {
  CAPTURE(what);
  CHECK(status == expected);
  if (status == Q4_OK) return;
  CHECK_MESSAGE(lacking(q4_last_error(), words).empty(), std::string(q4_last_error()), " lacks",
                lacking(q4_last_error(), words));
}
inline void rejects(const Words& words, q4_status status) {
  rejects(words.front(), Q4_INVALID_ARGUMENT, words, status);
}

#define Q4_REQUIRE_OK(call) REQUIRE_MESSAGE((call) == Q4_OK, q4_last_error())

struct Fixture {
  GptqMatrix source = make_gptq(bad_input_spec());
  CTensors tensors;
  q4_runtime* runtime = nullptr;
  q4_matrix matrix = 0;
  q4_plan plan = 0;
  HostRows x = random_rows(DType::kF16, 4, 256), out{DType::kF16, 4, 64};

  Fixture() {
    to_c(source.tensors(), tensors);
    Q4_REQUIRE_OK(q4_runtime_create(nullptr, &runtime));
    Q4_REQUIRE_OK(q4_matrix_from_gptq(runtime, kHere, &tensors.all, &matrix));
    q4_plan_options options = {};
    options.size = sizeof options;
    options.max_m = 4;
    Q4_REQUIRE_OK(q4_plan_create(runtime, matrix, &options, &plan));
  }
  ~Fixture() { q4_runtime_destroy(runtime); }
  q4_status run(q4_plan with, std::int64_t m = 4) {
    return q4_plan_run(runtime, with, nullptr, x.data(), 0, out.data(), 0, m);
  }
};

}  // namespace q4::test
