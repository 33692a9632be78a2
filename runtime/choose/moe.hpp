// What runs for a mixture of experts on a GPU, for every number of rows up to a largest one: decided from numbers alone.
#pragma once

#include <cstdint>
#include <memory>
#include <q4/moe.hpp>
#include <string>
#include <vector>

#include "kernels/combine.h"
#include "kernels/route.h"
#include "runtime/choose/choose.hpp"

namespace q4::choose {

/// A plan's matrices and options: two products, or a single one of a GroupedPlan.
struct MoeShape {
  std::vector<MatrixShape> products;  ///< one expert of each; gate_up where the product is gated
  std::int64_t experts = 1, topk = 1;
  bool bf16 = false, batch_invariant = false, overlap_previous = false;
  MoeActivation activation = MoeActivation::kNone;
  float alpha = 0, limit = 0;  ///< of kSwigluClamp
};

MoeShape moe_shape(std::vector<MatrixShape> products, std::int64_t experts, std::int64_t topk,
                   const ExpertsPlanOptions& options);

/// One grouped product. tactic.remap: its x is copied to sorted order first, permuted by each expert's map if it has
/// one; else x is read through the list of its rows (the first product), or is in sorted order already (the second).
struct GroupedProduct {
  Tactic tactic;
  std::shared_ptr<const BoundKernel> kernel;
  Problem problem;
  LaunchShape shape;  ///< of every launch; its blocks are kernel->grid(row tiles at most)
};

/// What runs for a range of rows (tokens of a MoePlan), as Choice.
struct MoeChoice {
  std::int64_t up_to = 0;
  std::vector<GroupedProduct> products;
  bool routed = false;  ///< the products' kernels sort the slots themselves: no router is launched

  /// "decode tiles=16 ... | decode tiles=24 ...": a tactic for each product.
  std::string tactic() const;
};

/// In ascending ranges, the last of which ends at max_rows. `tactic` not empty: that one for all. Throws
/// kInvalidArgument for one that is not a tactic of this plan. `tuned` may be null.
std::vector<MoeChoice> choose_moe(const MoeShape& shape, std::int64_t max_rows, const std::string& tactic,
                                  const Gpu& gpu, const TuningRecord* tuned = nullptr);
/// The search space at so many rows, the default first.
std::vector<std::string> moe_tactics(const MoeShape& shape, std::int64_t rows, const Gpu& gpu);

/// The router for so many slots: one launch of one block, or two of several (kCountPart and kPlacePart).
struct RouteLaunch {
  RouteConfig config;
  std::int64_t blocks = 1;
};
RouteLaunch route_launch(std::int64_t slots, std::int64_t experts, const Limits& limits);
/// The routers that a plan needs, each for up to so many slots, ascending.
struct RouteRange {
  std::int64_t up_to = 0;
  RouteLaunch launch;
};
std::vector<RouteRange> route_ranges(const MoeShape& shape, std::int64_t max_rows,
                                     const std::vector<MoeChoice>& choices, const Limits& limits);
/// Its sources in the order of their launches.
std::vector<jit::Source> route_sources(const RouteConfig& config);
CombineConfig combine_config(bool bf16);
jit::Source combine_source(bool bf16);
/// Whether the x of a product is permuted (or copied) through shared memory.
bool stages_grouped(const MatrixShape& matrix, const Limits& limits);

/// Every kernel that a plan with these choices loads: each once.
std::vector<jit::Source> moe_sources(const MoeShape& shape, std::int64_t max_rows,
                                     const std::vector<MoeChoice>& choices, const Limits& limits);

}  // namespace q4::choose
