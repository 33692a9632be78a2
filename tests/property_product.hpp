// One random product: its choices, its tensors, how it is run on a device, and how far a result may be from fp64.
#pragma once

#include <cmath>
#include <cstring>
#include <deque>
#include <memory>
#include <numeric>

#include "epilogue_reference.hpp"
#include "lora_case.hpp"
#include "on_device.hpp"
#include "property.hpp"

namespace q4::test::property {

enum class Relation {
  kNone,
  kZeroFormat,  ///< v1 and v2 zeros: the same bits
  kAwq,         ///< AWQ's packing of the same matrix: the same bits
  kPermuted,    ///< rows of W and columns of x in another order, with a g_idx: the same numbers
  kDoubled,     ///< twice x: twice the result, exactly
  kSliced,      ///< ranks together are the whole
  kInvariant,   ///< batch-invariant plans: a row's bits do not depend on the batch
  kReused,      ///< packed over the tensors' memory: the same bits
  kUpdated,     ///< other weights in the same memory: the bits of a matrix made of them
  kWorkspace,   ///< a workspace of the caller's: the same bits
  kFused,       ///< loaded as two matrices side by side: the same bits
};

inline std::vector<Choice> choices(bool cpu, std::int64_t isas) {
  std::vector<std::int64_t> instruction_sets(static_cast<std::size_t>(isas));
  std::iota(instruction_sets.rbegin(), instruction_sets.rend(), 0);  // the best one first: it is what everybody runs
  const auto only_cpu = [&](std::vector<std::int64_t> values) {
    return cpu ? values : std::vector<std::int64_t>{values[0]};
  };
  return {
      {"k", {8, 16, 24, 32, 64, 72, 128, 136, 200, 256, 264, 384, 520, 640, 1000, 1024, 1152, 2304}},
      {"n", {8, 16, 24, 32, 40, 64, 72, 128, 136, 192, 200, 272}},
      {"group", {-1, 128, 64, 32, 16, 8, 24, 40, 256}},
      {"order", {0, 1, 2, 3}},
      {"zeros", {int(ZeroFormat::kV1), int(ZeroFormat::kV2)}},
      {"symmetric", {1, 0}},
      {"bias", {-1, int(DType::kF16), int(DType::kBF16), int(DType::kF32)}},
      {"scales", {int(DType::kF16), int(DType::kBF16), int(DType::kF32)}},
      {"g_idx", {int(DType::kI32), int(DType::kI64)}},
      {"tensor_pad", {0, 8, 3}},
      {"awq", {0, 1}},
      {"type", only_cpu({int(DType::kF16), int(DType::kBF16), int(DType::kF32)})},
      {"m", {1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 16, 17, 24, 31, 33, 48, 65, 100, 130}},
      {"spare", {0, 1, 7, 64}},
      {"x_pad", {0, 8, 24}},
      {"out_pad", {0, 8, 24}},
      {"math", cpu ? std::vector<std::int64_t>{0, 0, 0, int(Math::kHalf2), int(Math::kFp32), int(Math::kInt8)}
                   : std::vector<std::int64_t>{0, int(Math::kHalf2), int(Math::kFp32)}},
      {"reconstruct_from", {0, 0, -1, 1, 9}},
      {"tactic", {0, 0, 1, 2, 3, 5, 8, 13}},
      {"activation", {0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8}},
      {"residual", {0, 0, 1, 2}},
      {"lora", {0, 0, 0, 1, 8, 33, 64}},
      {"relation", {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10}},
      {"world", {2, 3, 4}},
      {"threads", only_cpu({1, 2, 3})},
      {"isa", instruction_sets},
  };
}

/// The tensors of one matrix, in the types and with the row strides of the problem.
struct Tensors {
  std::deque<std::vector<std::byte>> memory;
  GptqMatrix source;
  AwqMatrix awq_source;
  GptqTensors gptq;
  AwqTensors awq;
  PlainMatrix plain;
  bool is_awq = false;

  TensorView in_type(const TensorView& from, DType type) {
    auto& to = memory.emplace_back(static_cast<std::size_t>(from.rows * from.cols) * size_of(type));
    for (std::int64_t i = 0; i < from.rows * from.cols; ++i) {
      std::byte* const at = to.data() + static_cast<std::size_t>(i) * size_of(type);
      const auto put = [&](auto value) { std::memcpy(at, &value, sizeof value); };
      if (from.dtype == DType::kI32) {
        const std::int32_t value = static_cast<const std::int32_t*>(from.data)[i];
        type == DType::kI64 ? put(std::int64_t{value}) : put(value);
        continue;
      }
      const double value = half_value(static_cast<const std::uint16_t*>(from.data)[i]);
      if (type == DType::kF32) put(static_cast<float>(value * (1 + 1e-4 * double(i % 3))));
      if (type == DType::kBF16) put(bf16_bits(value));
      if (type == DType::kF16) put(half_bits(value));
    }
    return {to.data(), type, from.rows, from.cols};
  }
  void pad(TensorView& view, std::int64_t by) {
    if (by == 0) return;
    const std::size_t row = static_cast<std::size_t>(view.cols) * size_of(view.dtype);
    const std::size_t stride = static_cast<std::size_t>(view.cols + by) * size_of(view.dtype);
    auto& to = memory.emplace_back(static_cast<std::size_t>(view.rows) * stride, std::byte{0x55});
    for (std::size_t r = 0; r < static_cast<std::size_t>(view.rows); ++r)
      std::memcpy(to.data() + r * stride, static_cast<const std::byte*>(view.data) + r * row, row);
    view.data = to.data(), view.row_stride = view.cols + by;
  }

  QuantizedMatrix load(const Runtime& runtime, Device device, const MatrixOptions& options) const {
    return is_awq ? QuantizedMatrix::from_awq(runtime, device, awq, options)
                  : QuantizedMatrix::from_gptq(runtime, device, gptq, options);
  }
};

/// What the problem comes to: choices that exclude each other are settled here.
struct Product {
  Relation relation;
  MatrixSpec spec;
  DType scales, bias, g_idx;
  std::int64_t tensor_pad, m;
  bool awq;
  PlanOptions plan;
  std::int64_t x_pad, out_pad;
  int residual, lora, world, tactic;
  std::uint64_t seed;

  bool gate_up() const { return multiplies(plan.epilogue.activation); }
  MatrixOptions matrix_options() const { return {.gate_up = gate_up()}; }

  explicit Product(const RandomProblem& p, bool cpu) : seed(p.seed) {
    relation = static_cast<Relation>(p["relation"]);
    spec = {.k = p["k"], .n = p["n"], .group_size = p["group"]};
    spec.act_order = static_cast<ActOrder>(p["order"]);
    spec.zeros = static_cast<ZeroFormat>(p["zeros"]);
    spec.stored_zeros = p["symmetric"] ? StoredZeros::kSymmetric : StoredZeros::kRandom;
    spec.bias = p["bias"] >= 0;
    spec.scale = 0.25 / std::sqrt(double(spec.k));  // sums of about 1
    spec.seed = p.seed;
    scales = static_cast<DType>(p["scales"]), g_idx = static_cast<DType>(p["g_idx"]);
    bias = static_cast<DType>(std::max<std::int64_t>(p["bias"], 0));
    tensor_pad = p["tensor_pad"], m = p["m"], awq = p["awq"] != 0;
    plan.max_m = m + p["spare"], plan.activation = static_cast<DType>(p["type"]);
    plan.math = static_cast<Math>(p["math"]), plan.reconstruct_from = p["reconstruct_from"];
    plan.epilogue.activation = static_cast<Activation>(p["activation"]);
    x_pad = p["x_pad"], out_pad = p["out_pad"];
    residual = static_cast<int>(p["residual"]), lora = static_cast<int>(p["lora"]);
    world = static_cast<int>(p["world"]), tactic = static_cast<int>(p["tactic"]);

    if (spec.group_size > spec.k) spec.group_size = -1;
    if (relation == Relation::kAwq) awq = false;
    if (awq || relation == Relation::kAwq) spec.act_order = ActOrder::kNone, scales = DType::kF16;
    if (awq && (relation == Relation::kZeroFormat || relation == Relation::kPermuted || relation == Relation::kFused))
      relation = Relation::kNone;
    if (relation == Relation::kDoubled || relation == Relation::kSliced) {
      plan.epilogue.activation = Activation::kNone, residual = lora = 0;
      if (relation == Relation::kDoubled) spec.bias = false;
      if (relation == Relation::kDoubled && !cpu) relation = Relation::kNone;  // products may be fp16 there
    }
    if (gate_up() && spec.n % 16 != 0) spec.n += 8;
    if (relation == Relation::kInvariant) plan.batch_invariant = true, plan.reconstruct_from = 0, tactic = 0;
    if (plan.math == Math::kInt8) plan.reconstruct_from = std::min<std::int64_t>(plan.reconstruct_from, 0), tactic = 0;
    plan.epilogue.residual = residual != 0, plan.epilogue.lora = lora != 0;
    if (!cpu && !(plan.epilogue == Epilogue{}))
      plan.reconstruct_from = std::min<std::int64_t>(plan.reconstruct_from, 0);
    if (lora) plan.lora_rank = lora;
  }

  Tensors tensors(const GptqMatrix& source) const {
    Tensors t;
    t.source = source, t.is_awq = awq;
    if (awq) {
      t.awq_source = to_awq(source), t.awq = t.awq_source.tensors();
      if (t.awq.bias) t.awq.bias = t.in_type(*t.awq.bias, bias);
      t.plain = unpack(t.awq);
      for (TensorView* view : {&t.awq.qweight, &t.awq.qzeros, &t.awq.scales}) t.pad(*view, tensor_pad);
    } else {
      t.gptq = t.source.tensors();
      t.gptq.scales = t.in_type(t.gptq.scales, scales);
      if (t.gptq.bias) t.gptq.bias = t.in_type(*t.gptq.bias, bias);
      t.plain = unpack(t.gptq);
      if (t.gptq.g_idx) t.gptq.g_idx = t.in_type(*t.gptq.g_idx, g_idx);
      for (TensorView* view : {&t.gptq.qweight, &t.gptq.qzeros, &t.gptq.scales}) t.pad(*view, tensor_pad);
    }
    return t;
  }
};

/// Runs plans of the problem on a device.
struct Runner {
  const Runtime& runtime;
  Device device;
  const Product& p;
  LoraCase adapters;
  HostRows x, residual;
  std::vector<std::int32_t> rows;

  Runner(const Runtime& runtime, Device device, const Product& p)
      : runtime(runtime),
        device(device),
        p(p),
        adapters(p.spec.k, p.spec.n, p.plan.activation, p.lora ? std::vector<int>{p.lora, 1} : std::vector<int>{},
                 p.seed),
        x(random_rows(p.plan.activation, p.m, p.spec.k, p.seed + 1, p.spec.k + p.x_pad)),
        residual(random_rows(p.plan.activation, p.m, outs(), p.seed + 2, outs() + (p.residual == 2 ? p.out_pad : 8))),
        rows(adapters.rows(p.m)) {}
  std::int64_t outs() const { return p.gate_up() ? p.spec.n / 2 : p.spec.n; }

  HostRows run(const MatmulPlan& plan, const QuantizedMatrix& matrix, const HostRows& x,
               bool own_workspace = true) const {
    auto backend = runtime.impl().open(device);
    HostRows out(p.plan.activation, x.rows(), plan.out_columns(), plan.out_columns() + p.out_pad);
    if (p.residual == 2)
      for (std::int64_t r = 0; r < x.rows(); ++r)
        for (std::int64_t c = 0; c < out.cols(); ++c) out.set(r, c, residual.at(r, c));
    const auto up = [&](const void* data, std::size_t bytes) {
      auto buffer = std::make_unique<Buffer>(backend, bytes + 16);
      if (bytes) backend->copy(buffer->get(), data, bytes, CopyKind::kToDevice);
      return buffer;
    };
    const auto on_x = up(x.data(), x.bytes()), on_out = up(out.data(), out.bytes());
    const auto on_residual = up(residual.data(), residual.bytes()), on_rows = up(rows.data(), rows.size() * 4);
    const Buffer workspace(backend, plan.workspace_bytes() + 256);
    backend->fill(workspace.get(), 0, plan.workspace_bytes() + 256);
    RunInputs inputs;
    if (p.residual == 1) inputs.residual = {on_residual->get(), residual.row_stride()};
    if (p.residual == 2) inputs.residual = {on_out->get(), out.row_stride()};
    if (!own_workspace) inputs.workspace = workspace.get();
    LoraAdapters table;
    if (p.lora) {
      table = LoraAdapters(runtime, matrix, {.adapters = 2, .max_rank = p.lora, .type = p.plan.activation});
      for (std::size_t i = 0; i < 2; ++i) {
        const auto view = [](const HostRows& t) { return TensorView{t.data(), t.dtype(), t.rows(), t.cols()}; };
        table.set(static_cast<std::int64_t>(i), {view(adapters.a[i]), view(adapters.b[i]), adapters.scales[i]});
      }
      inputs.adapters = &table, inputs.adapter_of_row = static_cast<const std::int32_t*>(on_rows->get());
    }
    plan.run({}, {on_x->get(), x.row_stride()}, {on_out->get(), out.row_stride()}, x.rows(), inputs);
    backend->synchronize();
    backend->copy(out.data(), on_out->get(), out.bytes(), CopyKind::kToHost);
    return out;
  }
  HostRows run(const QuantizedMatrix& matrix, const PlanOptions& options) const {
    return run(MatmulPlan(runtime, matrix, options), matrix, x);
  }

  /// How far `out` is from `exact`, as a multiple of what is allowed: the rounding of out, and that of sums whose terms
  /// are as large as `terms` (root of the sum of squares) says, even where they cancel.
  double excess(const std::vector<double>& out, const std::vector<double>& exact, double terms) const {
    const double limit = autotune::tolerance(p.plan.activation, p.plan.math);
    const bool cpu = device.kind == BackendKind::kCpu, plain = p.plan.epilogue == Epilogue{};
    double far = 0, norm = 0;
    for (std::size_t i = 0; i < exact.size(); ++i) {
      if (std::isnan(out[i])) return INFINITY;
      far += (out[i] - exact[i]) * (out[i] - exact[i]), norm += exact[i] * exact[i];
    }
    const double of_sums = p.plan.math == Math::kInt8 ? 2 * limit : !cpu ? limit : 1e-6;
    return std::sqrt(far) / (limit * std::sqrt(norm) + of_sums * (plain ? 1 : 8) * terms);
  }
};

inline std::vector<double> values_of(const HostRows& rows) {
  std::vector<double> values;
  for (std::int64_t r = 0; r < rows.rows(); ++r)
    for (std::int64_t c = 0; c < rows.cols(); ++c) values.push_back(rows.at(r, c));
  return values;
}

inline double terms_of(const HostRows& x, const PlainMatrix& w) {
  double squares = 0;
  std::vector<double> of_row(static_cast<std::size_t>(w.k));  // of W
  for (std::int64_t r = 0; r < w.k; ++r)
    for (std::int64_t c = 0; c < w.n; ++c) of_row[static_cast<std::size_t>(r)] += w.weight(r, c) * w.weight(r, c);
  for (std::int64_t row = 0; row < x.rows(); ++row)
    for (std::int64_t r = 0; r < w.k; ++r) squares += x.at(row, r) * x.at(row, r) * of_row[static_cast<std::size_t>(r)];
  for (const double value : w.bias) squares += double(x.rows()) * value * value;
  return std::sqrt(squares);
}

inline bool same_elements(const HostRows& a, const HostRows& b) {
  const std::vector<double> of_a = values_of(a), of_b = values_of(b);
  return of_a.size() == of_b.size() && std::memcmp(of_a.data(), of_b.data(), of_a.size() * sizeof(double)) == 0;
}

}  // namespace q4::test::property
