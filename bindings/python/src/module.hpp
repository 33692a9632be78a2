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
void bind_slice(nb::module_& module);
/// Checkpoint.load and what is like it (slice.cpp).
void bind_loads(nb::class_<Checkpoint>& checkpoint);

/// fp16, bf16 or fp32 by a name ("float16", "fp16"), or as a dtype of NumPy, torch or what is like them.
DType activation(const char* call, nb::handle dtype);
/// "auto", "v1", "v2".
ZeroFormat zero_format(const char* call, const std::string& text);
/// The text of an argument that must be one of some words. TypeError where it is no str.
std::string word(const char* call, const char* name, nb::handle object);
/// The text of a str or os.PathLike.
std::string path_text(nb::handle path);

}  // namespace q4::python
