// QuantizedMatrix: checked tensors, packed by the device's backend.
#include "runtime/matrix.hpp"

#include "kernels/layout.h"
#include "runtime/base/check.hpp"
#include "runtime/matrix_source.hpp"
#include "runtime/runtime.hpp"
#include "runtime/unpacked.hpp"

namespace q4 {
namespace {

std::shared_ptr<QuantizedMatrix::Impl> make(const Runtime& runtime, std::shared_ptr<DeviceBackend> device,
                                            const CheckedSource& checked) {
  const auto& s = checked.source;
  auto impl = std::make_shared<QuantizedMatrix::Impl>();
  impl->runtime = runtime, impl->device = device, impl->packed = device->pack(s), impl->shape = s;
  impl->k = s.k, impl->n = s.n, impl->group_size = s.group_size, impl->groups = s.groups;
  impl->act_order = s.act_order, impl->has_bias = s.has_bias, impl->awq = s.awq;
  impl->detected = checked.zeros_detected, impl->zeros = checked.zeros, impl->plain_g_idx = checked.plain_g_idx;
  impl->order = s.order.source;
  for (const auto& note : checked.notes) runtime.impl().say_once(LogLevel::kWarning, note);
  if (impl->detected)
    runtime.impl().log(
        LogLevel::kInfo,
        fmt::format("a {} x {} matrix stores the zero 8 everywhere: read as format v2 (symmetric)", s.k, s.n));
  return impl;
}

/// Of `count` matrices side by side. A slice has gates and ups where they are divided alike.
void set_gate_up(CheckedSource& checked, bool gate_up, const Slice& slice, std::size_t count, const char* call) {
  checked.source.gate_up = gate_up;
  if (!gate_up) return;
  const bool halves = count == 2 || (slice.parts.size() == 2 && slice.parts[0] == slice.parts[1]);
  check(count <= 2, "{}: gate_up is set, and {} matrices are given: give gates and ups, or one matrix with both", call,
        count);
  check(halves || slice.along != Slice::Along::kColumns,
        "{}: gate_up is set, and slice.parts does not say that gates and ups are divided alike: set it to {{n / 2, n / "
        "2}}",
        call);
  check(
      checked.source.n % kTileColumns == 0,
      "{}: gate_up is set and n = {}; n / 2 gates and as many ups must each be a multiple of 8 columns: pad both with "
      "zero columns",
      call, checked.source.n);
}

void use_options(CheckedSource& checked, const MatrixOptions& options, const TensorView& qweight, const char* call) {
  check(options.storage <= Storage::kReuse, "{}: storage = {} is not a value of Storage", call,
        static_cast<int>(options.storage));
  checked.source.scratch_bytes = options.scratch_bytes;
  const bool whole = options.slice.along == Slice::Along::kWhole;
  if (options.storage == Storage::kReuse && whole) checked.source.reuse = const_cast<void*>(qweight.data);
  set_gate_up(checked, options.gate_up, options.slice, 1, call);
}

}  // namespace

const QuantizedMatrix::Impl& require(const QuantizedMatrix& matrix, const char* call) {
  check(static_cast<bool>(matrix),
        "{}: the matrix is empty (default-constructed or moved from); make it with QuantizedMatrix::from_gptq or "
        "from_awq",
        call);
  return *matrix.impl();  // the handle keeps it
}

QuantizedMatrix QuantizedMatrix::from_gptq(const Runtime& runtime, Device device, const GptqTensors& tensors,
                                           const MatrixOptions& options) {
  constexpr const char* kCall = "QuantizedMatrix::from_gptq";
  const auto backend = runtime.impl().open(device);
  CheckedSource checked = check_gptq(backend, {&tensors, 1}, options.slice, kCall);
  use_options(checked, options, tensors.qweight, kCall);
  return of(make(runtime, backend, checked));
}

QuantizedMatrix QuantizedMatrix::from_awq(const Runtime& runtime, Device device, const AwqTensors& tensors,
                                          const MatrixOptions& options) {
  constexpr const char* kCall = "QuantizedMatrix::from_awq";
  const auto backend = runtime.impl().open(device);
  CheckedSource checked = check_awq(backend, {&tensors, 1}, options.slice, kCall);
  use_options(checked, options, tensors.qweight, kCall);
  return of(make(runtime, backend, checked));
}

QuantizedMatrix QuantizedMatrix::fuse_gptq(const Runtime& runtime, Device device, std::span<const GptqTensors> tensors,
                                           const MatrixOptions& options) {
  return make_matrix(runtime, device, tensors, {}, options.slice, options.gate_up, "QuantizedMatrix::fuse_gptq");
}

QuantizedMatrix QuantizedMatrix::fuse_awq(const Runtime& runtime, Device device, std::span<const AwqTensors> tensors,
                                          const MatrixOptions& options) {
  return make_matrix(runtime, device, tensors, options.slice, options.gate_up, "QuantizedMatrix::fuse_awq");
}

QuantizedMatrix QuantizedMatrix::of(std::shared_ptr<Impl> impl) {
  QuantizedMatrix matrix;
  matrix.impl_ = std::move(impl);
  return matrix;
}

namespace {

/// Two matrices of gates and ups have as many columns.
template <class Tensors>
void check_halves(std::span<const Tensors> tensors, const char* call) {
  if (tensors.size() != 2) return;
  const std::int64_t gates = tensors[0].scales.cols, ups = tensors[1].scales.cols;
  check(gates == ups, "{}: gate_up is set, and the gates have {} columns, the ups {}: they must have as many", call,
        gates, ups);
}

}  // namespace

QuantizedMatrix make_matrix(const Runtime& runtime, Device device, std::span<const GptqTensors> tensors,
                            std::span<const CutFrom> cuts, const Slice& slice, bool gate_up, const char* call) {
  if (gate_up) check_halves(tensors, call);
  const auto backend = runtime.impl().open(device);
  CheckedSource checked = check_gptq(backend, tensors, slice, call, cuts);
  set_gate_up(checked, gate_up, slice, tensors.size(), call);
  return QuantizedMatrix::of(make(runtime, backend, checked));
}

QuantizedMatrix make_matrix(const Runtime& runtime, Device device, std::span<const AwqTensors> tensors,
                            const Slice& slice, bool gate_up, const char* call) {
  if (gate_up) check_halves(tensors, call);
  const auto backend = runtime.impl().open(device);
  CheckedSource checked = check_awq(backend, tensors, slice, call);
  set_gate_up(checked, gate_up, slice, tensors.size(), call);
  return QuantizedMatrix::of(make(runtime, backend, checked));
}

void QuantizedMatrix::Impl::update(CheckedSource to, void* stream, const char* call) {
  auto& s = to.source;
  s.gate_up = shape.gate_up;
  const auto same = [&](const char* what, auto now, auto then) {
    check(now == then, "{}: {} is {}, that of the matrix is {}: load it as another matrix", call, what, now, then);
  };
  same("k", s.k, k), same("n", s.n, n), same("the number of groups", s.groups, groups);
  same("the group size", s.group_size, group_size), same("act-order", s.act_order, act_order);
  same("having a bias", s.has_bias, has_bias), same("being AWQ", s.awq, awq);
  same("the number of packed rows (which follows from the rows of each group)", s.packed_k, shape.packed_k);
  same("the number of packed rows that share scales", s.unit, shape.unit);
  same("the rows being in another order", s.mapped, shape.mapped);
  check(!packed->scales_in_place() || can_be_apart(s, s.order),
        "{}: g_idx gives some groups more rows than others, but the matrix has its scales in place, where each has as "
        "many: load it as another matrix",
        call);
  check(!restored, "{}: restore() was called: the matrix has no weights any more", call);
  packed->update(s, stream);
  detected = to.zeros_detected, zeros = to.zeros, plain_g_idx = to.plain_g_idx, order = s.order.source;
}

void QuantizedMatrix::update(const GptqTensors& tensors, Stream stream) {
  constexpr const char* kCall = "QuantizedMatrix::update";
  const auto& m = require(*this, kCall);
  check(!m.awq, "{}: the tensors are in GPTQ's layout, the matrix was made of AWQ's: load it as another matrix", kCall);
  impl_->update(check_gptq(m.device, {&tensors, 1}, {}, kCall), stream.native, kCall);
}

void QuantizedMatrix::update(const AwqTensors& tensors, Stream stream) {
  constexpr const char* kCall = "QuantizedMatrix::update";
  const auto& m = require(*this, kCall);
  check(m.awq, "{}: the tensors are in AWQ's layout, the matrix was made of GPTQ's: load it as another matrix", kCall);
  impl_->update(check_awq(m.device, {&tensors, 1}, {}, kCall), stream.native, kCall);
}

void QuantizedMatrix::restore() {
  require(*this, "QuantizedMatrix::restore");
  if (!impl_->packed->in_place() || impl_->restored) return;
  impl_->packed->restore();
  impl_->restored = true;
}

bool QuantizedMatrix::in_place() const { return require(*this, "QuantizedMatrix::in_place").packed->in_place(); }

bool QuantizedMatrix::scales_in_place() const {
  return require(*this, "QuantizedMatrix::scales_in_place").packed->scales_in_place();
}

std::int64_t QuantizedMatrix::k() const { return require(*this, "QuantizedMatrix::k").k; }
std::int64_t QuantizedMatrix::n() const { return require(*this, "QuantizedMatrix::n").n; }
std::int64_t QuantizedMatrix::group_size() const { return require(*this, "QuantizedMatrix::group_size").group_size; }
std::int64_t QuantizedMatrix::groups() const { return require(*this, "QuantizedMatrix::groups").groups; }
bool QuantizedMatrix::act_order() const { return require(*this, "QuantizedMatrix::act_order").act_order; }
bool QuantizedMatrix::is_awq() const { return require(*this, "QuantizedMatrix::is_awq").awq; }
bool QuantizedMatrix::gate_up() const { return require(*this, "QuantizedMatrix::gate_up").shape.gate_up; }
bool QuantizedMatrix::has_bias() const { return require(*this, "QuantizedMatrix::has_bias").has_bias; }
ZeroFormat QuantizedMatrix::zeros() const { return require(*this, "QuantizedMatrix::zeros").zeros; }
bool QuantizedMatrix::zeros_detected() const { return require(*this, "QuantizedMatrix::zeros_detected").detected; }
Device QuantizedMatrix::device() const { return require(*this, "QuantizedMatrix::device").device->info().device; }
std::size_t QuantizedMatrix::bytes() const { return require(*this, "QuantizedMatrix::bytes").packed->bytes(); }

UnpackedMatrix QuantizedMatrix::unpack() const {
  const auto& m = require(*this, "QuantizedMatrix::unpack");
  check(!m.restored, "QuantizedMatrix::unpack: restore() was called: the matrix has no weights any more");
  UnpackedMatrix to = to_unpacked(m.packed->unpack(), m.shape, m.zeros);
  if (!m.act_order) to.g_idx = m.plain_g_idx;
  return to;
}

UnpackedMatrix to_unpacked(UnpackedSource plain, const MatrixShape& shape, ZeroFormat zeros) {
  UnpackedMatrix to;
  to.k = shape.k, to.n = shape.n, to.groups = shape.groups, to.group_size = shape.group_size;
  to.is_awq = shape.awq, to.zeros = zeros;
  to.qweight = std::move(plain.qweight), to.scales = std::move(plain.scales), to.bias = std::move(plain.bias);
  to.g_idx = std::move(plain.g_idx);
  to.qzeros.resize(plain.zeros.size() / 8);
  const unsigned less = zeros == ZeroFormat::kV1 ? 1 : 0;
  for (std::size_t i = 0; i < plain.zeros.size(); ++i) {
    const auto nibble = shape.awq ? i % 2 * 4 + i % 8 / 2 : i % 8;
    to.qzeros[i / 8] |= ((plain.zeros[i] - less) & 15u) << (4 * nibble);
  }
  return to;
}

namespace {

template <class Tensors>
Tensors views(const UnpackedMatrix& m) {
  Tensors t;
  t.qweight = {m.qweight.data(), DType::kI32, m.is_awq ? m.k : m.k / 8, m.is_awq ? m.n / 8 : m.n};
  t.qzeros = {m.qzeros.data(), DType::kI32, m.groups, m.n / 8};
  t.scales = {m.scales.data(), DType::kF16, m.groups, m.n};
  if (!m.bias.empty()) t.bias = TensorView{m.bias.data(), DType::kF32, 1, m.n};
  t.group_size = m.group_size;
  return t;
}

}  // namespace

GptqTensors UnpackedMatrix::gptq() const {
  check(!is_awq, "UnpackedMatrix::gptq: the matrix is in AWQ's layout: call awq()");
  auto t = views<GptqTensors>(*this);
  if (!g_idx.empty()) t.g_idx = TensorView{g_idx.data(), DType::kI32, 1, k};
  t.zeros = zeros;
  return t;
}

AwqTensors UnpackedMatrix::awq() const {
  check(is_awq, "UnpackedMatrix::awq: the matrix is in GPTQ's layout: call gptq()");
  return views<AwqTensors>(*this);
}

}  // namespace q4
