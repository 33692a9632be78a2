// QuantizedMatrix: checked tensors, packed by the device's backend.
#include "runtime/matrix.hpp"

#include "runtime/base/check.hpp"
#include "runtime/matrix_source.hpp"
#include "runtime/runtime.hpp"

namespace q4 {
namespace {

std::shared_ptr<const QuantizedMatrix::Impl> make(const Runtime& runtime, std::shared_ptr<DeviceBackend> device,
                                                  const CheckedSource& checked) {
  const auto& s = checked.source;
  auto impl = std::make_shared<QuantizedMatrix::Impl>(
      QuantizedMatrix::Impl{runtime, device, device->pack(s), s.k, s.n, s.group_size, s.groups, s.act_order, s.has_bias,
                            checked.zeros_detected, checked.zeros});
  for (const auto& note : checked.notes) runtime.impl().say_once(LogLevel::kWarning, note);
  if (impl->detected)
    runtime.impl().log(
        LogLevel::kInfo,
        fmt::format("a {} x {} matrix stores the zero 8 everywhere: read as format v2 (symmetric)", s.k, s.n));
  return impl;
}

}  // namespace

const QuantizedMatrix::Impl& require(const QuantizedMatrix& matrix, const char* call) {
  check(static_cast<bool>(matrix),
        "{}: the matrix is empty (default-constructed or moved from); make it with QuantizedMatrix::from_gptq or "
        "from_awq",
        call);
  return *matrix.impl();
}

QuantizedMatrix QuantizedMatrix::from_gptq(const Runtime& runtime, Device device, const GptqTensors& tensors) {
  const auto backend = runtime.impl().open(device);
  QuantizedMatrix matrix;
  matrix.impl_ = make(runtime, backend, check_gptq(*backend, tensors));
  return matrix;
}

QuantizedMatrix QuantizedMatrix::from_awq(const Runtime& runtime, Device device, const AwqTensors& tensors) {
  const auto backend = runtime.impl().open(device);
  QuantizedMatrix matrix;
  matrix.impl_ = make(runtime, backend, check_awq(*backend, tensors));
  return matrix;
}

std::int64_t QuantizedMatrix::k() const { return require(*this, "QuantizedMatrix::k").k; }
std::int64_t QuantizedMatrix::n() const { return require(*this, "QuantizedMatrix::n").n; }
std::int64_t QuantizedMatrix::group_size() const { return require(*this, "QuantizedMatrix::group_size").group_size; }
std::int64_t QuantizedMatrix::groups() const { return require(*this, "QuantizedMatrix::groups").groups; }
bool QuantizedMatrix::act_order() const { return require(*this, "QuantizedMatrix::act_order").act_order; }
bool QuantizedMatrix::has_bias() const { return require(*this, "QuantizedMatrix::has_bias").has_bias; }
ZeroFormat QuantizedMatrix::zeros() const { return require(*this, "QuantizedMatrix::zeros").zeros; }
bool QuantizedMatrix::zeros_detected() const { return require(*this, "QuantizedMatrix::zeros_detected").detected; }
Device QuantizedMatrix::device() const { return require(*this, "QuantizedMatrix::device").device->info().device; }
std::size_t QuantizedMatrix::bytes() const { return require(*this, "QuantizedMatrix::bytes").packed->bytes(); }

}  // namespace q4
