// exllamav2_kernels: make_q_matrix and gemm_half_q_half of ExLlamaV2, as LoRAX, TGI and AutoGPTQ call them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <vector>

#include "bindings/python/src/module.hpp"
#include "bindings/python/src/servers.hpp"
#include "runtime/base/check.hpp"

namespace q4::python {
namespace {

using namespace nb::literals;

struct State {
  Handles handles{Server::kExllamaV2};
  Workspaces workspaces;
};
State& state() {
  static State* s = new State;  // never destroyed: see runtime()
  return *s;
}

/// The arguments by name. The builds differ in what they have between groups and zeros, and at the end.
struct Arguments {
  nb::handle q_weight, q_perm, q_invperm, q_scale, q_scale_max, q_groups, gptq_qzeros, gptq_scales, gptq_g_idx, bias,
      temp_dq;
  std::int64_t max_dq_rows = 0;
};

constexpr const char* kMake = "make_q_matrix";

Arguments read_arguments(const nb::args& given) {
  const std::size_t count = given.size();
  if (count != 10 && count != 11 && count != 13)
    throw nb::type_error(
        fmt::format(
            "make_q_matrix: {} arguments; it takes q_weight, q_perm, q_invperm, q_scale, q_scale_max, q_groups, "
            "q_group_map (absent in a call of 10), gptq_qzeros, gptq_scales, gptq_g_idx, bias (in a call of "
            "13), temp_dq, max_dq_rows (in a call of 13)",
            count)
            .c_str());
  Arguments a;
  std::size_t at = 0;
  for (nb::handle* argument : {&a.q_weight, &a.q_perm, &a.q_invperm, &a.q_scale, &a.q_scale_max, &a.q_groups})
    *argument = given[at++];
  if (count > 10) ++at;  // q_group_map: EXL2 alone has one
  for (nb::handle* argument : {&a.gptq_qzeros, &a.gptq_scales, &a.gptq_g_idx}) *argument = given[at++];
  if (count == 13) a.bias = given[at++];
  a.temp_dq = given[at++];
  if (count == 13) a.max_dq_rows = nb::cast<std::int64_t>(nb::handle(given[at]));
  return a;
}

/// None, or a tensor without memory: what clients pass for what is not there.
bool absent(nb::handle tensor) {
  return !tensor.is_valid() || tensor.is_none() ||
         (nb::hasattr(tensor, "is_meta") && nb::cast<bool>(nb::bool_(tensor.attr("is_meta"))));
}

void check_temp_dq(const Arguments& a, const Array& codes) {
  if (absent(a.temp_dq)) return;
  const Array buffer = read_array(kMake, "temp_dq", a.temp_dq);
  const std::int64_t k = codes.shape[0] * 8, n = codes.shape[1];
  check(a.max_dq_rows >= 0, "{}: max_dq_rows = {}; it must be 0 (all rows) or more", kMake, a.max_dq_rows);
  const std::int64_t rows = a.max_dq_rows == 0 ? k : std::min(k, a.max_dq_rows);
  check(buffer.dtype == DType::kF16, "{}: temp_dq has dtype {}; it must be float16", kMake, to_string(buffer.dtype));
  check(buffer.device == codes.device, "{}: temp_dq is on {}, q_weight on {}: allocate it there", kMake,
        buffer.device.str(), codes.device.str());
  check(buffer.size() >= rows * n,
        "{}: Insufficient size of temp_dq buffer: it has {} elements, and a {} x {} matrix needs {}", kMake,
        buffer.size(), k, n, rows * n);
}

/// Writes 16-bit numbers, as the old module does, into a tensor or array of any framework.
void fill(const char* name, nb::handle tensor, const std::vector<std::uint16_t>& values) {
  check(nb::len(tensor) == values.size(), "{}: {} has {} elements; it must have k = {}", kMake, name, nb::len(tensor),
        values.size());
  const auto* bytes = reinterpret_cast<const char*>(values.data());
  const nb::object memory = nb::steal(PyByteArray_FromStringAndSize(bytes, static_cast<Py_ssize_t>(values.size() * 2)));
  const bool torch = nb::hasattr(tensor, "is_meta");
  const nb::object module = torch ? nb::borrow(loaded_torch()) : nb::object(nb::module_::import_("numpy"));
  const nb::object from = module.attr("frombuffer")(memory, "dtype"_a = module.attr("int16"));
  if (torch)
    tensor.attr("copy_")(from);
  else if (PyObject_SetItem(tensor.ptr(), nb::steal(PySlice_New(nullptr, nullptr, nullptr)).ptr(), from.ptr()) != 0)
    nb::raise_python_error();
}

/// Rows sorted by group, stable: perm[new] = old and invperm[old] = new.
void fill_permutations(const Arguments& a, const UnpackedMatrix& small, std::int64_t k) {
  std::vector<std::uint16_t> perm, inverse(static_cast<std::size_t>(k));
  std::vector<std::int32_t> rows(static_cast<std::size_t>(k));
  for (std::size_t r = 0; r < rows.size(); ++r) rows[r] = static_cast<std::int32_t>(r);
  if (!small.g_idx.empty())
    std::stable_sort(rows.begin(), rows.end(), [&](std::int32_t x, std::int32_t y) {
      return small.g_idx[static_cast<std::size_t>(x)] < small.g_idx[static_cast<std::size_t>(y)];
    });
  for (std::size_t i = 0; i < rows.size(); ++i) {
    perm.push_back(static_cast<std::uint16_t>(rows[i]));
    inverse[static_cast<std::size_t>(rows[i])] = static_cast<std::uint16_t>(i);
  }
  if (!absent(a.q_perm)) fill("q_perm", a.q_perm, perm);
  if (!absent(a.q_invperm)) fill("q_invperm", a.q_invperm, inverse);
}

std::int64_t make_q_matrix(const nb::args& given) {
  const Arguments a = read_arguments(given);
  check(
      absent(a.q_scale) && absent(a.q_scale_max) && absent(a.q_groups) && !absent(a.gptq_qzeros),
      "{}: these are tensors of the EXL2 format (q_scale, q_scale_max, q_groups); q4 multiplies GPTQ's 4-bit tensors: "
      "pass q_weight, gptq_qzeros and gptq_scales, and None or meta tensors for the others",
      kMake);
  const ServerTensors three{{a.q_weight, a.gptq_qzeros, a.gptq_scales},
                            read_array(kMake, "q_weight", a.q_weight),
                            read_array(kMake, "gptq_qzeros", a.gptq_qzeros),
                            read_array(kMake, "gptq_scales", a.gptq_scales)};
  const Array& codes = three.qweight;
  check(codes.dims == 2, "{}: q_weight has shape {}; it must be [k / 8, n]", kMake, codes.shape_text());
  check_temp_dq(a, codes);
  GptqTensors tensors;
  tensors.qweight = view_of(kMake, codes), tensors.qzeros = view_of(kMake, three.qzeros),
  tensors.scales = view_of(kMake, three.scales);
  tensors.zeros = ZeroFormat::kV1;
  Array groups, bias;
  if (!absent(a.gptq_g_idx)) {
    groups = read_array(kMake, "gptq_g_idx", a.gptq_g_idx);
    if (groups.size() > 0) tensors.g_idx = view_of(kMake, groups);
  }
  if (!absent(a.bias)) bias = read_array(kMake, "bias", a.bias), tensors.bias = view_of(kMake, bias);
  auto matrix = load_for_server(kMake, three, tensors);
  if (tensors.g_idx && (!absent(a.q_perm) || !absent(a.q_invperm)))
    fill_permutations(a, matrix->weights.unpack(), matrix->weights.k());
  compile_ahead().shape(*matrix, {});
  return state().handles.add(std::move(matrix));
}

void gemm_half_q_half(nb::handle a, std::int64_t handle, nb::handle c, bool force_cuda) {
  constexpr const char* kCall = "gemm_half_q_half";
  const auto matrix = state().handles.find(kCall, handle);
  const Array x = read_array(kCall, "a", a), out = read_array(kCall, "c", c);
  check_half_rows(kCall, x, out);
  PlanOptions options;
  if (force_cuda) options.reconstruct_from = -1;  // never through the BLAS
  serve(kCall, matrix, x, out, options, state().workspaces);
}

void cleanup() {
  unload(state().handles.clear());
  const GilRelease release;
  state().workspaces.clear();
}

}  // namespace

void bind_exllamav2(nb::module_& m) {
  m.def("make_q_matrix", &make_q_matrix, "arguments"_a,
        "Packs GPTQ tensors; returns a handle. Called as by LoRAX (11 arguments), AutoGPTQ (10) and TGI (13).");
  m.def("gemm_half_q_half", &gemm_half_q_half, "a"_a, "b"_a, "c"_a, "force_cuda"_a = false,
        "c[m, n] = a[m, k] @ W, fp16, on the torch stream that is current. force_cuda: never through the BLAS.");
  m.def(
      "free_q_matrix", [](std::int64_t handle) { state().handles.remove("free_q_matrix", handle); }, "handle"_a,
      "Frees one matrix.");
  m.def("cleanup", &cleanup, "Frees every matrix and scratch memory; earlier handles become stale.");
}

}  // namespace q4::python
