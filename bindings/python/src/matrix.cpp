// q4.Matrix and q4.Plan.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include "bindings/python/src/arguments.hpp"
#include "bindings/python/src/module.hpp"
#include "bindings/python/src/session.hpp"
#include "runtime/base/check.hpp"

namespace q4::python {
namespace {

using namespace nb::literals;
using MatrixPtr = std::shared_ptr<Matrix>;

struct Arrays {
  Array qweight, qzeros, scales;
  std::optional<Array> g_idx, bias;
};

/// The device that was named, else where qweight is; waits for what torch computes there.
Device target(const char* call, nb::handle device, const Array& qweight) {
  const Device chosen = read_device(call, device).value_or(qweight.device);
  finish_torch_stream(qweight.device);
  return chosen;
}

MatrixPtr from_gptq(nb::handle qweight, nb::handle qzeros, nb::handle scales, nb::handle g_idx, nb::handle bias,
                    std::int64_t group_size, nb::handle zeros, nb::handle device, bool reuse, bool gate_up) {
  constexpr const char* kCall = "Matrix.from_gptq";
  Arrays a{read_array(kCall, "qweight", qweight),
           read_array(kCall, "qzeros", qzeros),
           read_array(kCall, "scales", scales),
           {},
           {}};
  GptqTensors t{view_of(kCall, a.qweight),
                view_of(kCall, a.qzeros),
                view_of(kCall, a.scales),
                {},
                {},
                group_size,
                zeros.is_none() ? ZeroFormat::kAuto : zero_format(kCall, word(kCall, "zeros", zeros))};
  if (!g_idx.is_none()) {
    a.g_idx = read_array(kCall, "g_idx", g_idx);
    if (!a.g_idx->meta && a.g_idx->size() > 0) t.g_idx = view_of(kCall, *a.g_idx);
  }
  if (!bias.is_none()) t.bias = view_of(kCall, a.bias.emplace(read_array(kCall, "bias", bias)));
  const Device chosen = target(kCall, device, a.qweight);
  MatrixOptions options = reuse_options(kCall, reuse, {&a.qweight, &a.qzeros, &a.scales});
  options.gate_up = gate_up;
  MatrixPtr matrix;
  {
    const GilRelease release;
    matrix = std::make_shared<Matrix>(QuantizedMatrix::from_gptq(runtime(), chosen, t, options));
  }
  keep_tensors(*matrix, {qweight, qzeros, scales});
  return matrix;
}

MatrixPtr from_awq(nb::handle qweight, nb::handle qzeros, nb::handle scales, nb::handle bias, std::int64_t group_size,
                   nb::handle device, bool reuse, bool gate_up) {
  constexpr const char* kCall = "Matrix.from_awq";
  Arrays a{read_array(kCall, "qweight", qweight),
           read_array(kCall, "qzeros", qzeros),
           read_array(kCall, "scales", scales),
           {},
           {}};
  AwqTensors t{view_of(kCall, a.qweight), view_of(kCall, a.qzeros), view_of(kCall, a.scales), {}, group_size};
  if (!bias.is_none()) t.bias = view_of(kCall, a.bias.emplace(read_array(kCall, "bias", bias)));
  const Device chosen = target(kCall, device, a.qweight);
  MatrixOptions options = reuse_options(kCall, reuse, {&a.qweight, &a.qzeros, &a.scales});
  options.gate_up = gate_up;
  MatrixPtr matrix;
  {
    const GilRelease release;
    matrix = std::make_shared<Matrix>(QuantizedMatrix::from_awq(runtime(), chosen, t, options));
  }
  keep_tensors(*matrix, {qweight, qzeros, scales});
  return matrix;
}

/// What matmul() takes for the kernel's epilogue.
struct EpilogueArguments {
  nb::handle residual = nb::none(), activation = nb::none(), adapters = nb::none(), adapter_of_row = nb::none();
  /// The first that is given; null: none.
  const char* given() const {
    return !residual.is_none()         ? "residual"
           : !activation.is_none()     ? "activation"
           : !adapters.is_none()       ? "adapters"
           : !adapter_of_row.is_none() ? "adapter_of_row"
                                       : nullptr;
  }
};

/// By torch's operator (q4/_torch_ops.py), for an x that torch watches.
nb::object multiply_watched(const MatrixPtr& matrix, nb::handle x, nb::handle out, nb::handle bias, nb::handle stream,
                            bool batch_invariant, const EpilogueArguments& epilogue) {
  check(!epilogue.given(),
        "matmul: {}= has no gradient, and does not go with an x that requires grad, is traced or is of a subclass of "
        "torch.Tensor: call under torch.no_grad() with x.detach(), or apply it to the result",
        epilogue.given() ? epilogue.given() : "");
  check(out.is_none() && stream.is_none(),
        "matmul: {}= does not go with an x that requires grad, is traced or is of a subclass of torch.Tensor: leave it "
        "away, or call under torch.no_grad() with x.detach()",
        out.is_none() ? "stream" : "out");
  nb::object result = nb::module_::import_("q4._torch_ops").attr("matmul")(x, matrix, batch_invariant);
  return bias.is_none() ? result : nb::object(result + bias);
}

nb::object compute(const MatrixPtr& self, nb::handle x, nb::handle out, nb::handle bias, nb::handle stream,
                   bool batch_invariant, const EpilogueArguments& epilogue) {
  constexpr const char* kCall = "matmul";
  const MatrixPtr matrix = self;
  PlanOptions options;
  options.epilogue = {epilogue_of(kCall, epilogue.activation), !epilogue.residual.is_none(),
                      !epilogue.adapters.is_none()};
  check(bias.is_none() || !epilogue.given(),
        "{}: bias= is added by x's framework after everything else, and does not go with {}=: give the bias to the "
        "matrix",
        kCall, epilogue.given() ? epilogue.given() : "");
  const std::int64_t columns = columns_of(*matrix, options.epilogue.activation);
  const Array from = read_array(kCall, "x", x);
  const RowsOf x_rows = rows_of(kCall, from);
  nb::object result;
  if (out.is_none()) {
    std::vector<std::int64_t> shape(from.shape.begin(), from.shape.begin() + from.dims);
    shape.back() = columns;
    result = empty_like(kCall, x, from, shape);
  } else {
    result = nb::borrow(out);
  }
  const Array to = read_array(kCall, "out", result);
  check(to.dims == from.dims, "{}: out has shape {}, x has {}; they must have as many dimensions", kCall,
        to.shape_text(), from.shape_text());
  const RowsOf out_rows = rows_of(kCall, to);
  const auto m = check_operands(kCall, *matrix, from, x_rows, to, out_rows, columns);
  Array added, numbers;
  RunInputs inputs;
  if (options.epilogue.residual)
    inputs.residual = check_residual(kCall, added = read_array(kCall, "residual", epilogue.residual), to);
  LoraAdapters adapters;
  if (options.epilogue.lora) {
    adapters = adapters_of(kCall, epilogue.adapters);
    options.lora_rank = adapters.max_rank(), inputs.adapters = &adapters;
  }
  if (!epilogue.adapter_of_row.is_none())
    inputs.adapter_of_row =
        adapter_numbers(kCall, numbers = read_array(kCall, "adapter_of_row", epilogue.adapter_of_row), to, m);
  void* on = stream_of(kCall, stream, from);
  options.activation = from.dtype;
  options.batch_invariant = batch_invariant;
  {
    const GilRelease release;
    matrix->multiply(options, workspaces(), on, {from.data, x_rows.stride}, {to.data, out_rows.stride}, m, inputs);
  }
  if (bias.is_none()) return result;
  nb::object sum = nb::steal(PyNumber_InPlaceAdd(result.ptr(), bias.ptr()));
  if (!sum.is_valid()) nb::raise_python_error();
  return result;
}

nb::object multiply(const MatrixPtr& self, nb::handle x, nb::handle out, nb::handle bias, nb::handle stream,
                    bool batch_invariant, const EpilogueArguments& epilogue = {}) {
  if (watched(x)) return multiply_watched(self, x, out, bias, stream, batch_invariant, epilogue);
  for (const auto& [name, array] : {std::pair{"out", out}, std::pair{"residual", epilogue.residual}})
    check(!wants_gradient(array), "matmul: {} requires grad, but what is written has no gradient: pass {}.detach()",
          name, name);
  return compute(self, x, out, bias, stream, batch_invariant, epilogue);
}

/// x's framework adds it, and would broadcast or refuse another shape in its own words.
void check_bias(const char* call, nb::handle bias, std::int64_t n) {
  const nb::object shape = nb::getattr(bias, "shape", nb::none());
  nb::object wanted = nb::steal(PyTuple_New(1));
  PyTuple_SetItem(wanted.ptr(), 0, PyLong_FromLongLong(n));
  const bool array = PyTuple_Check(shape.ptr());
  if (array && shape.equal(wanted)) return;
  fail(ErrorCode::kInvalidArgument, "{}: bias is {}{}; it must be an array of shape [{}]", call,
       array ? "of shape " : "", nb::repr(array ? nb::handle(shape) : bias.type()).c_str(), n);
}

nb::object matmul(const MatrixPtr& self, nb::handle x, nb::handle out, nb::handle bias, nb::handle stream,
                  bool batch_invariant, nb::handle residual, nb::handle activation, nb::handle adapters,
                  nb::handle adapter_of_row) {
  if (!bias.is_none()) check_bias("matmul", bias, self->weights.n());
  return multiply(self, x, out, bias, stream, batch_invariant, {residual, activation, adapters, adapter_of_row});
}

/// torch asks this before it gives up on x @ W: ten times as fast as the TypeError that it would make of it.
nb::object torch_function(nb::handle function, nb::handle, nb::tuple operands, nb::handle keywords) {
  const auto name = nb::cast<std::string>(function.attr("__name__"));
  MatrixPtr matrix;
  if ((name == "matmul" || name == "__matmul__") && operands.size() == 2 && nb::try_cast(operands[1], matrix) &&
      matrix && (keywords.is_none() || PyDict_Size(keywords.ptr()) == 0))
    return multiply(matrix, operands[0], nb::none(), nb::none(), nb::none(), false);
  return nb::borrow(Py_NotImplemented);
}

void warmup(const MatrixPtr& matrix, std::int64_t max_m, nb::handle dtype, nb::handle stream) {
  constexpr const char* kCall = "Matrix.warmup";
  PlanOptions o;
  o.activation = activation(kCall, dtype);
  o.max_m = max_m, o.own_workspace = false;
  check(max_m >= 1 && max_m <= INT32_MAX, "{}: max_m = {}; it must be in [1, {}]", kCall, max_m, INT32_MAX);
  Array here;
  here.device = matrix->device;
  void* on = stream.is_none() ? torch_stream(matrix->device) : stream_of(kCall, stream, here);
  const GilRelease release;
  const auto bytes = matrix->plan(o).workspace_bytes();
  const auto scratch = workspaces().get(matrix->device, on);
  std::lock_guard lock(scratch->mutex);
  scratch->reserve(matrix->device, bytes);
}

std::string describe(const Matrix& m) {
  const auto& w = m.weights;
  return fmt::format("q4.Matrix(k={}, n={}, group_size={}{}{}, device='{}')", w.k(), w.n(), w.group_size(),
                     w.act_order() ? ", act_order" : "", w.has_bias() ? ", bias" : "", m.device.str());
}

}  // namespace

std::string word(const char* call, const char* name, nb::handle object) {
  if (!PyUnicode_Check(object.ptr()))
    throw nb::type_error(fmt::format("{}: {} = {}; it must be a str", call, name, nb::repr(object).c_str()).c_str());
  return nb::cast<std::string>(object);
}

DType activation(const char* call, nb::handle dtype) {
  nb::object name = nb::borrow(dtype);
  if (PyType_Check(dtype.ptr()))  // numpy.float16
    name = dtype.attr("__name__");
  else if (!PyUnicode_Check(dtype.ptr()) && nb::hasattr(dtype, "name"))  // numpy.dtype("float16")
    name = dtype.attr("name");
  std::string text = nb::cast<std::string>(nb::str(name));
  if (text.starts_with("torch.")) text.erase(0, 6);
  for (const auto& [word, type] : std::initializer_list<std::pair<const char*, DType>>{{"float16", DType::kF16},
                                                                                       {"half", DType::kF16},
                                                                                       {"fp16", DType::kF16},
                                                                                       {"bfloat16", DType::kBF16},
                                                                                       {"bf16", DType::kBF16},
                                                                                       {"float32", DType::kF32},
                                                                                       {"fp32", DType::kF32}})
    if (text == word) return type;
  fail(ErrorCode::kInvalidArgument,
       "{}: dtype = {}; it must be float16, bfloat16 or float32, as a str or a dtype of NumPy or torch", call,
       nb::repr(dtype).c_str());
}

ZeroFormat zero_format(const char* call, const std::string& text) {
  return choice<ZeroFormat>(call, "zeros", text,
                            {{"auto", ZeroFormat::kAuto}, {"v1", ZeroFormat::kV1}, {"v2", ZeroFormat::kV2}});
}

MatrixPtr load_matrix(const Checkpoint& checkpoint, const std::string& name, nb::handle device,
                      const std::optional<std::string>& zeros) {
  constexpr const char* kCall = "Checkpoint.load";
  const auto named = read_device(kCall, device);
  std::optional<ZeroFormat> format;
  if (zeros) format = zero_format(kCall, *zeros);
  const GilRelease release;
  return std::make_shared<Matrix>(checkpoint.load(runtime(), named ? *named : runtime().best_device(), name, format));
}

std::string path_text(nb::handle path) {
  PyObject* bytes = nullptr;  // names of files need not be UTF-8
  if (!PyUnicode_FSConverter(path.ptr(), &bytes)) nb::raise_python_error();
  const nb::object owned = nb::steal(bytes);
  return PyBytes_AsString(bytes);
}

Checkpoint open_checkpoint(nb::handle path) {
  const auto name = path_text(path);
  const GilRelease release;
  return Checkpoint::open(name);
}

void bind_matrix(nb::module_& m) {
  const auto none = nb::none();
  nb::class_<Matrix> matrix(m, "Matrix", nb::is_weak_referenceable(),
                            "4-bit weights W[k, n], packed on one device; immutable. x @ W multiplies.");
  matrix
      .def_static(
          "from_gptq", &from_gptq, "qweight"_a.none(), "qzeros"_a.none(), "scales"_a.none(), "g_idx"_a = none,
          "bias"_a = none, nb::kw_only(), "group_size"_a = 0, "zeros"_a.none() = "auto", "device"_a = none,
          "reuse"_a = false, "gate_up"_a = false,
          "From int32 qweight [k/8, n], int32 qzeros [groups, n/8], scales [groups, n] (fp16, bf16 or fp32), g_idx "
          "[k] (int32 or int64; None, empty or meta: no act-order) and bias [n]. group_size 0: from the shapes; -1: "
          "one group. zeros: 'v1' (stored + 1), 'v2' (as stored), 'auto' (v1 unless all are 8). device: where the "
          "matrix goes; None: where qweight is. The tensors are read once; with reuse, on a GPU, the packed weights "
          "take "
          "their memory where they fit (see in_place), and the matrix keeps them. gate_up: columns are n / 2 gates, "
          "then "
          "their ups, for matmul(activation='silu_mul') and no other use.")
      .def_static("from_awq", &from_awq, "qweight"_a.none(), "qzeros"_a.none(), "scales"_a.none(), "bias"_a = none,
                  nb::kw_only(), "group_size"_a = 0, "device"_a = none, "reuse"_a = false, "gate_up"_a = false,
                  "From AWQ's \"gemm\" layout: int32 qweight [k, n/8], int32 qzeros [groups, n/8], scales [groups, n].")
      .def_static(
          "from_checkpoint",
          [](nb::handle path, const std::string& name, nb::handle device, const std::optional<std::string>& zeros) {
            return load_matrix(open_checkpoint(path), name, device, zeros);
          },
          "path"_a, "name"_a, nb::kw_only(), "device"_a = none, "zeros"_a = none,
          "The matrix `name` (\"model.layers.0.self_attn.q_proj\") of a safetensors checkpoint, GPTQ or AWQ; "
          "device None: the best one. For many matrices open a q4.Checkpoint once.")
      .def("matmul", &matmul, "x"_a.none(), nb::kw_only(), "out"_a = none, "bias"_a = none, "stream"_a = none,
           "batch_invariant"_a = false, "residual"_a = none, "activation"_a = none, "adapters"_a = none,
           "adapter_of_row"_a = none,
           "x[..., k] @ W -> [..., n], in x's dtype (fp16, bf16; fp32 on the CPU) and x's kind of array, on the stream "
           "that "
           "is current in x's framework.")
      .def(
          "_compute",
          [none](const MatrixPtr& self, nb::handle x, bool batch_invariant) {
            return compute(self, x, none, none, none, batch_invariant, {});
          },
          "x"_a, "batch_invariant"_a, "matmul() whoever watches x: for the operators of q4/_torch_ops.py.")
      .def(
          "__rmatmul__",
          [none](const MatrixPtr& self, nb::handle x) { return multiply(self, x, none, none, none, false); }, "x"_a)
      .def_static("__torch_function__", &torch_function, "function"_a, "types"_a, "args"_a = nb::tuple(),
                  "kwargs"_a = none)
      .def("warmup", &warmup, "max_m"_a, "dtype"_a.none() = "float16", "stream"_a = none,
           "Compiles and allocates what x @ W needs for up to max_m rows on a stream (None: torch's current one).")
      .def("__repr__", [](const Matrix& self) { return describe(self); })
      .def_prop_ro(
          "k", [](const Matrix& self) { return self.weights.k(); }, "Rows of W: in_features.")
      .def_prop_ro(
          "n", [](const Matrix& self) { return self.weights.n(); }, "Columns of W: out_features.")
      .def_prop_ro("shape", [](const Matrix& self) { return nb::make_tuple(self.weights.k(), self.weights.n()); })
      .def_prop_ro(
          "group_size", [](const Matrix& self) { return self.weights.group_size(); }, "Rows of a group.")
      .def_prop_ro("groups", [](const Matrix& self) { return self.weights.groups(); })
      .def_prop_ro("act_order", [](const Matrix& self) { return self.weights.act_order(); })
      .def(
          "x_order", [](const Matrix& self) { return x_order(self.weights); },
          "With act-order, for plans with gather='given': x[:, W.x_order()] is x in the order that the matrix wants.")
      .def(
          "same_x_order",
          [](const Matrix& self, const Matrix& other) { return same_x_order(self.weights, other.weights); }, "other"_a,
          "Whether x in the order of one is x in the order of the other.")
      .def_prop_ro(
          "gate_up", [](const Matrix& self) { return self.weights.gate_up(); },
          "Loaded with gate_up: columns are gates, then ups.")
      .def_prop_ro("has_bias", [](const Matrix& self) { return self.weights.has_bias(); })
      .def_prop_ro(
          "zeros", [](const Matrix& self) { return self.weights.zeros() == ZeroFormat::kV1 ? "v1" : "v2"; },
          "How zeros were read.")
      .def_prop_ro(
          "zeros_detected", [](const Matrix& self) { return self.weights.zeros_detected(); },
          "'auto' found the pattern of a symmetric v2 checkpoint.")
      .def_prop_ro(
          "device", [](const Matrix& self) { return self.device.str(); }, "\"cpu\", \"cuda:0\".")
      .def_prop_ro(
          "nbytes", [](const Matrix& self) { return self.weights.bytes(); }, "Device memory of the weights.");
  bind_plan(m, matrix);
  bind_lora(m);
  matrix.attr("__array_ufunc__") = none;  // NumPy leaves x @ W to __rmatmul__

  m.def(
      "release_workspaces",
      [] {
        const GilRelease release;
        workspaces().clear();
      },
      "Waits for the devices and frees the scratch memory of x @ W; graphs captured before must not be replayed.");
}

}  // namespace q4::python
