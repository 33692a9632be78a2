// Divides the values of m into ranges and chooses a tactic for each: the forced, the tuned or the default one.
#include "runtime/choose/choose.hpp"

#include <algorithm>

#include "runtime/base/check.hpp"
#include "runtime/choose/defaults/reconstruct.hpp"
#include "runtime/choose/sources.hpp"

namespace q4::choose {
namespace {

std::size_t align(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

/// The largest m of each range: powers of two, and wherever the options or the record change something.
std::vector<std::int64_t> range_ends(const PlanOptions& options, const TuningRecord* tuned) {
  std::vector<std::int64_t> ends = {options.max_m};
  if (!options.tactic.empty()) return ends;  // it need not serve every m, and is only checked at max_m
  for (std::int64_t m = 1; m < options.max_m; m *= 2) ends.push_back(m);
  if (tuned)
    for (const auto& bucket : tuned->buckets) ends.push_back(bucket.m / 2), ends.push_back(bucket.m);
  for (const auto first : {options.reconstruct_from, tuned ? tuned->reconstruct_from : 0}) ends.push_back(first - 1);
  std::sort(ends.begin(), ends.end());
  ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
  std::erase_if(ends, [&](std::int64_t m) { return m < options.min_m || m > options.max_m; });
  return ends;
}

Tactic forced_tactic(const MatrixShape& matrix, const PlanOptions& options, std::int64_t m, const Gpu& gpu) {
  const auto parsed = Tactic::parse(options.tactic);
  if (!parsed) fail(ErrorCode::kInvalidArgument, "{}", parsed.reason());
  Tactic tactic = *parsed;
  if (tactic.kernel && is_plain(tactic.epilogue)) tactic.epilogue = options.epilogue;
  check(tactic.epilogue == options.epilogue,
        "MatmulPlan: tactic '{}' does not have the plan's epilogue '{}': leave the epilogue out of the tactic; "
        "reconstruct+blas has none",
        options.tactic, to_text(options.epilogue));
  check(usable(tactic, matrix, options.activation == DType::kBF16, m, gpu.limits),
        "MatmulPlan: tactic '{}' cannot run m = {} of k = {}, n = {}, group {}{} on {}; MatmulPlan::tactics(m) lists "
        "those that can",
        options.tactic, m, matrix.k, matrix.n, matrix.group_size, matrix.act_order ? ", act-order" : "", gpu.arch);
  return tactic;
}

Tactic tactic_at(const MatrixShape& matrix, const PlanOptions& options, std::int64_t m, const Gpu& gpu,
                 const TuningRecord* tuned) {
  if (!options.tactic.empty()) return forced_tactic(matrix, options, m, gpu);
  const auto from = options.reconstruct_from;
  if (from > 0 && m >= from) return {};
  const bool free_choice = !options.batch_invariant && options.math == Math::kAuto && options.gather == Gather::kAuto;
  if (tuned && free_choice) {
    const bool plain = is_plain(options.epilogue);
    if (from == 0 && plain && tuned->reconstruct_from > 0 && m >= tuned->reconstruct_from) return {};
    if (const auto* bucket = tuned->bucket(m)) {
      if (const auto parsed =
              Tactic::parse(bucket->tactic)) {  // if not: unknown_tactics() says why; the default serves
        Tactic tactic = *parsed;
        if (tactic.kernel) tactic.epilogue = options.epilogue;  // measured with it, or without
        if ((tactic.kernel || (from == 0 && plain)) &&
            usable(tactic, matrix, options.activation == DType::kBF16, m, gpu.limits))
          return tactic;
      }
    }
  }
  return default_tactic(matrix, options, m, gpu.limits, from != 0);
}

Choice make_choice(const MatrixShape& matrix, const PlanOptions& options, std::int64_t m, const Gpu& gpu,
                   const Tactic& tactic) {
  const bool bf16 = options.activation == DType::kBF16;
  Choice choice;
  choice.up_to = m, choice.tactic = tactic, choice.bf16 = bf16;
  choice.kernel = tactic.kernel ? bind(tactic, matrix, bf16, m, gpu.limits)
                                : bind_reconstruct(make_problem(matrix, bf16, tactic), gpu.limits);
  if (!choice.kernel) fail(ErrorCode::kInternal, "tactic '{}' does not run at m = {}", tactic.str(), m);
  choice.shape.threads = choice.kernel->threads(), choice.shape.shared_bytes = choice.kernel->shared_bytes();
  choice.shape.cluster = choice.kernel->cluster();
  if (choice.blas()) return choice;
  // After our own remap or shrink it always pays: that kernel began when the stream's earlier work had ended.
  choice.shape.overlap_previous = tactic.kernel->overlaps && gpu.limits.arch >= 90 &&
                                  (options.overlap_previous || tactic.remap || tactic.epilogue.lora);
  choice.workspace_bytes = choice.kernel->workspace_bytes(m);
  return choice;
}

}  // namespace

std::vector<Choice> choose(const MatrixShape& matrix, const PlanOptions& options, const Gpu& whole,
                           const TuningRecord* tuned) {
  Gpu gpu = whole;
  if (options.spare_units > 0) gpu.limits.units = std::max(1, gpu.limits.units - options.spare_units), tuned = nullptr;
  check(options.activation != DType::kF32, "MatmulPlan: activation fp32 is for the CPU; on {} use fp16 or bf16",
        gpu.device);
  std::vector<Choice> choices;
  for (const auto m : range_ends(options, tuned)) {
    Choice choice = make_choice(matrix, options, m, gpu, tactic_at(matrix, options, m, gpu, tuned));
    // The BLAS chooses its algorithm for the m at the end of a range: those ranges stay apart.
    const bool joins = !choices.empty() && !choice.blas() && choices.back().tactic == choice.tactic;
    if (!joins) {
      choices.push_back(std::move(choice));
      continue;
    }
    choices.back().up_to = m;
    choices.back().workspace_bytes = std::max(choices.back().workspace_bytes, choice.workspace_bytes);
  }
  return choices;
}

WorkspaceLayout layout(const MatrixShape& matrix, std::int64_t max_m, const std::vector<Choice>& choices, bool more) {
  std::size_t kernels = 0, x = 0, w = 0;
  WorkspaceLayout places;
  for (const Choice& choice : choices) {
    kernels = std::max(kernels, static_cast<std::size_t>(choice.workspace_bytes));
    if (choice.tactic.remap || (choice.blas() && matrix.norm))
      x = static_cast<std::size_t>(max_m * matrix.packed_k * 2);
    if (!choice.blas()) continue;
    places.slice_columns = slice_columns(matrix.k, matrix.n);
    w = static_cast<std::size_t>(places.slice_columns * matrix.k * 2);
  }
  // Nothing else is ever written over the kernels' counters: plans may share a workspace.
  if (x || w || more) kernels = std::max<std::size_t>(kernels, kCounterBytes);
  places.x = align(kernels);
  places.w = places.x + align(x);
  places.blas = places.w + align(w);
  return places;
}

std::vector<std::string> unknown_tactics(const TuningRecord& record) {
  std::vector<std::string> reasons;
  for (const auto& bucket : record.buckets)
    for (const std::string& text : product_texts(bucket.tactic))
      if (const auto tactic = Tactic::parse(text); !tactic)
        reasons.push_back(fmt::format("m = {}: '{}': {}", bucket.m, bucket.tactic, tactic.reason()));
  return reasons;
}

}  // namespace q4::choose
