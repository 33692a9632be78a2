// The extension q4._native: both modules share it, so a process holds one runtime.
#include "bindings/python/src/module.hpp"

#include <q4/error.hpp>
#include <string_view>

#include "bindings/python/src/gil.hpp"

namespace q4::python {
namespace {

/// q4.errors has a class for each code; all are RuntimeError, and what else fits.
void raise(const Error& error) {
  static constexpr const char* kNames[] = {
      "Error",        "InvalidArgument", "Unsupported", "OutOfMemory", "DeviceError",
      "CompileError", "IoError",         "CorruptFile", "NotFound",    "Error"};
  const auto code = static_cast<std::size_t>(error.code());
  const nb::object type = nb::module_::import_("q4.errors").attr(kNames[code < std::size(kNames) ? code : 0]);
  const std::string_view text = error.what();  // with paths, which need not be UTF-8
  const nb::object message =
      nb::steal(PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "backslashreplace"));
  PyErr_SetObject(type.ptr(), message.ptr());
}

/// `name` of a class gives the object itself: what cannot change needs no copies.
template <class... Args>
void gives_itself(nb::object type, const char* name) {
  type.attr(name) =
      nb::cpp_function([](nb::object self, Args...) { return self; }, nb::is_method(), nb::scope(type), nb::name(name));
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "The q4 library; use the modules q4 and exllama_kernels.";
  nb::register_exception_translator([](const std::exception_ptr& pointer, void*) {
    if (!pointer) stop_thread();  // no C++ exception: Python ends this thread (gil.hpp)
    try {
      std::rethrow_exception(pointer);
    } catch (const Error& error) { raise(error); }
  });
  nb::set_leak_warnings(false);  // the runtime outlives the interpreter on purpose
  bind_matrix(m);
  bind_slice(m);
  bind_runtime(m);
  bind_memory(m);
  bind_experts(m);
  bind_moe(m);
  for (const char* name :
       {"Matrix", "Experts", "Plan", "Checkpoint", "MatrixEntry", "DeviceInfo", "BackendStatus", "Slice"}) {
    gives_itself<>(m.attr(name), "__copy__");
    if (std::string_view(name) != "Matrix" && std::string_view(name) != "Experts")
      gives_itself<nb::handle>(m.attr(name), "__deepcopy__");  // q4/_matrix.py
  }
  nb::module_ old = m.def_submodule("exllama", "The functions of exllama_kernels.");
  bind_exllama(old);
  nb::module_ second = m.def_submodule("exllamav2", "The functions of exllamav2_kernels.");
  bind_exllamav2(second);
  nb::module_ punica = m.def_submodule("punica", "The functions of punica_kernels.");
  bind_punica(punica);
}

}  // namespace q4::python
