// Chooses a kernel for each product of a mixture of experts, and names the others around them.
#include "runtime/choose/moe.hpp"

#include <algorithm>
#include <optional>

#include "kernels/epilogue.h"
#include "runtime/base/check.hpp"
#include "runtime/choose/defaults/grouped.hpp"
#include "runtime/choose/defaults/remap.hpp"
#include "runtime/choose/row.hpp"
#include "runtime/choose/sources.hpp"

namespace q4::choose {
namespace {

template <class Config>
Values values_of(const Config& config) {
  return row_detail::values_of(config);
}

/// Problem::activation of a plan's.
int activation_kind(MoeActivation activation) {
  switch (activation) {
    case MoeActivation::kNone:
      return kNoActivation;
    case MoeActivation::kSiluMul:
      return kSilu;
    case MoeActivation::kGeluMul:
      return kGeluErf;
    case MoeActivation::kGeluTanhMul:
      return kGeluTanh;
    case MoeActivation::kSwigluClamp:
      return kSwigluClamp;
  }
  return kNoActivation;
}

/// The tactic of product `i`, bound; null where it cannot run. `routed`: as a kernel that sorts the slots itself.
std::shared_ptr<const BoundKernel> bind_product(const MoeShape& shape, std::size_t i, const Tactic& tactic,
                                                Problem& problem, const Limits& limits, bool routed = false) {
  const MatrixShape& matrix = shape.products[i];
  if (!tactic.kernel || (matrix.mapped && !tactic.remap) || (i > 0 && tactic.remap && !matrix.mapped)) return nullptr;
  problem = {};
  problem.k = static_cast<int>(matrix.packed_k), problem.n = static_cast<int>(matrix.n);
  problem.unit = static_cast<int>(matrix.unit);
  problem.x_k = static_cast<int>(matrix.mapped ? matrix.packed_k : matrix.k);
  problem.bf16 = shape.bf16, problem.bias = matrix.has_bias;
  problem.grouped = i == 0 && !tactic.remap ? kGroupedIndirect : kGroupedSorted;
  if (routed) problem.grouped |= kGroupedRouted;
  if (matrix.gate_up) {
    problem.gated = 1, problem.activation = activation_kind(shape.activation);
    if (shape.activation == MoeActivation::kSwigluClamp)
      problem.alpha = bit_cast<int>(shape.alpha), problem.limit = bit_cast<int>(shape.limit);
  }
  return tactic.kernel->bind(problem, tactic.values, limits);
}

/// Fills in a product whose tactic is chosen; false where it cannot run.
bool finish(const MoeShape& shape, std::size_t i, GroupedProduct& product, const Limits& limits, bool routed) {
  product.kernel = bind_product(shape, i, product.tactic, product.problem, limits, routed);
  if (!product.kernel) return false;
  product.shape.threads = product.kernel->threads(), product.shape.shared_bytes = product.kernel->shared_bytes();
  product.shape.overlap_previous = limits.arch >= 90;
  return true;
}

/// Tactics of product `i`, the default first.
std::vector<Tactic> product_tactics(const MoeShape& shape, std::size_t i, std::int64_t rows, const Limits& limits) {
  const double active = active_experts(shape.experts, shape.topk, rows);
  const double each = rows_of_expert(shape.experts, shape.topk, rows);
  const bool must_remap = shape.products[i].mapped, first = i == 0;
  std::vector<Tactic> all;
  const auto add = [&](const char* kernel, bool remap, const Values& values) {
    Tactic tactic{.remap = remap || must_remap, .kernel = find_matmul_kernel(kernel), .values = values, .epilogue = {}};
    Problem problem;
    if (bind_product(shape, i, tactic, problem, limits) && std::find(all.begin(), all.end(), tactic) == all.end())
      all.push_back(std::move(tactic));
  };
  // Configs are made for the problem that the tactic would have.
  Problem problem;
  const Tactic any{.remap = first || must_remap, .kernel = find_matmul_kernel("gemv"), .values = {}, .epilogue = {}};
  bind_product(shape, i, any, problem, limits);
  const auto decode = [&](const DecodeConfig& c) { add("decode", false, values_of(c)); };
  const auto prefill = [&](const PrefillConfig& c) { add("prefill", first, values_of(c)); };
  if (shape.batch_invariant) {
    prefill(grouped_invariant(problem));
    add("gemv", first, values_of(GemvConfig{.p = problem, .half2 = 0, .rows = 4, .tiles = 2, .warps = 8}));
    all.resize(1);
    return all;
  }
  const auto decode_default = grouped_decode(problem, active, active_spread(shape.experts, shape.topk, rows), limits);
  const auto prefill_default = grouped_prefill(problem, active, each, limits);
  if (decode_default && (each <= kGroupedDecodeRows || !prefill_default)) decode(*decode_default);
  if (prefill_default) prefill(*prefill_default);
  if (decode_default) decode(*decode_default);
  const auto tile_default = grouped_tile(problem, active, each, limits);
  if (tile_default) add("tile", first, values_of(*tile_default));
  add("gemv", first, values_of(grouped_gemv(problem, each, limits)));
  if (each <= 4 * kGroupedDecodeRows)
    for (const auto& c : grouped_decode_space(problem, limits)) decode(c);
  for (const int tile : {16, 32, 64, 80, 96, 128, 256})
    for (const int strips : {4, 3, 2})
      for (const int fold : {1, 0})
        if (tile < 8 * each + 16) prefill({.p = problem, .rows = tile, .strips = strips, .fold = fold});
  return all;
}

std::vector<Tactic> parse_moe(const MoeShape& shape, const std::string& text, const Limits& limits) {
  const auto texts = product_texts(text);
  std::vector<Tactic> tactics;
  for (std::size_t i = 0; i < shape.products.size(); ++i) {
    const auto tactic = Tactic::parse(i < texts.size() ? texts[i] : "");
    if (!tactic) fail(ErrorCode::kInvalidArgument, "{}", tactic.reason());
    Problem problem;
    check(bind_product(shape, i, *tactic, problem, limits) != nullptr,
          "MoePlan: tactic '{}' cannot run product {} of {}; tactics(rows) lists those that can", texts[i], i + 1,
          shape.products.size());
    tactics.push_back(*tactic);
  }
  check(texts.size() == shape.products.size(), "MoePlan: tactic '{}' names more than {} products", text,
        shape.products.size());
  return tactics;
}

/// What a record has for so many rows, if it can run; where it cannot, unknown_tactics() says why, and the default serves.
std::optional<std::vector<Tactic>> tuned_tactics(const MoeShape& shape, const TuningRecord* tuned, std::int64_t rows,
                                                 const Limits& limits) {
  const TunedBucket* bucket = tuned ? tuned->bucket(rows) : nullptr;
  if (!bucket) return std::nullopt;
  try {
    return parse_moe(shape, bucket->tactic, limits);
  } catch (const Error&) { return std::nullopt; }
}

/// Whether the products' kernels can sort the slots: few, and both of decode, without a permutation of x between. (A
/// single product's places would be read too early: see combine.h.)
bool can_route(const MoeShape& shape, std::int64_t rows, const std::vector<Tactic>& tactics, const Limits& limits) {
  if (rows * shape.topk > kRoutedSlots || tactics.size() != 2) return false;
  for (std::size_t i = 0; i < tactics.size(); ++i) {
    Problem problem;
    if (tactics[i].remap || tactics[i].kernel->name != std::string_view("decode") ||
        !bind_product(shape, i, tactics[i], problem, limits, true))
      return false;
  }
  return true;
}

MoeChoice make_choice(const MoeShape& shape, std::int64_t up_to, const std::vector<Tactic>& tactics,
                      const Limits& limits) {
  MoeChoice choice{.up_to = up_to, .products = {}, .routed = can_route(shape, up_to, tactics, limits)};
  for (std::size_t i = 0; i < tactics.size(); ++i) {
    GroupedProduct product{.tactic = tactics[i], .kernel = nullptr, .problem = {}, .shape = {}};
    if (!finish(shape, i, product, limits, choice.routed))
      fail(ErrorCode::kInternal, "tactic '{}' does not run product {}", tactics[i].str(), i + 1);
    choice.products.push_back(std::move(product));
  }
  return choice;
}

/// Rows up to which the kernels of a layer may sort the slots themselves.
std::int64_t most_routed(const MoeShape& shape) { return kRoutedSlots / shape.topk; }

}  // namespace

MoeShape moe_shape(std::vector<MatrixShape> products, std::int64_t experts, std::int64_t topk,
                   const ExpertsPlanOptions& options) {
  MoeShape shape;
  shape.products = std::move(products), shape.experts = experts, shape.topk = topk;
  shape.bf16 = options.dtype == DType::kBF16, shape.batch_invariant = options.batch_invariant;
  shape.overlap_previous = options.overlap_previous;
  shape.activation = options.activation, shape.alpha = options.alpha, shape.limit = options.limit;
  return shape;
}

std::string MoeChoice::tactic() const {
  std::string text;
  for (const auto& product : products) text += (text.empty() ? "" : kBetweenProducts) + product.tactic.str();
  return text;
}

std::vector<MoeChoice> choose_moe(const MoeShape& shape, std::int64_t max_rows, const std::string& tactic,
                                  const Gpu& gpu, const TuningRecord* tuned) {
  if (!tactic.empty()) {
    const auto tactics = parse_moe(shape, tactic, gpu.limits);
    std::vector<MoeChoice> choices;
    const std::int64_t few = std::min(max_rows, most_routed(shape));
    if (few > 0 && can_route(shape, few, tactics, gpu.limits))
      choices.push_back(make_choice(shape, few, tactics, gpu.limits));
    if (choices.empty() || few < max_rows) choices.push_back(make_choice(shape, max_rows, tactics, gpu.limits));
    return choices;
  }
  std::vector<std::int64_t> ends = {max_rows};
  for (std::int64_t rows = 1; rows < max_rows; rows *= 2) ends.insert(ends.end() - 1, rows);
  std::vector<MoeChoice> choices;
  for (const auto rows : ends) {
    auto found = tuned_tactics(shape, tuned, rows, gpu.limits);
    std::vector<Tactic> tactics = found ? std::move(*found) : std::vector<Tactic>();
    for (std::size_t i = tactics.size(); i < shape.products.size(); ++i) {
      auto all = product_tactics(shape, i, rows, gpu.limits);
      if (all.empty())
        fail(ErrorCode::kInternal, "no grouped kernel serves k = {}, n = {}", shape.products[i].k, shape.products[i].n);
      tactics.push_back(std::move(all.front()));
    }
    MoeChoice choice = make_choice(shape, rows, tactics, gpu.limits);
    if (!choices.empty() && choices.back().tactic() == choice.tactic() && choices.back().routed == choice.routed)
      choices.back().up_to = rows;
    else
      choices.push_back(std::move(choice));
  }
  return choices;
}

std::vector<std::string> moe_tactics(const MoeShape& shape, std::int64_t rows, const Gpu& gpu) {
  std::vector<std::vector<Tactic>> all;
  for (std::size_t i = 0; i < shape.products.size(); ++i) all.push_back(product_tactics(shape, i, rows, gpu.limits));
  std::vector<std::string> texts;
  // The defaults, then every other tactic of one product beside the default of the other.
  for (std::size_t changed = 0; changed < all.size(); ++changed)
    for (std::size_t j = changed ? 1 : 0; j < all[changed].size(); ++j) {
      std::string text;
      for (std::size_t i = 0; i < all.size(); ++i)
        text += (i ? kBetweenProducts : "") + all[i][i == changed ? j : 0].str();
      texts.push_back(std::move(text));
    }
  return texts;
}

RouteLaunch route_launch(std::int64_t slots, std::int64_t experts, const Limits& limits) {
  if (slots <= 32) return {.config = {.threads = 32, .experts = 32}};
  constexpr std::int64_t kManySlots = 2048, kMostCounts = 1 << 20;
  const int all = experts <= 128 ? 128 : experts <= 256 ? 256 : 512;
  const std::int64_t threads = limits.arch == 0 || slots <= 256 ? 256 : slots <= 512 ? 512 : 1024;
  if (experts <= all && slots <= (all == 512 ? 2 : 4) * threads) {
    const int each = slots <= threads ? 1 : slots <= 2 * threads ? 2 : 4;
    return {.config = {.threads = static_cast<int>(threads), .experts = all, .each = each}};
  }
  const int range = experts <= 128 ? 128 : 256;
  RouteLaunch launch{.config = {.threads = slots <= 512 || limits.arch == 0 ? 256 : 512, .experts = range}};
  if (slots > kManySlots) {
    launch.config = {.threads = 256, .experts = range, .part = kPlacePart};
    launch.blocks = std::clamp<std::int64_t>(slots / 1024, 2, 32);
    while (launch.blocks > 1 && launch.blocks * experts > kMostCounts) launch.blocks /= 2;
    if (launch.blocks == 1) launch.config.part = 0;
  }
  return launch;
}

std::vector<RouteRange> route_ranges(const MoeShape& shape, std::int64_t max_rows,
                                     const std::vector<MoeChoice>& choices, const Limits& limits) {
  std::vector<RouteRange> ranges;
  for (std::int64_t rows = 1;; rows = std::min(2 * rows, max_rows)) {
    const std::int64_t slots = rows * shape.topk;
    const bool routed =
        std::any_of(choices.begin(), choices.end(), [&](const MoeChoice& c) { return c.routed && rows <= c.up_to; });
    if (!routed) ranges.push_back({slots, route_launch(slots, shape.experts, limits)});
    if (rows >= max_rows) return ranges;
  }
}

std::vector<jit::Source> route_sources(const RouteConfig& config) {
  std::vector<jit::Source> all;
  const auto add = [&](RouteConfig c) {
    all.push_back(jit::generate("route", "route.h", "RouteConfig", jit::initializer(c), {"RouteArgs"}, c.threads, 1));
  };
  if (config.part) add({config.threads, config.experts, kCountPart});
  add(config);
  return all;
}

CombineConfig combine_config(bool bf16) { return {.bf16 = bf16}; }

jit::Source combine_source(bool bf16) {
  const auto config = combine_config(bf16);
  return jit::generate("combine", "combine.h", "CombineConfig", jit::initializer(config), {"CombineArgs"},
                       config.threads, 1);
}

bool stages_grouped(const MatrixShape& matrix, const Limits& limits) { return stages_rows(matrix, limits); }

std::vector<jit::Source> moe_sources(const MoeShape& shape, std::int64_t max_rows,
                                     const std::vector<MoeChoice>& choices, const Limits& limits) {
  std::vector<jit::Source> all;
  const auto add = [&](jit::Source source) {
    if (std::none_of(all.begin(), all.end(), [&](const auto& s) { return s.text == source.text; }))
      all.push_back(std::move(source));
  };
  for (const auto& range : route_ranges(shape, max_rows, choices, limits))
    for (auto& source : route_sources(range.launch.config)) add(std::move(source));
  for (const auto& choice : choices)
    for (std::size_t i = 0; i < choice.products.size(); ++i) {
      if (choice.products[i].tactic.remap) add(remap_source(stages_grouped(shape.products[i], limits), true));
      add(choice.products[i].kernel->source());
    }
  add(combine_source(shape.bf16));
  return all;
}

}  // namespace q4::choose
