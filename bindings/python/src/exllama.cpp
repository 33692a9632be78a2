// exllama_kernels: the functions of ExLlama v1, as their clients call them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <cstdlib>
#include <cstring>

#include "bindings/python/src/module.hpp"
#include "bindings/python/src/servers.hpp"
#include "runtime/base/check.hpp"
#include "runtime/base/settings.hpp"
#include "runtime/runtime.hpp"

namespace q4::python {
namespace {

using namespace nb::literals;

/// What the old module kept in globals; the GIL guards it.
struct State {
  Handles handles{Server::kExllama};
  std::map<std::pair<BackendKind, int>, std::int64_t> temp_state;  ///< elements that prepare_buffers was given
  Workspaces workspaces;
  PlanOptions options;         ///< from set_tuning_params; defaults leave the choice to the tuner
  std::int64_t threshold = 8;  ///< what the old module assumed before set_tuning_params
  bool fused_remap = false;
  ZeroFormat zeros = ZeroFormat::kV1;
};

State& state() {
  static State* s = new State;  // never destroyed: see runtime()
  return *s;
}

std::pair<BackendKind, int> key(Device device) { return {device.kind, device.ordinal}; }

/// $Q4_TUNING_PARAMS=obey: every value of set_tuning_params is obeyed.
bool obeys_tuning_params() {
  const std::string text = setting("Q4_TUNING_PARAMS");
  check(text.empty() || text == "obey", "set_tuning_params: Q4_TUNING_PARAMS = '{}'; it must be 'obey' or unset", text);
  return !text.empty();
}

void set_tuning_params(std::int64_t thd, bool fused_remap, bool no_half2) {
  check(thd >= 0 && thd <= INT32_MAX,
        "set_tuning_params: thd = {}; it must be 0 (never reconstruct) or the first m that is reconstructed", thd);
  auto& s = state();
  s.threshold = thd, s.fused_remap = fused_remap;
  s.options = {};
  // Every client passes these, which were right for the old kernels: they stand for "as usual".
  constexpr std::int64_t kUsual = 8;
  if (!obeys_tuning_params() && thd == kUsual && !fused_remap && !no_half2) return;
  s.options.reconstruct_from = thd == 0 ? -1 : thd;  // its 0 means never
  if (fused_remap) s.options.gather = Gather::kFused;
  if (no_half2) s.options.math = Math::kFp32;
}

void reset_tuning_params() {
  auto& s = state();
  s.threshold = 8, s.fused_remap = false, s.options = {};
}

void set_zero_format(const std::string& format) { state().zeros = zero_format("set_zero_format", format); }

void prepare_buffers(nb::handle device, nb::handle temp_state, nb::handle temp_dq) {
  constexpr const char* kCall = "prepare_buffers";
  const Array buffers[] = {read_array(kCall, "temp_state", temp_state), read_array(kCall, "temp_dq", temp_dq)};
  const Device wanted = read_device(kCall, device).value_or(buffers[0].device);
  for (const Array& buffer : buffers) {
    check(buffer.dtype == DType::kF16, "{}: {} has dtype {}; it must be float16", kCall, buffer.name,
          to_string(buffer.dtype));
    check(buffer.device == wanted && !buffer.meta, "{}: {} is on {}, but device = {}: allocate it there", kCall,
          buffer.name, buffer.meta ? "meta" : buffer.device.str(), wanted.str());
    const RowsOf rows = rows_of(kCall, buffer);
    check(rows.stride == 0 || rows.stride == rows.cols, "{}: {} of shape {} is not contiguous", kCall, buffer.name,
          buffer.shape_text());
  }
  state().temp_state[key(wanted)] = buffers[0].size();
  if (buffers[0].dims == 2) compile_ahead().rows(wanted, buffers[0].shape[0]);
}

void cleanup_buffers() {
  auto& s = state();
  s.temp_state.clear();
  const GilRelease release;
  s.workspaces.clear();
}

void cleanup() {
  auto& s = state();
  s.temp_state.clear();
  unload(s.handles.clear());
  const GilRelease release;
  s.workspaces.clear();
}

std::int64_t make_q4(nb::handle qweight, nb::handle qzeros, nb::handle scales, nb::handle g_idx, nb::handle device) {
  constexpr const char* kCall = "make_q4";
  auto& s = state();
  const ServerTensors given{{qweight, qzeros, scales},
                            read_array(kCall, "qweight", qweight),
                            read_array(kCall, "qzeros", qzeros),
                            read_array(kCall, "scales", scales)};
  const Array& codes = given.qweight;
  const auto named = read_device(kCall, device);
  check(!named || *named == codes.device, "{}: qweight is on {}, but device = {}: move it or pass its device", kCall,
        codes.device.str(), named ? named->str() : "");
  GptqTensors tensors;
  tensors.qweight = view_of(kCall, codes), tensors.qzeros = view_of(kCall, given.qzeros),
  tensors.scales = view_of(kCall, given.scales);
  check(codes.dims == 2, "{}: qweight has shape {}; it must be [k / 8, n]", kCall, codes.shape_text());
  Array groups;
  if (!g_idx.is_none()) {
    groups = read_array(kCall, "g_idx", g_idx);
    if (!groups.meta && groups.size() > 0) tensors.g_idx = view_of(kCall, groups);
  }
  tensors.zeros = s.zeros;
  auto matrix = load_for_server(kCall, given, tensors);
  compile_ahead().shape(*matrix, s.options);
  return s.handles.add(std::move(matrix));
}

/// The old kernels put the permuted x into temp_state, unless they gathered it themselves.
void check_temp_state(const Matrix& matrix, const Array& x, std::int64_t m) {
  const auto& s = state();
  if (!matrix.weights.act_order()) return;
  const auto prepared = s.temp_state.find(key(matrix.device));
  if (prepared == s.temp_state.end()) return;
  const bool direct = s.threshold == 0 || m < s.threshold;
  check((direct && s.fused_remap) || x.size() <= prepared->second,
        "q4_matmul: temp_state buffer is too small: x has shape {}, but prepare_buffers was given {} elements; prepare "
        "larger ones (AutoGPTQ: exllama_set_max_input_length)",
        x.shape_text(), prepared->second);
}

void q4_matmul(nb::handle x, std::int64_t handle, nb::handle out) {
  constexpr const char* kCall = "q4_matmul";
  auto& s = state();
  const auto matrix = s.handles.find(kCall, handle);
  const Array from = read_array(kCall, "x", x), to = read_array(kCall, "out", out);
  check_half_rows(kCall, from, to);
  check_operands(kCall, *matrix, from, rows_of(kCall, from), to, rows_of(kCall, to));
  check_temp_state(*matrix, from, from.shape[0]);
  serve(kCall, matrix, from, to, s.options, s.workspaces);
}

void remap(nb::handle x, nb::handle x_new, nb::handle x_map) {
  constexpr const char* kCall = "column_remap";
  const Array from = read_array(kCall, "x", x), to = read_array(kCall, "x_new", x_new),
              map = read_array(kCall, "x_map", x_map);
  for (const Array* a : {&from, &to})
    check(a->dtype == DType::kF16 && a->dims == 2, "{}: {} has dtype {} and shape {}; it must be a float16 matrix",
          kCall, a->name, to_string(a->dtype), a->shape_text());
  check(map.dtype == DType::kI32 && map.dims == 1 && (map.stride[0] == 1 || map.shape[0] <= 1),
        "{}: x_map has dtype {} and shape {}; it must be a contiguous int32 vector", kCall, to_string(map.dtype),
        map.shape_text());
  check(from.device == to.device && from.device == map.device && !from.meta && !to.meta && !map.meta,
        "{}: x is on {}, x_new on {}, x_map on {}; they must be on one device", kCall, from.device.str(),
        to.device.str(), map.device.str());
  const RowsOf x_rows = rows_of(kCall, from), new_rows = rows_of(kCall, to);
  check(new_rows.rows == x_rows.rows && new_rows.cols == map.shape[0],
        "{}: x_new has shape {}; with {} rows of x and {} elements of x_map it must be [{}, {}]", kCall,
        to.shape_text(), x_rows.rows, map.shape[0], x_rows.rows, map.shape[0]);
  check(to.writable, "{}: x_new is read-only; pass memory that can be written", kCall);
  void* stream = torch_stream(from.device);
  const GilRelease release;
  column_remap(runtime(), from.device, {stream}, {from.data, x_rows.stride}, x_rows.cols, {to.data, new_rows.stride},
               static_cast<const std::int32_t*>(map.data), map.shape[0], x_rows.rows);
}

}  // namespace

void bind_exllama(nb::module_& m) {
  m.def("set_tuning_params", &set_tuning_params, "thd"_a, "fused_remap"_a, "no_half2"_a,
        "First m that is reconstructed (0: never, 1: always); act-order: gather x inside the kernel; fp32 products. "
        "(8, False, False), which every client passes, means the tuned choice, unless Q4_TUNING_PARAMS=obey.");
  m.def(
      "finish_compiling", [] { compile_ahead().finish(); }, nb::call_guard<GilRelease>(),
      "Waits until the kernels that prepare_buffers and make_q4 began to compile are there.");
  nb::module_::import_("atexit").attr("register")(
      nb::cpp_function([] { compile_ahead().stop(); }, nb::call_guard<GilRelease>()));
  m.def("reset_tuning_params", &reset_tuning_params, "Back to the tuned choice, as before set_tuning_params.");
  m.def("set_zero_format", &set_zero_format, "format"_a,
        "How make_q4 reads qzeros: 'v1' (stored + 1, the default), 'v2' (as stored, GPTQModel) or 'auto'.");
  m.def("prepare_buffers", &prepare_buffers, "device"_a.none(), "temp_state"_a, "temp_dq"_a,
        "Checks the buffers of the old contract and remembers their size; their memory is not used.");
  m.def("cleanup", &cleanup, "Frees every matrix and buffer; earlier handles become stale.");
  m.def("cleanup_buffers_cuda", &cleanup_buffers, "Frees scratch memory and forgets prepare_buffers.");
  m.def(
      "make_q4", &make_q4, "qweight"_a, "qzeros"_a, "scales"_a, "g_idx"_a.none(), "device"_a.none(),
      "Packs int32 qweight [k/8, n], int32 qzeros [groups, n/8], fp16 scales [groups, n] and g_idx [k] (or None, empty "
      "or meta); returns a handle. On a GPU packed weights take the memory of qweight, qzeros and scales where they "
      "fit "
      "(Q4_KEEP_QWEIGHT=1: never), which cleanup() restores; otherwise the tensors are read once and may be freed.");
  m.def("q4_matmul", &q4_matmul, "x"_a, "handle"_a, "out"_a,
        "out[m, n] = x[m, k] @ W, fp16, on the torch stream that is current.");
  m.def("column_remap", &remap, "x"_a, "x_new"_a, "x_map"_a, "x_new[:, j] = x[:, x_map[j]], fp16 and int32.");
}

}  // namespace q4::python
