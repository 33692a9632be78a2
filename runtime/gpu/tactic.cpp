// Chooses and names tactics.
#include "runtime/gpu/tactic.hpp"

#include <algorithm>

#include "runtime/base/check.hpp"

namespace q4::gpu {
namespace {

constexpr const char* kReconstruct = "reconstruct+blas";
constexpr const char* kRemap = "remap+";
/// First m at which an untuned plan reconstructs W for the BLAS where gemv alone serves.
constexpr std::int64_t kReconstructFrom = 33;
/// The same where the batch kernel serves, estimated (kernels/README.md): mma.sync is what the BLAS has too on sm_80 to
/// 89 and sm_120, but a third of its rate on sm_100.
std::int64_t reconstruct_from(const Limits& limits) {
  if (limits.arch < 80 || limits.arch == 90) return INT64_MAX;
  return limits.arch >= 100 && limits.arch < 120 ? 257 : 2049;
}

bool mapped(const Matrix& matrix) { return matrix.x_map.get() != nullptr; }
/// Dense rows of x then begin anywhere in a 128-byte line of the cache.
bool straddles(const Matrix& matrix) { return matrix.k % 64 != 0; }

void force_math(Tactic& tactic, Math math) {
  for (auto& [name, value] : tactic.values)
    if (name == "half2" && math != Math::kAuto) value = math == Math::kHalf2;
}

}  // namespace

std::string Tactic::str() const {
  if (!kernel) return kReconstruct;
  return std::string(remap ? kRemap : "") + kernel->name + " " + jit::to_text(values);
}

Tactic Tactic::parse(const std::string& text) {
  Tactic tactic;
  if (text == kReconstruct) return tactic;
  std::string rest = text;
  if (rest.starts_with(kRemap)) tactic.remap = true, rest.erase(0, std::string(kRemap).size());
  const auto end = std::min(rest.find(' '), rest.size());
  tactic.kernel = jit::find_matmul_kernel(rest.substr(0, end));
  if (!tactic.kernel) {
    std::string names = kReconstruct;
    for (const auto& kernel : jit::matmul_kernels()) names += std::string(", ") + kernel.name;
    fail(ErrorCode::kInvalidArgument, "tactic: '{}' names no kernel; there are: {}", text, names);
  }
  tactic.values = jit::parse_values(*tactic.kernel, std::string_view(rest).substr(end));
  return tactic;
}

Problem make_problem(const Matrix& matrix, bool bf16, const Tactic& tactic) {
  Problem p;
  p.k = static_cast<int>(matrix.packed_k), p.n = static_cast<int>(matrix.n), p.unit = static_cast<int>(matrix.unit);
  p.x_k = static_cast<int>(tactic.remap ? matrix.packed_k : matrix.k);
  p.gather = mapped(matrix) && !tactic.remap;
  p.bf16 = bf16, p.bias = !matrix.bias.empty();
  return p;
}

bool usable(const Tactic& tactic, const Matrix& matrix, bool bf16, std::int64_t m, const Limits& limits) {
  if (!tactic.kernel) return true;
  if (tactic.remap && !mapped(matrix) && !straddles(matrix)) return false;
  const Problem problem = make_problem(matrix, bf16, tactic);
  return tactic.kernel->valid(problem, tactic.values, limits) && tactic.kernel->serves(problem, tactic.values, m);
}

Tactic default_tactic(const Matrix& matrix, const PlanOptions& options, std::int64_t m, const Limits& limits,
                      bool direct) {
  const bool bf16 = options.activation == DType::kBF16, invariant = options.batch_invariant;
  const bool may_reconstruct = !direct && !invariant && options.math == Math::kAuto;
  Tactic tactic;
  if (may_reconstruct && m >= reconstruct_from(limits)) return tactic;
  // The table is in order of preference, gemv last: it alone has the math variants, and serves everywhere. A kernel
  // that cannot gather gets its x permuted first, one that minds straddled lines gets it copied.
  for (const auto& kernel : jit::matmul_kernels()) {
    tactic.kernel = &kernel;
    const bool last = &kernel == &jit::matmul_kernels().back();
    if (last && may_reconstruct && m >= kReconstructFrom) return {};
    if (!last && options.math != Math::kAuto) continue;
    tactic.remap = false;
    const bool gathers =
        options.gather == Gather::kFused || (options.gather == Gather::kAuto && !invariant &&
                                             kernel.gathers(make_problem(matrix, bf16, tactic), m, limits));
    const bool first =
        mapped(matrix) ? !gathers : straddles(matrix) && kernel.copies(make_problem(matrix, bf16, tactic), m);
    for (const bool remap : {first, mapped(matrix)}) {
      tactic.remap = remap;
      const Problem problem = make_problem(matrix, bf16, tactic);
      const auto values = invariant ? kernel.invariant(problem, limits) : kernel.defaults(problem, m, limits);
      if (!values) continue;
      tactic.values = *values;
      if (!invariant) force_math(tactic, options.math);
      if (!kernel.valid(problem, tactic.values, limits)) tactic.values = *values;  // bf16 has no half2 products
      return tactic;
    }
  }
  fail(ErrorCode::kInternal, "no kernel serves k = {}, n = {}, unit {} at m = {}", matrix.k, matrix.n, matrix.unit, m);
}

std::vector<Tactic> all_tactics(const Matrix& matrix, const PlanOptions& options, std::int64_t m,
                                const Limits& limits) {
  std::vector<Tactic> all = {default_tactic(matrix, options, m, limits, false)};
  if (options.batch_invariant) return all;
  const bool bf16 = options.activation == DType::kBF16;
  for (const auto& kernel : jit::matmul_kernels())
    for (const bool remap : {false, true}) {
      if (remap && (mapped(matrix) ? options.gather == Gather::kFused : !straddles(matrix) || !kernel.tensor_maps))
        continue;
      if (!remap && mapped(matrix) && options.gather == Gather::kSeparate) continue;
      Tactic tactic{remap, &kernel, {}};
      for (auto& values : kernel.space(make_problem(matrix, bf16, tactic), m, limits)) {
        tactic.values = std::move(values);
        force_math(tactic, options.math);
        if (usable(tactic, matrix, bf16, m, limits) && std::find(all.begin(), all.end(), tactic) == all.end())
          all.push_back(tactic);
      }
    }
  if (options.reconstruct_from != 0 && all.front().kernel) all.emplace_back();
  return all;
}

}  // namespace q4::gpu
