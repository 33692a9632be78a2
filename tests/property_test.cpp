// Random products against fp64, and what must hold between two ways to the same one. property.hpp says how to go on for
// longer and how to repeat one problem.
#include "property.hpp"

#include <cmath>
#include <cstring>
#include <deque>
#include <map>
#include <numeric>

#include "epilogue_reference.hpp"
#include "lora_case.hpp"
#include "on_device.hpp"
#include "runtime/backends/cpu/kernels.hpp"

namespace q4::test {
namespace {

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

std::vector<Choice> choices(bool cpu, std::int64_t isas) {
  std::vector<std::int64_t> instruction_sets(static_cast<std::size_t>(isas));
  std::iota(instruction_sets.rbegin(), instruction_sets.rend(), 0);  // the best one first: it is what everybody runs
  const auto only_cpu = [&](std::vector<std::int64_t> values) {
    return cpu ? values : std::vector<std::int64_t>{values[0]};
  };
  return {
      {"k", {8, 16, 24, 32, 64, 72, 128, 136, 200, 256, 264, 384, 520, 640, 1000, 1024, 1152}},
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

std::vector<double> values_of(const HostRows& rows) {
  std::vector<double> values;
  for (std::int64_t r = 0; r < rows.rows(); ++r)
    for (std::int64_t c = 0; c < rows.cols(); ++c) values.push_back(rows.at(r, c));
  return values;
}

double terms_of(const HostRows& x, const PlainMatrix& w) {
  double squares = 0;
  std::vector<double> of_row(static_cast<std::size_t>(w.k));  // of W
  for (std::int64_t r = 0; r < w.k; ++r)
    for (std::int64_t c = 0; c < w.n; ++c) of_row[static_cast<std::size_t>(r)] += w.weight(r, c) * w.weight(r, c);
  for (std::int64_t row = 0; row < x.rows(); ++row)
    for (std::int64_t r = 0; r < w.k; ++r) squares += x.at(row, r) * x.at(row, r) * of_row[static_cast<std::size_t>(r)];
  for (const double value : w.bias) squares += double(x.rows()) * value * value;
  return std::sqrt(squares);
}

bool same_elements(const HostRows& a, const HostRows& b) {
  const std::vector<double> of_a = values_of(a), of_b = values_of(b);
  return of_a.size() == of_b.size() && std::memcmp(of_a.data(), of_b.data(), of_a.size() * sizeof(double)) == 0;
}

/// What the matrix was made of comes back.
std::string check_unpacked(const UnpackedMatrix& u, const Tensors& t) {
  if (u.is_awq != t.is_awq) return "unpack(): another format";
  if (u.qweight != (t.is_awq ? t.awq_source.qweight : t.source.qweight)) return "unpack(): other codes";
  if (u.qzeros != (t.is_awq ? t.awq_source.qzeros : t.source.qzeros)) return "unpack(): other zeros";
  const PlainMatrix again = t.is_awq ? unpack(u.awq()) : unpack(u.gptq());
  if (again.scales != t.plain.scales) return "unpack(): other scales";
  if (again.group != t.plain.group) return "unpack(): other groups";
  if (again.bias != t.plain.bias) return "unpack(): another bias";
  return {};
}

std::string check_relation(const Runner& on, const Product& p, const PlanOptions& options, const Tensors& t,
                           const HostRows& out, const std::vector<double>& exact, double terms) {
  const Runtime& runtime = on.runtime;
  switch (p.relation) {
    case Relation::kNone:
      return {};
    case Relation::kZeroFormat: {
      GptqMatrix other = t.source;
      const bool v1 = p.spec.zeros == ZeroFormat::kV1;
      other.spec.zeros = v1 ? ZeroFormat::kV2 : ZeroFormat::kV1;
      for (std::uint32_t& word : other.qzeros)
        for (int i = 0; i < 32; i += 4) word = (word & ~(15u << i)) | (((word >> i) + (v1 ? 1 : 15)) & 15u) << i;
      const auto matrix = p.tensors(other).load(runtime, on.device, p.matrix_options());
      return same_elements(out, on.run(matrix, options)) ? "" : "zeros in the other format give other bits";
    }
    case Relation::kAwq: {
      Tensors other;
      other.is_awq = true, other.awq_source = to_awq(t.source), other.awq = other.awq_source.tensors();
      other.awq.bias = t.gptq.bias;
      const auto matrix = other.load(runtime, on.device, p.matrix_options());
      return same_elements(out, on.run(matrix, options)) ? "" : "AWQ's packing gives other bits";
    }
    case Relation::kPermuted: {
      std::vector<std::size_t> from(static_cast<std::size_t>(p.spec.k));
      std::iota(from.begin(), from.end(), 0);
      Random random(p.seed + 5);
      for (std::size_t i = from.size(); i > 1; --i)
        std::swap(from[i - 1], from[static_cast<std::size_t>(random.below(static_cast<std::int64_t>(i)))]);
      GptqMatrix other = t.source;
      other.g_idx.resize(from.size());
      std::ranges::fill(other.qweight, 0u);
      HostRows x = on.x;
      const auto n = static_cast<std::size_t>(p.spec.n);
      for (std::size_t r = 0; r < from.size(); ++r) {
        other.g_idx[r] = t.plain.group[from[r]];
        for (std::size_t c = 0; c < n; ++c)
          other.qweight[r / 8 * n + c] |= std::uint32_t{t.plain.codes[from[r] * n + c]} << (4 * (r % 8));
        for (std::int64_t row = 0; row < p.m; ++row)
          x.set(row, static_cast<std::int64_t>(r), on.x.at(row, static_cast<std::int64_t>(from[r])));
      }
      if (p.lora) return {};  // whose A would have to be permuted too
      const auto matrix = p.tensors(other).load(runtime, on.device, p.matrix_options());
      const HostRows permuted = on.run(MatmulPlan(runtime, matrix, options), matrix, x);
      const double excess = on.excess(values_of(permuted), exact, terms);
      return excess <= 1 ? "" : fmt::format("permuted rows are {} of the limit away", excess);
    }
    case Relation::kDoubled: {
      HostRows x = on.x;
      for (std::int64_t r = 0; r < x.rows(); ++r)
        for (std::int64_t c = 0; c < x.cols(); ++c) x.set(r, c, 2 * on.x.at(r, c));
      const auto matrix = t.load(runtime, on.device, p.matrix_options());
      const auto once = values_of(out), twice = values_of(on.run(MatmulPlan(runtime, matrix, options), matrix, x));
      for (std::size_t i = 0; i < once.size(); ++i)
        if (std::fabs(once[i]) > 1e-3 && twice[i] != 2 * once[i])
          return fmt::format("element {}: x gives {}, twice x gives {}", i, once[i], twice[i]);
      return {};
    }
    case Relation::kSliced: {
      const bool rows = p.seed % 2 != 0;
      const std::int64_t extent = rows ? p.spec.k : p.spec.n, part = (extent / 8 + p.world - 1) / p.world * 8;
      std::vector<double> sum(exact.size());
      for (int rank = 0; rank < p.world; ++rank) {
        MatrixOptions matrix_options = p.matrix_options();
        matrix_options.slice = rows ? Slice::rows(rank, p.world) : Slice::columns(rank, p.world);
        matrix_options.slice.pad = true;
        const auto matrix = t.load(runtime, on.device, matrix_options);
        HostRows x = on.x;
        if (rows) x = HostRows(p.plan.activation, p.m, part);
        for (std::int64_t r = 0; r < p.m && rows; ++r)
          for (std::int64_t c = 0; c < part; ++c)
            x.set(r, c, rank * part + c < extent ? on.x.at(r, rank * part + c) : 2.5);
        PlanOptions sliced = options;
        sliced.tactic.clear();
        const HostRows its = on.run(MatmulPlan(runtime, matrix, sliced), matrix, x);
        for (std::int64_t r = 0; r < p.m; ++r)
          for (std::int64_t c = 0; c < its.cols(); ++c) {
            const std::int64_t to = rows ? c : rank * part + c;
            if (to >= p.spec.n && its.at(r, c) != 0) return "a column of padding is not 0";
            if (to < p.spec.n) sum[static_cast<std::size_t>(r * p.spec.n + to)] += its.at(r, c);
          }
      }
      const double excess = on.excess(sum, exact, terms * (rows ? 1000 * autotune::tolerance(p.plan.activation) : 1));
      return excess <= 2 ? "" : fmt::format("ranks together are {} of the limit away", excess);
    }
    case Relation::kInvariant: {
      const std::int64_t count = 1 + static_cast<std::int64_t>(p.seed % static_cast<std::uint64_t>(p.m)),
                         from = p.m - count;
      if (p.residual || p.lora) return {};  // whose rows would have to move too
      HostRows some(p.plan.activation, count, p.spec.k);
      for (std::int64_t r = 0; r < count; ++r)
        for (std::int64_t c = 0; c < p.spec.k; ++c) some.set(r, c, on.x.at(from + r, c));
      PlanOptions fewer = options;
      fewer.max_m = count;
      const auto matrix = t.load(runtime, on.device, p.matrix_options());
      const auto rows = values_of(on.run(MatmulPlan(runtime, matrix, fewer), matrix, some)), all = values_of(out);
      return std::equal(rows.begin(), rows.end(), all.end() - static_cast<std::ptrdiff_t>(rows.size()))
                 ? ""
                 : fmt::format("the last {} rows alone have other bits", count);
    }
    case Relation::kReused: {
      auto backend = runtime.impl().open(on.device);
      std::vector<std::unique_ptr<Buffer>> memory;
      Tensors moved = p.tensors(t.source);
      const auto move = [&](TensorView& view) {
        const std::int64_t stride = view.row_stride < 0 ? view.cols : view.row_stride;
        const std::size_t bytes = static_cast<std::size_t>(view.rows * stride) * size_of(view.dtype);
        memory.push_back(std::make_unique<Buffer>(backend, bytes));
        backend->copy(memory.back()->get(), view.data, bytes, CopyKind::kToDevice);
        view.data = memory.back()->get(), view.device = on.device;
      };
      if (moved.is_awq)
        move(moved.awq.qweight), move(moved.awq.qzeros), move(moved.awq.scales);
      else
        move(moved.gptq.qweight), move(moved.gptq.qzeros), move(moved.gptq.scales);
      MatrixOptions matrix_options = p.matrix_options();
      matrix_options.storage = Storage::kReuse;
      const auto matrix = moved.load(runtime, on.device, matrix_options);
      if (!same_elements(out, on.run(matrix, options))) return "packed in place, the bits are others";
      return check_unpacked(matrix.unpack(), t);
    }
    case Relation::kUpdated: {
      MatrixSpec spec = p.spec;
      spec.seed += 1000;
      GptqMatrix first = make_gptq(spec);
      first.g_idx = t.source.g_idx;
      auto matrix = p.tensors(first).load(runtime, on.device, p.matrix_options());
      t.is_awq ? matrix.update(t.awq) : matrix.update(t.gptq);
      if (!same_elements(out, on.run(matrix, options))) return "updated to these weights, the bits are others";
      return check_unpacked(matrix.unpack(), t);
    }
    case Relation::kWorkspace: {
      const auto matrix = t.load(runtime, on.device, p.matrix_options());
      PlanOptions without = options;
      without.own_workspace = false;
      const HostRows again = on.run(MatmulPlan(runtime, matrix, without), matrix, on.x, false);
      return same_elements(out, again) ? "" : "with a workspace of the caller's the bits are others";
    }
    case Relation::kFused: {
      const std::int64_t first = p.gate_up() ? p.spec.n / 2 : p.spec.n / 16 * 8;
      if (first == 0) return {};
      const auto half = [&](bool second) {
        GptqTensors part = t.gptq;
        const auto cut = [&](TensorView& view, std::int64_t per_word) {
          if (view.row_stride < 0) view.row_stride = view.cols;
          const std::int64_t at = second ? first / per_word : 0;
          view.data = static_cast<const std::byte*>(view.data) + static_cast<std::size_t>(at) * size_of(view.dtype);
          view.cols = (second ? p.spec.n - first : first) / per_word;
        };
        cut(part.qweight, 1), cut(part.qzeros, 8), cut(part.scales, 1);
        if (part.bias) cut(*part.bias, 1), part.bias->row_stride = -1;
        return part;
      };
      const std::vector<GptqTensors> halves = {half(false), half(true)};
      const auto matrix = QuantizedMatrix::fuse_gptq(runtime, on.device, halves, p.matrix_options());
      return same_elements(out, on.run(matrix, options)) ? "" : "fused of two, the bits are others";
    }
  }
  return "no such relation";
}

std::string check_product(const RandomProblem& problem, const Runtime& runtime, Device device) {
  const Product p(problem, device.kind == BackendKind::kCpu);
  const Tensors t = p.tensors(make_gptq(p.spec));
  const Runner on(runtime, device, p);
  const auto matrix = t.load(runtime, device, p.matrix_options());
  if (const std::string text = check_unpacked(matrix.unpack(), t); !text.empty()) return text;
  PlanOptions options = p.plan;
  if (p.tactic) {
    PlanOptions open = options;
    const auto tactics = MatmulPlan(runtime, matrix, open).tactics(p.m);
    options.tactic = tactics[static_cast<std::size_t>(p.tactic) % tactics.size()];
    options.reconstruct_from = 0;
  }
  const MatmulPlan plan(runtime, matrix, options);
  const HostRows out = on.run(plan, matrix, on.x);
  auto sums = product(on.x, t.plain);
  on.adapters.add(sums, on.x, on.rows);
  const auto exact = finished(sums, p.m, p.spec.n, p.plan.epilogue.activation, p.residual ? &on.residual : nullptr);
  const double terms = terms_of(on.x, t.plain), excess = on.excess(values_of(out), exact, terms);
  if (!(excess <= (device.kind == BackendKind::kCpu ? 1 : 1.5)))
    return fmt::format("{} is {} of the limit away from fp64", plan.tactic(p.m), excess);
  if (!out.padding_intact()) return "what is between the rows of out was written";
  if (!same_elements(out, on.run(plan, matrix, on.x))) return "a second run gives other bits";
  return check_relation(on, p, options, t, out, exact, terms);
}

/// The instruction sets that run here.
std::vector<std::string> instruction_sets() {
  std::vector<std::string> here;
  for (const std::string name : cpu::kernel_names()) try {
      if (cpu::select_kernels(name.c_str()).isa == name) here.push_back(name);
    } catch (const Error&) {}
  return here;
}

TEST_CASE("property: random products on the CPU agree with fp64 and with each other") {
  const auto isas = instruction_sets();
  std::map<std::pair<std::int64_t, std::int64_t>, Runtime> runtimes;
  const auto lists = choices(true, static_cast<std::int64_t>(isas.size()));
  check_problems(lists, 1500, [&](const RandomProblem& problem) {
    const auto key = std::pair(problem["isa"], problem["threads"]);
    if (!runtimes.count(key))
      runtimes.emplace(key, Runtime({.cache_mode = CacheMode::kOff,
                                     .cpu_threads = static_cast<int>(key.second),
                                     .cpu_isa = isas[static_cast<std::size_t>(key.first)],
                                     .log = [](LogLevel, const std::string&) {}}));
    return check_product(problem, runtimes.at(key), {});
  });
}

TEST_CASE("property: random products on a GPU agree with fp64 and with each other") {
  for (const auto& info : ready_devices()) {
    if (info.device.kind == BackendKind::kCpu) continue;
    INFO(info.device.str());
    check_problems(choices(false, 1), 20,
                   [&](const RandomProblem& problem) { return check_product(problem, shared_runtime(), info.device); });
  }
}

}  // namespace
}  // namespace q4::test
