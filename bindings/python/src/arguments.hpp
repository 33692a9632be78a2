// Arguments of Matrix and Plan as Python gives them.
#pragma once

#include <nanobind/nanobind.h>

#include <initializer_list>
#include <string>
#include <utility>

#include "bindings/python/src/module.hpp"
#include "bindings/python/src/session.hpp"
#include "runtime/base/check.hpp"

namespace q4::python {

/// "silu", "silu_mul", ...; None: none.
Activation epilogue_of(const char* call, nb::handle activation);
/// Columns of x @ W after it.
inline std::int64_t columns_of(const Matrix& matrix, Activation activation) {
  return activation >= Activation::kSiluMul ? matrix.weights.n() / 2 : matrix.weights.n();
}

/// A q4.LoraAdapters; TypeError for another object.
LoraAdapters adapters_of(const char* call, nb::handle adapters);
/// int32 [rows of out] on its device.
const std::int32_t* adapter_numbers(const char* call, const Array& numbers, const Array& out, std::int64_t m);
void bind_lora(nb::module_& module);
/// q4.Plan, and Matrix.plan.
void bind_plan(nb::module_& module, nb::class_<Matrix>& matrix);

}  // namespace q4::python
