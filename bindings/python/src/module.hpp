// The parts of the extension module.
#pragma once

#include <nanobind/nanobind.h>

#include <q4/q4.hpp>
#include <string>

namespace q4::python {

namespace nb = nanobind;

void bind_exllama(nb::module_& module);
void bind_exllamav2(nb::module_& module);
void bind_memory(nb::module_& module);
void bind_matrix(nb::module_& module);
void bind_runtime(nb::module_& module);

/// "float16", "bfloat16", "float32".
DType activation(const char* call, const std::string& text);
/// "auto", "v1", "v2".
ZeroFormat zero_format(const char* call, const std::string& text);

}  // namespace q4::python
