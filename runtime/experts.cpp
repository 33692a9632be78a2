// QuantizedExperts: the tensors of many matrices, checked one after the other and packed by the device's backend.
#include "runtime/experts.hpp"

#include <algorithm>
#include <functional>
#include <numeric>

#include "runtime/base/check.hpp"
#include "runtime/expert_tensors.hpp"
#include "runtime/matrix_source.hpp"
#include "runtime/runtime.hpp"
#include "runtime/unpacked.hpp"

namespace q4 {
namespace {

/// Hands the checked tensors of one expert to `use`; they live until it returns.
using Source = std::function<void(std::int64_t expert, const std::function<void(CheckedSource&)>& use)>;

/// Throws unless an expert of shape `s` can stand beside those of `shape`.
void check_same(const char* call, std::int64_t expert, const MatrixShape& s, const MatrixShape& shape) {
  const auto same = [&](const char* what, auto now, auto then) {
    check(now == then, "{}: {} of expert {} is {}, that of the others is {}: all experts must agree in it", call, what,
          expert, now, then);
  };
  same("k", s.k, shape.k), same("n", s.n, shape.n), same("the number of groups", s.groups, shape.groups);
  same("the group size", s.group_size, shape.group_size), same("having a bias", s.has_bias, shape.has_bias);
  same("being AWQ", s.awq, shape.awq);
  same("the number of packed rows that share scales (which follows from the rows of each group)", s.unit, shape.unit);
}

bool fits(const MatrixShape& s, const MatrixShape& shape) {
  return s.packed_k <= shape.packed_k && s.mapped <= shape.mapped && s.act_order <= shape.act_order;
}

void widen(MatrixShape& shape, const MatrixShape& by) {
  shape.packed_k = std::max(shape.packed_k, by.packed_k);
  shape.mapped |= by.mapped, shape.act_order |= by.act_order;
}

/// The rows of one expert in an order that has all packed rows of `shape`.
void fit_order(RowOrder& order, std::int64_t k, const ExpertsShape& shape) {
  if (order.identity && shape.mapped) {
    order.source.resize(static_cast<std::size_t>(k));
    std::iota(order.source.begin(), order.source.end(), 0);
    order.identity = false;
  }
  order.k = shape.packed_k;
  if (shape.mapped) order.source.resize(static_cast<std::size_t>(order.k), -1);
  order.group.resize(static_cast<std::size_t>((order.k + order.unit - 1) / order.unit), -1);
}

void pack_expert(QuantizedExperts::Impl& to, std::int64_t expert, CheckedSource& from, void* stream) {
  MatrixSource& source = from.source;
  fit_order(source.order, source.k, to.shape());
  static_cast<MatrixShape&>(source) = to.shape();
  to.packed->update(expert, source, stream);
  to.zeros[static_cast<std::size_t>(expert)] = from.zeros;
  for (const auto& note : from.notes) to.runtime.impl().say_once(LogLevel::kWarning, note);
}

std::shared_ptr<QuantizedExperts::Impl> make(const char* call, const Runtime& runtime,
                                             std::shared_ptr<DeviceBackend> device, std::int64_t experts,
                                             const ExpertsOptions& options, const Source& source) {
  check(experts >= 1 && experts <= kMostExperts, "{}: there are {} experts; pass 1 to {}", call, experts, kMostExperts);
  auto impl = std::make_shared<QuantizedExperts::Impl>();
  impl->runtime = runtime, impl->device = std::move(device);
  impl->zeros.resize(static_cast<std::size_t>(experts));
  ExpertsShape shape;
  shape.experts = experts;
  bool fitted = true;
  const auto pack = [&](std::int64_t expert, CheckedSource& checked) {
    if (expert == 0 && fitted) {
      static_cast<MatrixShape&>(shape) = checked.source;
      shape.gate_up = options.gate_up;
      check(!shape.gate_up || shape.n % 16 == 0,
            "{}: n = {} of experts with gate_up must be a multiple of 16: gate and up each of a multiple of 8", call,
            shape.n);
    }
    check_same(call, expert, checked.source, shape);
    fitted = fits(checked.source, shape);
    if (!fitted) return;
    if (!impl->packed) impl->packed = impl->device->make_experts(shape);
    pack_expert(*impl, expert, checked, nullptr);
  };
  for (std::int64_t expert = 0; expert < experts; ++expert) {
    source(expert, [&](CheckedSource& checked) { pack(expert, checked); });
    if (fitted) continue;
    // The first ones were simpler: look at all the others, and begin again.
    for (std::int64_t other = expert; other < experts; ++other)
      source(other, [&](CheckedSource& checked) { widen(shape, checked.source); });
    impl->packed.reset();
    expert = -1;
  }
  return impl;
}

std::string name_of(const char* call, std::int64_t expert) { return fmt::format("{}: expert {}", call, expert); }

/// Of gate and up side by side, where there are two parts.
CheckedSource check_expert(const std::shared_ptr<DeviceBackend>& device, std::span<const GptqTensors> parts,
                           const Slice& slice, const char* call, std::int64_t expert) {
  return check_gptq(device, parts, slice, name_of(call, expert).c_str());
}
CheckedSource check_expert(const std::shared_ptr<DeviceBackend>& device, std::span<const AwqTensors> parts,
                           const Slice& slice, const char* call, std::int64_t expert) {
  return check_awq(device, parts, slice, name_of(call, expert).c_str());
}

/// The slice of one matrix of `columns` columns, which are gate and up where the options say so.
Slice slice_of(const ExpertsOptions& options, std::int64_t columns) {
  Slice slice = options.slice;
  if (options.gate_up && slice.along == Slice::Along::kColumns && slice.parts.empty())
    slice.parts = {columns / 2, columns / 2};
  return slice;
}
std::int64_t columns_of(const GptqTensors& tensors) { return tensors.qweight.cols; }
std::int64_t columns_of(const AwqTensors& tensors) { return tensors.qweight.cols * 8; }

template <class Tensors>
std::shared_ptr<QuantizedExperts::Impl> make_from(const char* call, const Runtime& runtime, Device device,
                                                  std::span<const Tensors> experts, const ExpertsOptions& options) {
  const auto backend = runtime.impl().open(device);
  return make(call, runtime, backend, static_cast<std::int64_t>(experts.size()), options,
              [&](std::int64_t e, const auto& use) {
                const Tensors& tensors = experts[static_cast<std::size_t>(e)];
                CheckedSource source =
                    check_expert(backend, std::span(&tensors, 1), slice_of(options, columns_of(tensors)), call, e);
                use(source);
              });
}

template <class Tensors>
void update_from(QuantizedExperts::Impl& impl, std::int64_t expert, const Tensors& tensors, Stream stream) {
  constexpr const char* kCall = "QuantizedExperts::update";
  const ExpertsShape& shape = impl.shape();
  check(expert >= 0 && expert < shape.experts, "{}: expert = {} is outside [0, {})", kCall, expert, shape.experts);
  CheckedSource checked = check_expert(impl.device, std::span(&tensors, 1), {}, kCall, expert);
  check_same(kCall, expert, checked.source, shape);
  check(fits(checked.source, shape),
        "{}: expert {} has {} packed rows{}, and the memory of these experts is for {}{}: load them all again", kCall,
        expert, checked.source.packed_k, checked.source.mapped ? " in an order of their own" : "", shape.packed_k,
        shape.mapped ? "" : " in the order of x");
  pack_expert(impl, expert, checked, stream.native);
}

}  // namespace

const QuantizedExperts::Impl& require(const QuantizedExperts& experts, const char* call) {
  check(static_cast<bool>(experts),
        "{}: the experts are empty (default-constructed or moved from); make them with QuantizedExperts::from_gptq, "
        "from_awq, from_stacked or load",
        call);
  return *experts.impl();  // the handle keeps it
}

QuantizedExperts QuantizedExperts::from_gptq(const Runtime& runtime, Device device,
                                             std::span<const GptqTensors> experts, const ExpertsOptions& options) {
  QuantizedExperts result;
  result.impl_ = make_from("QuantizedExperts::from_gptq", runtime, device, experts, options);
  return result;
}

QuantizedExperts QuantizedExperts::from_awq(const Runtime& runtime, Device device, std::span<const AwqTensors> experts,
                                            const ExpertsOptions& options) {
  QuantizedExperts result;
  result.impl_ = make_from("QuantizedExperts::from_awq", runtime, device, experts, options);
  return result;
}

QuantizedExperts QuantizedExperts::from_stacked(const Runtime& runtime, Device device, std::int64_t experts,
                                                const GptqTensors& tensors, const ExpertsOptions& options) {
  constexpr const char* kCall = "QuantizedExperts::from_stacked";
  const StackedTensors stacked(kCall, tensors, experts);
  const auto backend = runtime.impl().open(device);
  QuantizedExperts result;
  result.impl_ = make(kCall, runtime, backend, experts, options, [&](std::int64_t e, const auto& use) {
    const GptqTensors tensors = stacked.expert(e);
    CheckedSource source =
        check_expert(backend, std::span(&tensors, 1), slice_of(options, columns_of(tensors)), kCall, e);
    use(source);
  });
  return result;
}

QuantizedExperts QuantizedExperts::load(const Runtime& runtime, Device device, const Checkpoint& checkpoint,
                                        const ExpertNames& names, const ExpertsOptions& options) {
  constexpr const char* kCall = "QuantizedExperts::load";
  const CheckpointExperts found(kCall, checkpoint, names);
  const auto backend = runtime.impl().open(device);
  ExpertsOptions with = options;
  with.gate_up |= names.patterns.size() == 2;
  QuantizedExperts result;
  result.impl_ = make(kCall, runtime, backend, found.count(), with, [&](std::int64_t e, const auto& use) {
    found.visit(e, [&](auto parts) {
      const Slice slice = parts.size() == 2 ? with.slice : slice_of(with, columns_of(parts[0]));
      CheckedSource source = check_expert(backend, parts, slice, kCall, found.first() + e);
      use(source);
    });
  });
  return result;
}

std::int64_t QuantizedExperts::experts() const { return require(*this, "QuantizedExperts::experts").shape().experts; }
std::int64_t QuantizedExperts::k() const { return require(*this, "QuantizedExperts::k").shape().k; }
std::int64_t QuantizedExperts::n() const { return require(*this, "QuantizedExperts::n").shape().n; }
std::int64_t QuantizedExperts::group_size() const {
  return require(*this, "QuantizedExperts::group_size").shape().group_size;
}
std::int64_t QuantizedExperts::groups() const { return require(*this, "QuantizedExperts::groups").shape().groups; }
bool QuantizedExperts::act_order() const { return require(*this, "QuantizedExperts::act_order").shape().act_order; }
bool QuantizedExperts::has_bias() const { return require(*this, "QuantizedExperts::has_bias").shape().has_bias; }
bool QuantizedExperts::gate_up() const { return require(*this, "QuantizedExperts::gate_up").shape().gate_up; }
bool QuantizedExperts::is_awq() const { return require(*this, "QuantizedExperts::is_awq").shape().awq; }
Device QuantizedExperts::device() const { return require(*this, "QuantizedExperts::device").where(); }
std::size_t QuantizedExperts::bytes() const { return require(*this, "QuantizedExperts::bytes").packed->bytes(); }

void QuantizedExperts::update(std::int64_t expert, const GptqTensors& tensors, Stream stream) {
  require(*this, "QuantizedExperts::update");
  update_from(*impl_, expert, tensors, stream);
}

void QuantizedExperts::update(std::int64_t expert, const AwqTensors& tensors, Stream stream) {
  require(*this, "QuantizedExperts::update");
  update_from(*impl_, expert, tensors, stream);
}

UnpackedMatrix QuantizedExperts::unpack(std::int64_t expert) const {
  constexpr const char* kCall = "QuantizedExperts::unpack";
  const auto& impl = require(*this, kCall);
  const ExpertsShape& shape = impl.shape();
  check(expert >= 0 && expert < shape.experts, "{}: expert = {} is outside [0, {})", kCall, expert, shape.experts);
  UnpackedMatrix to = to_unpacked(impl.packed->unpack(expert), shape, impl.zeros[static_cast<std::size_t>(expert)]);
  // A GPU keeps an order for every expert as soon as one has one; an expert that was given none gives none back.
  bool in_order = true;
  for (std::size_t r = 0; r < to.g_idx.size() && in_order; ++r)
    in_order = to.g_idx[r] == static_cast<std::int64_t>(r) / shape.group_size;
  if (in_order) to.g_idx.clear();
  return to;
}

}  // namespace q4
