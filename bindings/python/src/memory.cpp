// Matrix.unpack and Matrix.update, device memory and sealing.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <map>

#include "bindings/python/src/module.hpp"
#include "bindings/python/src/session.hpp"
#include "runtime/backends/traits.hpp"
#include "runtime/base/check.hpp"

namespace q4::python {
namespace {

using namespace nb::literals;
using MatrixPtr = std::shared_ptr<Matrix>;

/// A NumPy array with these elements.
template <class T>
nb::object array_of(const std::vector<T>& values, const char* dtype, std::int64_t rows, std::int64_t cols) {
  const nb::object memory = nb::steal(PyByteArray_FromStringAndSize(
      reinterpret_cast<const char*>(values.data()), static_cast<Py_ssize_t>(values.size() * sizeof(T))));
  const nb::object flat = nb::module_::import_("numpy").attr("frombuffer")(memory, "dtype"_a = dtype);
  return rows < 0 ? flat : nb::object(flat.attr("reshape")(rows, cols));
}

nb::dict unpack(const MatrixPtr& matrix) {
  UnpackedMatrix u;
  {
    const GilRelease release;
    u = matrix->weights.unpack();
  }
  nb::dict d = dict_of(u);
  if (matrix->weights.gate_up()) d["gate_up"] = true;
  return d;
}

void update(const MatrixPtr& matrix, nb::handle qweight, nb::handle qzeros, nb::handle scales, nb::handle g_idx,
            nb::handle bias, std::int64_t group_size, const std::string& zeros) {
  constexpr const char* kCall = "Matrix.update";
  const Array codes = read_array(kCall, "qweight", qweight), z = read_array(kCall, "qzeros", qzeros),
              s = read_array(kCall, "scales", scales);
  Array groups, added;
  void* stream = current_stream(codes);
  const bool awq = matrix->weights.is_awq();
  GptqTensors t{view_of(kCall, codes),    view_of(kCall, z), view_of(kCall, s), {}, {}, group_size,
                zero_format(kCall, zeros)};
  if (!g_idx.is_none()) {
    check(!awq, "{}: g_idx was given, but an AWQ matrix has none: pass None", kCall);
    groups = read_array(kCall, "g_idx", g_idx);
    if (!groups.meta && groups.size() > 0) t.g_idx = view_of(kCall, groups);
  }
  if (!bias.is_none()) added = read_array(kCall, "bias", bias), t.bias = view_of(kCall, added);
  const GilRelease release;
  if (awq)
    matrix->weights.update(AwqTensors{t.qweight, t.qzeros, t.scales, t.bias, group_size}, {stream});
  else
    matrix->weights.update(t, {stream});
}

nb::dict memory() {
  nb::dict all;
  for (const auto& use : runtime().memory()) {
    nb::dict d;
    d["weights"] = use.weights, d["workspace"] = use.workspace, d["code"] = use.code;
    d["allocations"] = use.allocations;
    all[use.device.str().c_str()] = d;
  }
  return all;
}

void seal(const std::optional<std::string>& mode) {
  if (!mode) return runtime().seal();
  check(*mode == "off" || *mode == "warn" || *mode == "error",
        "seal: mode = '{}'; it must be 'off', 'warn', 'error' or None ($Q4_SEAL, else error)", *mode);
  runtime().seal(*mode == "off" ? Sealing::kOff : *mode == "warn" ? Sealing::kWarn : Sealing::kError);
}

/// Who gave each piece of device memory: callables of the user's, or PyTorch's caching allocator. The GIL guards it.
struct Source {
  nb::object allocate, release;
  bool torch = false;
};
struct Sources {
  std::shared_ptr<Source> user, torch;
  std::map<void*, std::shared_ptr<Source>> gave;
};
Sources& sources() {
  static auto* all = new Sources;  // never destroyed: the interpreter may be gone before
  return *all;
}

/// What serves a device now; null: the driver.
std::shared_ptr<Source> source_for(Device device) {
  auto& s = sources();
  if (s.user) return s.user;
  const nb::handle torch = loaded_torch();
  if (traits_of(device).host_addressable || !torch.is_valid()) return nullptr;
  const bool hip = !torch.attr("version").attr("hip").is_none();
  if (device.kind != (hip ? BackendKind::kHip : BackendKind::kCuda)) return nullptr;
  if (!nb::cast<bool>(torch.attr("cuda").attr("is_initialized")())) return nullptr;
  if (!s.torch) {
    const nb::object memory = torch.attr("cuda");
    s.torch = std::make_shared<Source>(
        Source{memory.attr("caching_allocator_alloc"), memory.attr("caching_allocator_delete"), true});
  }
  return s.torch;
}

void* take(std::size_t bytes, std::size_t alignment, Device device, void* stream) {
  const GilAcquire gil;
  const auto source = source_for(device);
  if (!source) return nullptr;
  const auto on = reinterpret_cast<std::uintptr_t>(stream);
  const nb::object address = source->torch ? source->allocate(bytes, device.ordinal, on)
                                           : source->allocate(bytes, alignment, device.str(), on);
  auto* memory = address.is_none() ? nullptr : reinterpret_cast<void*>(nb::cast<std::uintptr_t>(address));
  if (memory) sources().gave[memory] = source;
  return memory;
}

void give(void* memory, std::size_t bytes, Device device, void* stream) {
  if (!Py_IsInitialized()) return;  // the process ends, and its memory with it
  const GilAcquire gil;
  const auto found = sources().gave.find(memory);
  if (found == sources().gave.end()) return;
  const auto source = std::move(found->second);
  sources().gave.erase(found);
  const auto address = reinterpret_cast<std::uintptr_t>(memory);
  if (source->torch)
    source->release(address);
  else
    source->release(address, bytes, device.str(), reinterpret_cast<std::uintptr_t>(stream));
}

void set_allocator(nb::object allocate, nb::object release) {
  check(allocate.is_none() == release.is_none(), "set_allocator: {} is None alone; pass both or neither",
        allocate.is_none() ? "allocate" : "release");
  for (const auto& function : {allocate, release})
    if (!function.is_none() && !PyCallable_Check(function.ptr()))
      throw nb::type_error("set_allocator: allocate and release must be callable");
  auto& s = sources();
  s.user = allocate.is_none() ? nullptr : std::make_shared<Source>(Source{allocate, release});
}

}  // namespace

MatrixOptions reuse_options(const char* call, bool reuse, std::initializer_list<const Array*> arrays) {
  for (const Array* array : arrays)
    check(!reuse || array->writable, "{}: {} is read-only, but reuse writes to it: pass a copy, or reuse=False", call,
          array->name);
  return {.storage = reuse ? Storage::kReuse : Storage::kOwn};
}

void keep_tensors(Matrix& matrix, std::initializer_list<nb::handle> tensors) {
  if (!matrix.weights.in_place()) return;
  auto* kept = new std::vector<nb::object>;
  for (const nb::handle tensor : tensors) kept->push_back(nb::borrow(tensor));
  matrix.tensors = std::shared_ptr<void>(kept, [](void* given) {
    if (!Py_IsInitialized()) return;  // the process ends, and its memory with it
    const GilAcquire gil;
    delete static_cast<std::vector<nb::object>*>(given);
  });
}

nb::dict dict_of(const UnpackedMatrix& u) {
  nb::dict d;
  d["format"] = u.is_awq ? "awq" : "gptq";
  d["zeros"] = u.zeros == ZeroFormat::kV1 ? "v1" : "v2";
  d["group_size"] = u.group_size;
  d["qweight"] = array_of(u.qweight, "int32", u.is_awq ? u.k : u.k / 8, u.is_awq ? u.n / 8 : u.n);
  d["qzeros"] = array_of(u.qzeros, "int32", u.groups, u.n / 8);
  d["scales"] = array_of(u.scales, "float16", u.groups, u.n);
  d["g_idx"] = u.g_idx.empty() ? nb::none() : array_of(u.g_idx, "int32", -1, 0);
  d["bias"] = u.bias.empty() ? nb::none() : array_of(u.bias, "float32", -1, 0);
  return d;
}

Allocator python_allocator() {
  return {&take, &give, [](Device device) {
            if (!Py_IsInitialized()) return false;
            const GilAcquire gil;
            return source_for(device) != nullptr;
          }};
}

void bind_memory(nb::module_& m) {
  const auto none = nb::none();
  const auto method = [&](const char* name, auto function, const auto&... extra) {
    nb::object type = m.attr("Matrix");
    type.attr(name) = nb::cpp_function(function, nb::is_method(), nb::scope(type), nb::name(name), extra...);
  };
  method("unpack", &unpack,
         "What the matrix was made of, bit for bit, as NumPy arrays in a dict: qweight, qzeros, scales, g_idx and bias "
         "(None where there was none), format, zeros, group_size: what from_gptq or from_awq takes again.");
  method("update", &update, "qweight"_a, "qzeros"_a, "scales"_a, "g_idx"_a = none, "bias"_a = none, nb::kw_only(),
         "group_size"_a = 0, "zeros"_a = "auto",
         "Other weights of the same shape in the same memory: plans and captured graphs compute with them. On a GPU in "
         "the order of the stream that is current.");
  method(
      "restore", [](const MatrixPtr& matrix) { matrix->weights.restore(); }, nb::call_guard<GilRelease>(),
      "With reuse: the tensors get their content back, and the matrix can only be dropped. Nothing may use it then.");
  const auto property = [&](const char* name, auto function, const char* text) {
    nb::object type = m.attr("Matrix");
    const nb::object getter = nb::cpp_function(function, nb::is_getter(), nb::scope(type), nb::is_method());
    type.attr(name) = nb::module_::import_("builtins").attr("property")(getter, nb::none(), nb::none(), nb::str(text));
  };
  property(
      "in_place", [](const MatrixPtr& matrix) { return matrix->weights.in_place(); },
      "Whether the codes are in qweight's memory (reuse).");
  property(
      "scales_in_place", [](const MatrixPtr& matrix) { return matrix->weights.scales_in_place(); },
      "Whether scales and zeros are in the memory of scales and qzeros too.");
  m.def("memory", &memory, "Bytes that are held on each device: weights, workspace, code, and the allocations.");
  m.def(
      "trim", [] { runtime().trim(); }, nb::call_guard<GilRelease>(),
      "Frees the memory that loads keep for the next load.");
  m.def("set_allocator", &set_allocator, "allocate"_a.none(), "release"_a.none(),
        "Device memory comes from allocate(bytes, alignment, device, stream) -> address, or None where there is none, "
        "and "
        "goes to release(address, bytes, device, stream). None, None: PyTorch's caching allocator on a GPU that "
        "PyTorch uses, else the driver.");
  m.def("seal", &seal, "mode"_a = nb::none(),
        "After warm-up: compiling a kernel or taking device memory is an error from now on ('error'), a warning "
        "('warn'), or allowed again ('off'). None: $Q4_SEAL, else 'error'.");
}

}  // namespace q4::python
