// Random products against fp64, and what must hold between two ways to the same one. property.hpp says how to go on for
// longer and how to repeat one problem.
#include "property_product.hpp"

#include <map>

#include "runtime/backends/cpu/kernels.hpp"

namespace q4::test::property {
namespace {

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
      PlanOptions permutes = options;
      if (on.device.kind != BackendKind::kCpu)
        permutes.tactic.clear();  // a matrix with an order has tactics of its own
      const HostRows permuted = on.run(MatmulPlan(runtime, matrix, permutes), matrix, x);
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
  if (p.tactic) {  // a plan has it for all its rows, up to max_m
    const auto tactics = MatmulPlan(runtime, matrix, options).tactics(options.max_m);
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
}  // namespace q4::test::property
