// punica_kernels: sgmv_shrink, sgmv_cutlass and dispatch_bgmv of LoRAX.
#include <nanobind/nanobind.h>

#include <algorithm>

#include "bindings/python/src/module.hpp"
#include "bindings/python/src/session.hpp"
#include "runtime/backends/backend.hpp"
#include "runtime/runtime.hpp"

namespace q4::python {
namespace {

using namespace nb::literals;

/// A contiguous array of so many dimensions and this type.
Array dense(const char* call, const char* name, nb::handle object, int dims, DType type) {
  const Array a = read_array(call, name, object);
  check(a.dtype == type && a.dims == dims, "{}: {} has dtype {} and shape {}; it must be {} with {} dimension{}", call,
        name, to_string(a.dtype), a.shape_text(), to_string(type), dims, dims == 1 ? "" : "s");
  std::int64_t stride = 1;
  for (int d = dims - 1; d >= 0; stride *= a.shape[d--])
    check(!a.meta && (a.shape[d] <= 1 || a.stride[d] == stride),
          "{}: {} of shape {} must be contiguous: use contiguous()", call, name, a.shape_text());
  return a;
}

/// y, x and the pointers, checked; the rest of the call is the caller's.
SegmentCall begin(const char* call, nb::handle y, nb::handle x, nb::handle w_ptr, std::int64_t layer, Device& device) {
  const DType type = read_array(call, "x", x).dtype;
  check(type == DType::kF16 || type == DType::kBF16, "{}: x has dtype {}; it must be float16 or bfloat16", call,
        to_string(type));
  const Array from = dense(call, "x", x, 2, type), to = dense(call, "y", y, 2, type),
              w = dense(call, "w_ptr", w_ptr, 1, DType::kI64);
  check(to.shape[0] == from.shape[0], "{}: y has shape {}; x has {} rows", call, to.shape_text(), from.shape[0]);
  check(to.device == from.device && w.device == from.device, "{}: x is on {}, y on {}, w_ptr on {}; move them together",
        call, from.device.str(), to.device.str(), w.device.str());
  check(to.writable, "{}: y is read-only; pass memory that can be written", call);
  check(layer >= 0, "{}: layer_idx = {}; it must not be negative", call, layer);
  const auto misaligned = [](const Array& a) { return reinterpret_cast<std::uintptr_t>(a.data) % 16 != 0; };
  check(!misaligned(from) && !misaligned(to), "{}: x and y must begin at multiples of 16 bytes: use clone()", call);
  device = from.device;
  SegmentCall segments;
  segments.type = type, segments.y = to.data, segments.x = from.data, segments.w = w.data;
  segments.m = from.shape[0], segments.in = from.shape[1], segments.out = to.shape[1];
  segments.layer = layer, segments.count = w.shape[0];
  return segments;
}

void run(const SegmentCall& call, Device device) {
  if (call.m == 0 || call.in == 0 || call.out == 0 || call.count == 0) return;
  void* stream = torch_stream(device);
  const GilRelease release;
  const RelaxedCapture relaxed(device);
  runtime().impl().open(device)->multiply_segments(stream, call);
}

void sgmv(const char* call, bool transposed, nb::handle y, nb::handle x, nb::handle w_ptr, nb::handle s_start,
          nb::handle s_end, std::int64_t layer) {
  Device device;
  SegmentCall segments = begin(call, y, x, w_ptr, layer, device);
  const Array starts = dense(call, "s_start", s_start, 1, DType::kI32),
              ends = dense(call, "s_end", s_end, 1, DType::kI32);
  check(starts.shape[0] == segments.count && ends.shape[0] == segments.count,
        "{}: s_start has shape {}, s_end {}; each must have the {} elements of w_ptr", call, starts.shape_text(),
        ends.shape_text(), segments.count);
  check(starts.device == device && ends.device == device,
        "{}: s_start is on {}, s_end on {}, x on {}; move them together", call, starts.device.str(), ends.device.str(),
        device.str());
  segments.transposed = transposed;
  segments.begin = static_cast<const std::int32_t*>(starts.data),
  segments.end = static_cast<const std::int32_t*>(ends.data);
  run(segments, device);
}

void bgmv(nb::handle y, nb::handle x, nb::handle w_ptr, nb::handle indicies, std::int64_t layer, float scale) {
  constexpr const char* kCall = "dispatch_bgmv";
  Device device;
  SegmentCall segments = begin(kCall, y, x, w_ptr, layer, device);
  const Array indices = dense(kCall, "indicies", indicies, 1, DType::kI64);
  check(indices.shape[0] == segments.m && indices.device == device,
        "{}: indicies has shape {} on {}; it must have the {} rows of x, on {}", kCall, indices.shape_text(),
        indices.device.str(), segments.m, device.str());
  segments.transposed = true, segments.scale = scale;
  segments.indices = static_cast<const std::int64_t*>(indices.data);
  run(segments, device);
}

}  // namespace

void bind_punica(nb::module_& m) {
  m.def(
      "sgmv_shrink",
      [](nb::handle y, nb::handle x, nb::handle w_ptr, nb::handle s_start, nb::handle s_end, nb::handle /*tmp*/,
         std::int64_t layer) { sgmv("sgmv_shrink", true, y, x, w_ptr, s_start, s_end, layer); },
      "y"_a, "x"_a, "w_ptr"_a, "s_start"_a, "s_end"_a, "tmp"_a.none(), "layer_idx"_a,
      "y[s_start[i] : s_end[i]] += x[the same rows] @ W.T, W the matrix layer_idx of [layers, y's columns, x's "
      "columns] "
      "at the address w_ptr[i]; fp16 or bf16, on the torch stream that is current. tmp is not used.");
  m.def(
      "sgmv_cutlass",
      [](nb::handle y, nb::handle x, nb::handle w_ptr, nb::handle s_start, nb::handle s_end, nb::handle /*tmp*/,
         std::int64_t layer) { sgmv("sgmv_cutlass", false, y, x, w_ptr, s_start, s_end, layer); },
      "y"_a, "x"_a, "w_ptr"_a, "s_start"_a, "s_end"_a, "tmp"_a.none(), "layer_idx"_a,
      "The same with W [layers, x's columns, y's columns], not transposed.");
  m.def(
      "sgmv_cutlass_tmp_size", [](std::int64_t num_problems) { return std::max<std::int64_t>(num_problems, 1); },
      "num_problems"_a, "Bytes of tmp that a client should allocate; q4 needs none.");
  m.def("dispatch_bgmv", &bgmv, "y"_a, "x"_a, "w_ptr"_a, "indicies"_a, "layer_idx"_a, "scale"_a,
        "y[r] += scale x[r] @ W.T, W the matrix layer_idx of [layers, y's columns, x's columns] at the address "
        "w_ptr[indicies[r]]; a row whose index is outside w_ptr, such as -1, stays as it is.");
}

}  // namespace q4::python
