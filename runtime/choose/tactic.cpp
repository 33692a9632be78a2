// Chooses and names tactics.
#include "runtime/choose/tactic.hpp"

#include <algorithm>

#include "runtime/base/check.hpp"
#include "runtime/choose/defaults/reconstruct.hpp"

namespace q4::choose {
namespace {

constexpr const char* kReconstruct = "reconstruct+blas";
constexpr const char* kRemap = "remap+";
/// Dense rows of x then begin anywhere in a 128-byte line of the cache.
bool straddles(const MatrixShape& matrix) { return matrix.k % 64 != 0; }

void force_math(Tactic& tactic, Math math) {
  for (auto& [name, value] : tactic.values)
    if (name == "half2" && math != Math::kAuto) value = math == Math::kHalf2;
}

}  // namespace

std::string Tactic::str() const {
  if (!kernel) return kReconstruct;
  const std::string after = to_text(epilogue);
  return std::string(remap ? kRemap : "") + kernel->name + (after.empty() ? "" : "+") + after + " " +
         jit::to_text(values);
}

Result<Tactic> Tactic::parse(const std::string& text) {
  Tactic tactic;
  if (text == kReconstruct) return tactic;
  std::string rest = text;
  if (rest.starts_with(kRemap)) tactic.remap = true, rest.erase(0, std::string(kRemap).size());
  const auto end = std::min(rest.find(' '), rest.size()), name_end = std::min(rest.find('+'), end);
  tactic.kernel = find_matmul_kernel(rest.substr(0, name_end));
  for (auto at = name_end; at < end;) {
    const auto next = std::min(rest.find('+', at + 1), end);
    const auto part = rest.substr(at + 1, next - at - 1);
    if (!add_part(tactic.epilogue, part))
      return Failure{
          fmt::format("tactic: '{}': '{}' is not a part of an epilogue; there are lora, silu, gelu_tanh, gelu, "
                      "relu2, these also with _mul, and residual, in this order",
                      text, part)};
    at = next;
  }
  if (!tactic.kernel) {
    std::string names = kReconstruct;
    for (const Kernel* kernel : matmul_kernels()) names += std::string(", ") + kernel->name;
    return Failure{fmt::format("tactic: '{}' names no kernel; there are: {}", text, names)};
  }
  auto values = parse_values(*tactic.kernel, std::string_view(rest).substr(end));
  if (!values) return Failure{values.reason()};
  tactic.values = *values;
  return tactic;
}

std::vector<std::string> product_texts(const std::string& text) {
  const std::string between = kBetweenProducts;
  std::vector<std::string> texts;
  for (std::size_t begin = 0;;) {
    const std::size_t end = text.find(between, begin);
    texts.push_back(text.substr(begin, end - begin));
    if (end == std::string::npos) return texts;
    begin = end + between.size();
  }
}

Problem make_problem(const MatrixShape& matrix, bool bf16, const Tactic& tactic) {
  Problem p;
  p.k = static_cast<int>(matrix.packed_k), p.n = static_cast<int>(matrix.n), p.unit = static_cast<int>(matrix.unit);
  p.x_k = static_cast<int>(tactic.remap ? matrix.packed_k : matrix.k);
  p.gather = matrix.mapped && !tactic.remap;
  p.bf16 = bf16, p.bias = matrix.has_bias, p.apart = matrix.apart;
  p.activation = kind_of(tactic.epilogue.activation), p.gated = is_gated(tactic.epilogue.activation);
  p.norm = matrix.norm && tactic.kernel && !tactic.remap;  // else x has been normalized
  p.residual = tactic.epilogue.residual, p.lora = tactic.epilogue.lora;
  return p;
}

std::shared_ptr<const BoundKernel> bind(const Tactic& tactic, const MatrixShape& matrix, bool bf16, std::int64_t m,
                                        const Limits& limits) {
  if (!tactic.kernel || (tactic.remap && !matrix.mapped && !matrix.norm && !straddles(matrix))) return nullptr;
  auto bound = tactic.kernel->bind(make_problem(matrix, bf16, tactic), tactic.values, limits);
  return bound && bound->serves(m) ? bound : nullptr;
}

bool usable(const Tactic& tactic, const MatrixShape& matrix, bool bf16, std::int64_t m, const Limits& limits) {
  return !tactic.kernel || bind(tactic, matrix, bf16, m, limits) != nullptr;
}

Tactic default_tactic(const MatrixShape& matrix, const PlanOptions& options, std::int64_t m, const Limits& limits,
                      bool direct) {
  const bool bf16 = options.activation == DType::kBF16, invariant = options.batch_invariant;
  const bool may_reconstruct = !direct && !invariant && options.math == Math::kAuto && is_plain(options.epilogue);
  Tactic tactic;
  if (may_reconstruct && m >= reconstruct_from(limits)) return tactic;
  tactic.epilogue = options.epilogue;
  // The table is in order of preference, gemv last: it alone has the math variants, and serves everywhere. A kernel
  // that cannot gather gets its x permuted first, one that minds straddled lines gets it copied.
  for (const Kernel* kernel : matmul_kernels()) {
    tactic.kernel = kernel;
    const bool last = kernel == matmul_kernels().back();
    if (last && may_reconstruct && m >= kReconstructFrom) return {};
    if (!last && options.math != Math::kAuto) continue;
    tactic.remap = false;
    const bool gathers =
        options.gather == Gather::kFused || (options.gather == Gather::kAuto && !invariant &&
                                             kernel->gathers(make_problem(matrix, bf16, tactic), m, limits));
    const bool first =
        matrix.mapped ? !gathers : straddles(matrix) && kernel->copies(make_problem(matrix, bf16, tactic), m);
    for (const bool remap : {first, matrix.mapped || matrix.norm}) {
      tactic.remap = remap;
      const Problem problem = make_problem(matrix, bf16, tactic);
      const auto values = invariant ? kernel->invariant(problem, limits) : kernel->defaults(problem, m, limits);
      if (!values) continue;
      tactic.values = *values;
      if (!invariant) force_math(tactic, options.math);
      if (!kernel->bind(problem, tactic.values, limits)) tactic.values = *values;  // bf16 has no half2 products
      return tactic;
    }
  }
  fail(ErrorCode::kInternal, "no kernel serves k = {}, n = {}, unit {} at m = {}", matrix.k, matrix.n, matrix.unit, m);
}

std::vector<Tactic> all_tactics(const MatrixShape& matrix, const PlanOptions& options, std::int64_t m,
                                const Limits& limits) {
  std::vector<Tactic> all = {default_tactic(matrix, options, m, limits, false)};
  if (options.batch_invariant) return all;
  const bool bf16 = options.activation == DType::kBF16;
  for (const Kernel* kernel : matmul_kernels())
    for (const bool remap : {false, true}) {
      if (remap && (matrix.mapped ? options.gather == Gather::kFused : !straddles(matrix) || !kernel->tensor_maps))
        continue;
      if (!remap && matrix.mapped && options.gather == Gather::kSeparate) continue;
      Tactic tactic{remap, kernel, {}, options.epilogue};
      for (auto& values : kernel->space(make_problem(matrix, bf16, tactic), m, limits)) {
        tactic.values = std::move(values);
        force_math(tactic, options.math);
        if (usable(tactic, matrix, bf16, m, limits) && std::find(all.begin(), all.end(), tactic) == all.end())
          all.push_back(tactic);
      }
    }
  if (options.reconstruct_from >= 0 && all.front().kernel && is_plain(options.epilogue)) all.emplace_back();
  return all;
}

}  // namespace q4::choose
