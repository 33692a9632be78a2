// The parts of the extension module.
#pragma once

#include <nanobind/nanobind.h>

#include <initializer_list>
#include <q4/q4.hpp>
#include <string>
#include <utility>

#include "runtime/base/check.hpp"

namespace q4::python {

namespace nb = nanobind;

void bind_experts(nb::module_& module);
void bind_moe(nb::module_& module);
void bind_exllama(nb::module_& module);
void bind_exllamav2(nb::module_& module);
void bind_punica(nb::module_& module);
void bind_memory(nb::module_& module);
void bind_matrix(nb::module_& module);
void bind_runtime(nb::module_& module);
void bind_slice(nb::module_& module);
/// Checkpoint.load and what is like it (slice.cpp).
void bind_loads(nb::class_<Checkpoint>& checkpoint);

/// A matrix's tensors as NumPy arrays in a dict: what Matrix.unpack() gives.
nb::dict dict_of(const UnpackedMatrix& tensors);
/// fp16, bf16 or fp32 by a name ("float16", "fp16"), or as a dtype of NumPy, torch or what is like them.
DType activation(const char* call, nb::handle dtype);
/// The value of a word.
template <class Value>
Value choice(const char* call, const char* name, const std::string& text,
             std::initializer_list<std::pair<const char*, Value>> choices) {
  std::string names;
  for (const auto& [word, value] : choices) {
    if (text == word) return value;
    names += (names.empty() ? "" : ", ") + std::string(word);
  }
  fail(ErrorCode::kInvalidArgument, "{}: {} = '{}'; it must be one of {}", call, name, text, names);
}

/// "auto", "v1", "v2".
ZeroFormat zero_format(const char* call, const std::string& text);
/// The text of an argument that must be one of some words. TypeError where it is no str.
std::string word(const char* call, const char* name, nb::handle object);
/// The text of a str or os.PathLike.
std::string path_text(nb::handle path);

}  // namespace q4::python
