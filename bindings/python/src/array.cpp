// Reads torch tensors by their attributes (no copy of torch's ABI, no synchronization) and everything else by DLPack.
#include "bindings/python/src/array.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include "runtime/backends/traits.hpp"
#include "runtime/base/check.hpp"

namespace q4::python {
namespace {

/// What is looked up in torch once. Never released: the interpreter may be gone when statics are destroyed.
struct Torch {
  nb::object module, tensor, parameter, raw_stream;
  nb::object grad_enabled, tracing, dispatch_modes, functorch, forward_ad;  // None in a torch without it
  std::array<std::pair<nb::object, DType>, 6> dtypes;
  nb::object is_cuda, is_meta, get_device, dtype, shape, stride, data_ptr, requires_grad, current_level;
  bool hip = false, gpu = false;
};

template <class... Args>
[[noreturn]] void type_error(fmt::format_string<Args...> text, Args&&... args) {
  throw nb::type_error(fmt::format(text, std::forward<Args>(args)...).c_str());
}

nb::object interned(const char* text) { return nb::steal(PyUnicode_InternFromString(text)); }

/// sys.modules[name], or nothing.
nb::object loaded_module(const char* name) { return nb::borrow(PyDict_GetItemString(PyImport_GetModuleDict(), name)); }

const Torch* torch() {
  static Torch* found = nullptr;
  if (found) return found;
  nb::object module = loaded_module("torch");
  // A module that is still being imported has no Tensor yet.
  if (!module.is_valid() || !nb::hasattr(module, "Tensor") || !nb::hasattr(module, "uint8") ||
      !nb::hasattr(module, "nn") || !nb::hasattr(module, "autograd"))
    return nullptr;
  auto* t = new Torch;
  t->module = module;
  t->tensor = module.attr("Tensor");
  const char* names[] = {"float16", "bfloat16", "float32", "int32", "int64", "uint8"};
  const DType types[] = {DType::kF16, DType::kBF16, DType::kF32, DType::kI32, DType::kI64, DType::kU8};
  for (std::size_t i = 0; i < t->dtypes.size(); ++i) t->dtypes[i] = {module.attr(names[i]), types[i]};
  t->is_cuda = interned("is_cuda"), t->is_meta = interned("is_meta"), t->get_device = interned("get_device");
  t->dtype = interned("dtype"), t->shape = interned("shape"), t->stride = interned("stride");
  t->data_ptr = interned("data_ptr");
  const nb::object c = module.attr("_C");
  t->parameter = module.attr("nn").attr("Parameter");
  t->grad_enabled = module.attr("is_grad_enabled"), t->requires_grad = interned("requires_grad");
  t->tracing = nb::getattr(c, "_is_tracing", nb::none());
  t->dispatch_modes = nb::getattr(c, "_len_torch_dispatch_stack", nb::none());
  t->functorch = nb::getattr(nb::getattr(c, "_functorch", nb::none()), "maybe_current_level", nb::none());
  t->forward_ad = nb::getattr(module.attr("autograd"), "forward_ad", nb::none());
  t->current_level = interned("_current_level");
  t->hip = !module.attr("version").attr("hip").is_none();
  t->gpu = t->hip || !module.attr("version").attr("cuda").is_none();
  // Gives the stream's address without making a Python stream; newer than what some clients run with.
  t->raw_stream = nb::getattr(c, "_cuda_getCurrentRawStream", nb::none());
  return found = t;
}

nb::object get(nb::handle object, const nb::object& name) {
  nb::object value = nb::steal(PyObject_GetAttr(object.ptr(), name.ptr()));
  if (!value.is_valid()) nb::raise_python_error();
  return value;
}

nb::object call_method(nb::handle object, const nb::object& name) {
  nb::object value = nb::steal(PyObject_CallMethodObjArgs(object.ptr(), name.ptr(), nullptr));
  if (!value.is_valid()) nb::raise_python_error();
  return value;
}

std::int64_t to_int(nb::handle value) {
  const long long number = PyLong_AsLongLong(value.ptr());
  if (number == -1 && PyErr_Occurred()) nb::raise_python_error();
  return number;
}

[[noreturn]] void unknown_dtype(const char* call, const char* name, const std::string& dtype) {
  fail(ErrorCode::kInvalidArgument,
       "{}: {} has dtype {}; q4 reads float16, bfloat16, float32, int32, int64 and uint8: convert it (NumPy: "
       "astype(), torch: to())",
       call, name, dtype);
}

/// DLPack's number of a kind of element, as NumPy would call it: "float64".
std::string dtype_text(int code, int bits, int lanes) {
  constexpr const char* kKinds[] = {"int", "uint", "float", "opaque", "bfloat", "complex", "bool"};
  if (code == 6 && lanes == 1) return "bool";
  const auto kind = code >= 0 && code < 7 ? kKinds[code] : fmt::format("DLPack type {}, ", code);
  return fmt::format("{}{}{}", kind, bits, lanes == 1 ? "" : fmt::format("x{}", lanes));
}

bool is_tensor(nb::handle object, const Torch& t) {
  return PyType_IsSubtype(Py_TYPE(object.ptr()), reinterpret_cast<PyTypeObject*>(t.tensor.ptr()));
}

void read_extents(const char* call, Array& a, nb::handle shape, nb::handle stride) {
  const auto dims = PyTuple_Size(shape.ptr());
  check(dims >= 0 && dims <= static_cast<long>(a.shape.size()), "{}: {} has {} dimensions; at most {} are supported",
        call, a.name, dims, a.shape.size());
  a.dims = static_cast<int>(dims);
  for (int i = 0; i < a.dims; ++i) {
    a.shape[static_cast<std::size_t>(i)] = to_int(PyTuple_GetItem(shape.ptr(), i));
    a.stride[static_cast<std::size_t>(i)] = to_int(PyTuple_GetItem(stride.ptr(), i));
  }
}

Array read_strided(const char* call, const char* name, nb::handle object, const Torch& t) {
  Array a;
  a.name = name, a.torch = true;
  const nb::object dtype = get(object, t.dtype);
  bool known = false;
  for (const auto& [value, type] : t.dtypes)
    if (value.ptr() == dtype.ptr()) {
      a.dtype = type, known = true;
      break;
    }
  if (!known) unknown_dtype(call, name, nb::cast<std::string>(nb::str(dtype)));
  read_extents(call, a, get(object, t.shape), call_method(object, t.stride));
  if (get(object, t.is_cuda).ptr() == Py_True) {
    a.device = {t.hip ? BackendKind::kHip : BackendKind::kCuda,
                static_cast<int>(to_int(call_method(object, t.get_device)))};
  } else if (get(object, t.is_meta).ptr() == Py_True) {
    a.meta = true;
    return a;
  } else {
    const auto type = nb::cast<std::string>(object.attr("device").attr("type"));
    check(type == "cpu", "{}: {} is on {}; q4 computes on cpu and cuda: move it there", call, name, type);
  }
  a.data = reinterpret_cast<void*>(PyLong_AsSize_t(call_method(object, t.data_ptr).ptr()));
  if (PyErr_Occurred()) nb::raise_python_error();
  return a;
}

Array read_tensor(const char* call, const char* name, nb::handle object, const Torch& t) {
  try {
    return read_strided(call, name, object, t);
  } catch (nb::python_error&) {  // torch's own, of strides or memory that there are not
    const auto layout = nb::cast<std::string>(nb::str(nb::getattr(object, "layout", nb::none())));
    const bool nested = nb::getattr(object, "is_nested", nb::none()).ptr() == Py_True;
    if (layout == "torch.strided" && !nested) throw;
    type_error("{}: {} is a {} tensor; q4 reads dense ones: pass what its {}() returns", call, name,
               nested ? "nested" : layout, nested ? "to_padded_tensor" : "to_dense");
  }
}

/// DLPack's numbers of devices.
Device device_of(const char* call, const char* name, int type, int id) {
  switch (type) {
    case 1:   // CPU
    case 3:   // pinned by CUDA
    case 11:  // pinned by ROCm
      return {};
    case 2:
    case 13:  // managed
      return {BackendKind::kCuda, id};
    case 10:
      return {BackendKind::kHip, id};
    default:
      fail(ErrorCode::kInvalidArgument, "{}: {} is on a device of DLPack type {}; q4 computes on cpu, cuda and hip",
           call, name, type);
  }
}

/// Numbers that another library wrote: what no memory can have would overflow further on.
void check_extents(const char* call, const Array& a) {
  std::int64_t size = 1, last = 0, step = 0;
  bool fits = true;
  for (std::size_t i = 0; i < static_cast<std::size_t>(a.dims); ++i) {
    check(a.shape[i] >= 0, "{}: {} has shape {}, with a negative extent", call, a.name, a.shape_text());
    fits = fits && !__builtin_mul_overflow(size, std::max<std::int64_t>(a.shape[i], 1), &size);
    if (a.shape[i] > 1)
      fits =
          fits && !__builtin_mul_overflow(a.stride[i], a.shape[i], &step) && !__builtin_add_overflow(last, step, &last);
  }
  check(fits && size <= std::numeric_limits<std::int64_t>::max() / 8 &&
            last <= std::numeric_limits<std::int64_t>::max() / 8,
        "{}: {} of shape {} is larger than any memory", call, a.name, a.shape_text());
}

/// Without the offset that data() adds.
template <class Exported>
bool is_null(const Exported& array) {
  if constexpr (requires { array.data_handle(); })
    return array.data_handle() == nullptr;
  else
    return array.data() == nullptr;
}

Array read_dlpack(const char* call, const char* name, nb::handle object) {
  Array a;
  a.name = name;
  nb::ndarray<nb::ro> array;
  if (!PyObject_HasAttrString(object.ptr(), "__dlpack__") && !PyObject_CheckBuffer(object.ptr()))
    type_error("{}: {} is {}; it must be an array (torch, NumPy, or anything with __dlpack__)", call, name,
               nb::str(object.type()).c_str());
  if (nb::hasattr(object, "mask") && nb::hasattr(object, "filled"))
    type_error("{}: {} is a masked array, and q4 knows no masks: pass what its filled() returns", call, name);
  nb::ndarray<> writable;
  if (nb::try_cast<nb::ndarray<>>(object, writable))
    array = nb::ndarray<nb::ro>(writable);
  else if (nb::try_cast<nb::ndarray<nb::ro>>(object, array))
    a.writable = false;
  else if (nb::hasattr(object, "dtype"))
    type_error(
        "{}: {} of dtype {} cannot be exported through DLPack (its element type, byte order or memory): "
        "convert it to native float16, float32 or int32",
        call, name, nb::repr(object.attr("dtype")).c_str());
  else
    type_error("{}: {} is {}, which cannot be exported through DLPack: convert it to an array", call, name,
               nb::str(object.type()).c_str());
  a.keep = nb::borrow(object);
  const auto dtype = array.dtype();
  using Code = nb::dlpack::dtype_code;
  const auto is = [&](Code code, int bits) {
    return dtype.code == static_cast<std::uint8_t>(code) && dtype.bits == bits && dtype.lanes == 1;
  };
  if (is(Code::Float, 16))
    a.dtype = DType::kF16;
  else if (is(Code::Bfloat, 16))
    a.dtype = DType::kBF16;
  else if (is(Code::Float, 32))
    a.dtype = DType::kF32;
  else if (is(Code::Int, 32))
    a.dtype = DType::kI32;
  else if (is(Code::Int, 64))
    a.dtype = DType::kI64;
  else if (is(Code::UInt, 8))
    a.dtype = DType::kU8;
  else
    unknown_dtype(call, name, dtype_text(dtype.code, dtype.bits, dtype.lanes));
  check(array.ndim() <= a.shape.size(), "{}: {} has {} dimensions; at most {} are supported", call, name, array.ndim(),
        a.shape.size());
  check(array.ndim() == 0 || array.shape_ptr() != nullptr, "{}: {} has {} dimensions and no shape", call, name,
        array.ndim());
  a.dims = static_cast<int>(array.ndim());
  for (std::size_t i = 0; i < array.ndim(); ++i) a.shape[i] = array.shape(i), a.stride[i] = array.stride(i);
  check_extents(call, a);
  a.device = device_of(call, name, array.device_type(), array.device_id());
  a.data = is_null(array) ? nullptr : const_cast<void*>(array.data());
  check(a.data != nullptr || a.size() == 0, "{}: {} of shape {} has no memory: its data pointer is null", call, name,
        a.shape_text());
  const auto address = reinterpret_cast<std::uintptr_t>(a.data);
  check(address % size_of(a.dtype) == 0,
        "{}: {} begins at {:#x}, which is not aligned to its elements of {} bytes: copy it", call, name, address,
        size_of(a.dtype));
  return a;
}

}  // namespace

std::int64_t Array::size() const {
  std::int64_t product = 1;
  for (int i = 0; i < dims; ++i) product *= shape[static_cast<std::size_t>(i)];
  return product;
}

std::string Array::shape_text() const {
  std::string text = "[";
  for (int i = 0; i < dims; ++i) text += (i ? ", " : "") + std::to_string(shape[static_cast<std::size_t>(i)]);
  return text + "]";
}

Array read_array(const char* call, const char* name, nb::handle object) {
  const Torch* t = torch();
  if (t && is_tensor(object, *t)) return read_tensor(call, name, object, *t);
  return read_dlpack(call, name, object);
}

RowsOf rows_of(const char* call, const Array& a) {
  check(a.dims >= 1, "{}: {} is a scalar; it must have rows", call, a.name);
  const auto last = static_cast<std::size_t>(a.dims - 1);
  RowsOf r{1, a.shape[last], 0};
  for (std::size_t i = 0; i < last; ++i) r.rows *= a.shape[i];
  if (r.rows == 0 || r.cols == 0) return r;
  check(a.stride[last] == 1 || r.cols == 1,
        "{}: {} of shape {} has stride {} in its last dimension; it must be 1: make it contiguous", call, a.name,
        a.shape_text(), a.stride[last]);
  std::int64_t step = 0, rows = 1;  // of the dimensions so far, from the last
  for (std::size_t i = last; i-- > 0;) {
    if (a.shape[i] == 1) continue;
    if (rows == 1)
      step = a.stride[i];
    else
      check(a.stride[i] == step * rows, "{}: the rows of {} of shape {} are not evenly spaced: make it contiguous",
            call, a.name, a.shape_text());
    rows *= a.shape[i];
  }
  r.stride = rows == 1 ? 0 : step;
  check(rows == 1 || step >= r.cols, "{}: the rows of {} overlap (stride {}, {} columns): make it contiguous", call,
        a.name, step, r.cols);
  return r;
}

TensorView view_of(const char* call, const Array& a) {
  check(a.dims <= 2 && a.dims >= 1, "{}: {} has shape {}; it must be a matrix or a vector", call, a.name,
        a.shape_text());
  check(!a.meta, "{}: {} is on the meta device and has no memory: load it first", call, a.name);
  const RowsOf r = rows_of(call, a);
  TensorView view{a.data, a.dtype, r.rows, r.cols, r.stride ? r.stride : -1, {}};
  if (!traits_of(a.device).host_addressable) view.device = a.device;
  return view;
}

bool wants_gradient(nb::handle object) {
  const Torch* t = torch();
  return t && is_tensor(object, *t) && get(object, t->requires_grad).ptr() == Py_True &&
         t->grad_enabled().ptr() == Py_True;
}

bool watched(nb::handle object) {
  const Torch* t = torch();
  if (!t || !is_tensor(object, *t)) return false;
  const auto* type = reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()));
  if (type != t->tensor.ptr() && type != t->parameter.ptr()) return true;
  if (wants_gradient(object)) return true;
  if (!t->tracing.is_none() && t->tracing().ptr() == Py_True) return true;
  if (!t->dispatch_modes.is_none() && to_int(t->dispatch_modes()) > 0) return true;
  if (!t->functorch.is_none() && !t->functorch().is_none()) return true;
  return !t->forward_ad.is_none() && to_int(get(t->forward_ad, t->current_level)) >= 0;
}

nb::handle loaded_torch() {
  const Torch* t = torch();
  return t ? nb::handle(t->module) : nb::handle();
}

/// What PyTorch answers about a device; where it knows no such device, as a capsule may claim one, an error of ours.
template <class Ask>
auto ask_about(Device device, const Ask& ask) {
  try {
    return ask(torch()->module.attr("cuda"));
  } catch (nb::python_error& error) {
    if (!error.matches(PyExc_Exception)) throw;
    fail(ErrorCode::kInvalidArgument, "an array is on {}, which PyTorch lacks ({}): use a device that it has",
         device.str(), nb::str(error.value()).c_str());
  }
}

void* torch_stream(Device device) {
  const Torch* t = torch();
  if (!t || !t->gpu || traits_of(device).host_addressable) return nullptr;
  return ask_about(device, [&](nb::handle cuda) {
    nb::object raw(t->raw_stream), on = nb::int_(device.ordinal);
    raw = raw.is_none() ? cuda.attr("current_stream")(on).attr("cuda_stream") : raw(on);
    return reinterpret_cast<void*>(PyLong_AsSize_t(raw.ptr()));
  });
}

void finish_torch_stream(Device device) {
  if (!torch_stream(device)) return;  // tensors are read by work of the default stream itself
  ask_about(device, [&](nb::handle cuda) { return cuda.attr("current_stream")(device.ordinal).attr("synchronize")(); });
}

void* current_stream(const Array& a) {
  if (traits_of(a.device).host_addressable) return nullptr;
  if (a.torch) return torch_stream(a.device);
  nb::object cupy = loaded_module("cupy");
  if (!cupy.is_valid()) return nullptr;
  return reinterpret_cast<void*>(PyLong_AsSize_t(cupy.attr("cuda").attr("get_current_stream")().attr("ptr").ptr()));
}

std::optional<Device> read_device(const char* call, nb::handle object) {
  if (object.is_none()) return std::nullopt;
  const Torch* t = torch();
  const BackendKind gpu = t && t->hip ? BackendKind::kHip : BackendKind::kCuda;
  if (PyLong_Check(object.ptr())) {
    const auto index = to_int(object);
    return index < 0 ? Device{} : Device{gpu, static_cast<int>(index)};
  }
  if (PyUnicode_Check(object.ptr())) return Device::parse(nb::cast<std::string>(object));
  if (nb::hasattr(object, "type") && nb::hasattr(object, "index")) {  // torch.device
    const auto type = nb::cast<std::string>(nb::str(object.attr("type")));
    if (type == "cpu") return Device{};
    check(type == "cuda", "{}: device = {}; q4 computes on cpu and cuda", call, nb::str(object).c_str());
    nb::object index = object.attr("index");
    if (index.is_none() && t) index = t->module.attr("cuda").attr("current_device")();
    return Device{gpu, index.is_none() ? 0 : static_cast<int>(to_int(index))};
  }
  type_error("{}: device is {}; it must be an int, a str such as \"cuda:0\", a torch.device or None", call,
             nb::str(object.type()).c_str());
}

nb::object empty_like(const char* call, nb::handle x, const Array& a, const std::vector<std::int64_t>& shape) {
  nb::object extents = nb::steal(PyTuple_New(static_cast<Py_ssize_t>(shape.size())));
  for (std::size_t i = 0; i < shape.size(); ++i)
    PyTuple_SetItem(extents.ptr(), static_cast<Py_ssize_t>(i), PyLong_FromLongLong(shape[i]));
  if (a.torch) return x.attr("new_empty")(extents);
  const nb::object module = loaded_module(traits_of(a.device).host_addressable ? "numpy" : "cupy");
  if (module.is_valid() && a.dtype != DType::kBF16)  // neither has bf16
    return module.attr("empty")(extents, nb::arg("dtype") = a.dtype == DType::kF32 ? "float32" : "float16");
  fail(ErrorCode::kUnsupported, "{}: cannot make a {} result of {}'s kind on {}; pass out=", call, to_string(a.dtype),
       a.name, a.device.str());
}

}  // namespace q4::python
