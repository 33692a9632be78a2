// q4.Plan.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include "bindings/python/src/arguments.hpp"

namespace q4::python {

Activation epilogue_of(const char* call, nb::handle activation) {
  if (activation.is_none()) return Activation::kNone;
  using enum Activation;
  return choice<Activation>(call, "activation", word(call, "activation", activation),
                            {{"silu", kSilu},
                             {"gelu_tanh", kGeluTanh},
                             {"gelu", kGelu},
                             {"relu2", kRelu2},
                             {"silu_mul", kSiluMul},
                             {"gelu_tanh_mul", kGeluTanhMul},
                             {"gelu_mul", kGeluMul},
                             {"relu2_mul", kRelu2Mul}});
}

namespace {

using namespace nb::literals;
using MatrixPtr = std::shared_ptr<Matrix>;

/// A prepared multiplication with a workspace of its own.
struct Plan {
  MatrixPtr matrix;
  MatmulPlan plan;
  DType dtype;
  ProcessMutex mutex;

  Plan(MatrixPtr matrix, MatmulPlan plan, DType dtype)
      : matrix(std::move(matrix)), plan(std::move(plan)), dtype(dtype) {}

  void run(nb::handle x, nb::handle out, nb::handle stream, int repeat, nb::handle residual, nb::handle norm_weight) {
    constexpr const char* kCall = "Plan.run";
    check(!wants_gradient(x) && !wants_gradient(out),
          "{}: {} requires grad, but a plan computes none: use x @ W, or call under torch.no_grad()", kCall,
          wants_gradient(x) ? "x" : "out");
    const Array from = read_array(kCall, "x", x), to = read_array(kCall, "out", out);
    const RowsOf x_rows = rows_of(kCall, from), out_rows = rows_of(kCall, to);
    const auto m = check_operands(kCall, *matrix, from, x_rows, to, out_rows, plan.out_columns());
    std::optional<Array> added, weight;
    RunInputs inputs;
    if (!norm_weight.is_none())
      inputs.norm_weight = check_norm(from, weight.emplace(read_array(kCall, "norm_weight", norm_weight)));
    if (!residual.is_none())
      inputs.residual = check_residual(kCall, added.emplace(read_array(kCall, "residual", residual)), to);
    check(from.dtype == dtype, "{}: x has dtype {}; the plan is for {}", kCall, to_string(from.dtype),
          to_string(dtype));
    void* on = stream_of(kCall, stream, from);
    const GilRelease release;
    std::lock_guard lock(mutex);
    for (int i = 0; i < repeat; ++i) plan.run({on}, {from.data, x_rows.stride}, {to.data, out_rows.stride}, m, inputs);
  }
  const void* check_norm(const Array& x, const Array& weight) const {
    check(!weight.meta && weight.device == x.device && weight.dtype == x.dtype && weight.dims == 1 &&
              weight.shape[0] == matrix->weights.k() && weight.stride[0] == 1,
          "Plan.run: norm_weight is {} {} on {}; it must be contiguous, of k = {} elements, and as x is, {} on {}",
          to_string(weight.dtype), weight.shape_text(), weight.device.str(), matrix->weights.k(), to_string(x.dtype),
          x.device.str());
    return weight.data;
  }
};

std::unique_ptr<Plan> make_plan(const MatrixPtr& matrix, std::int64_t max_m, nb::handle dtype, nb::handle math,
                                nb::handle gather, std::int64_t reconstruct_from, bool batch_invariant,
                                bool overlap_previous, const std::string& tactic, nb::handle activation_name,
                                bool residual, std::optional<float> norm_epsilon, int spare_units) {
  constexpr const char* kCall = "Matrix.plan";
  PlanOptions o;
  o.max_m = max_m;
  o.activation = activation(kCall, dtype);
  o.math = choice<Math>(kCall, "math", word(kCall, "math", math),
                        {{"auto", Math::kAuto}, {"half2", Math::kHalf2}, {"fp32", Math::kFp32}, {"int8", Math::kInt8}});
  o.gather = choice<Gather>(
      kCall, "gather", word(kCall, "gather", gather),
      {{"auto", Gather::kAuto}, {"fused", Gather::kFused}, {"separate", Gather::kSeparate}, {"given", Gather::kGiven}});
  o.reconstruct_from = reconstruct_from;
  o.batch_invariant = batch_invariant;
  o.overlap_previous = overlap_previous;
  o.tactic = tactic;
  o.epilogue = {epilogue_of(kCall, activation_name), residual};
  o.norm = norm_epsilon.has_value(), o.spare_units = spare_units;
  if (norm_epsilon) o.norm_epsilon = *norm_epsilon;
  const GilRelease release;
  return std::make_unique<Plan>(matrix, MatmulPlan(runtime(), matrix->weights, o), o.activation);
}

}  // namespace

void bind_plan(nb::module_& m, nb::class_<Matrix>& matrix) {
  const auto none = nb::none();
  nb::class_<Plan>(m, "Plan", "x @ W prepared for up to max_m rows: run() launches and allocates nothing.")
      .def("run", &Plan::run, "x"_a.none(), "out"_a.none(), "stream"_a = none, "repeat"_a = 1, nb::kw_only(),
           "residual"_a = none, "norm_weight"_a = none,
           "out[m, n] = x[m, k] @ W (+ bias of the matrix), m <= max_m; one stream or thread at a time. repeat: so "
           "many times, "
           "for measuring without Python.")
      .def(
          "tactic", [](const Plan& p, std::int64_t rows) { return p.plan.tactic(rows); }, "m"_a,
          "What runs for m rows.")
      .def(
          "tactics", [](const Plan& p, std::int64_t rows) { return p.plan.tactics(rows); }, "m"_a,
          "Everything that could run for m rows, the default first.")
      .def_prop_ro(
          "max_m", [](const Plan& p) { return p.plan.max_m(); }, "Largest m that run() accepts.")
      .def_prop_ro(
          "dtype", [](const Plan& p) { return std::string(to_string(p.dtype)); }, "\"fp16\", \"bf16\", \"fp32\".")
      .def_prop_ro(
          "workspace_bytes", [](const Plan& p) { return p.plan.workspace_bytes(); }, "Device memory of the plan.");
  matrix.def("plan", &make_plan, "max_m"_a, nb::kw_only(), "dtype"_a.none() = "float16", "math"_a.none() = "auto",
             "gather"_a.none() = "auto", "reconstruct_from"_a = 0, "batch_invariant"_a = false,
             "overlap_previous"_a = false, "tactic"_a = "", "activation"_a = none, "residual"_a = false,
             "norm_epsilon"_a = none, "spare_units"_a = 0,
             "Prepares x @ W for up to max_m rows. dtype: of x, as a str or a dtype of NumPy or torch. math: 'auto', "
             "'half2', 'fp32', 'int8'; gather (act-order): 'auto', "
             "'fused', "
             "'separate', 'given': x comes in x_order(); reconstruct_from: first m that is reconstructed (0: chosen, "
             "-1: never). activation, residual: "
             "as "
             "matmul's; run() is then given the residual. norm_epsilon: x is RMS-normalized first, by run()'s "
             "norm_weight. spare_units: multiprocessors of a GPU that are left to others.");
}

}  // namespace q4::python
