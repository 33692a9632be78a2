// Plans over experts on a GPU: what was chosen for each range of rows (runtime/choose/moe.hpp), loaded, and launched one
// kernel after the other without a word from the host in between.
//
//   route ──▶ [remap: x in sorted order] ──▶ product 1 ──▶ [remap: act-order] ──▶ product 2 ──▶ combine
//
// Of few slots the products' kernels sort them themselves (MoeChoice::routed), and route is left out.
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "runtime/choose/moe.hpp"
#include "runtime/gpu/experts.hpp"

namespace q4::gpu {

/// Everything that such experts and a MoePlan over them load.
std::vector<jit::Source> moe_layer_sources(const ExpertsShape& w13, const ExpertsShape& w2, const MoeOptions& options,
                                           const choose::Gpu& gpu, const TuningRecord* tuned);

/// Of one product (GroupedPlan) or two (MoePlan).
class ExpertsPlan {
 public:
  ExpertsPlan(std::shared_ptr<Driver> driver, Kernels& kernels, std::vector<std::shared_ptr<const Experts>> experts,
              const ExpertsPlanOptions& options, std::int64_t max_rows, std::int64_t topk,
              const std::vector<std::int32_t>& expert_map, const TuningRecord* tuned);

  /// `rows` tokens; ids or offsets, and weights, may be null as GroupedCall and MoeCall say.
  struct Call {
    const char* name;
    void* stream;
    const void* x;
    std::int64_t x_stride;
    const std::int32_t *ids, *offsets;
    const float* weights;
    void* out;
    std::int64_t out_stride, rows;
    void* workspace;
  };
  void run(const Call& call) const;
  std::size_t workspace_bytes() const { return places_.total; }
  std::string tactic(std::int64_t rows) const { return path(rows).choice.tactic(); }
  std::vector<std::string> tactics(std::int64_t rows) const;

 private:
  struct Product {
    std::shared_ptr<const Function> kernel, remap;  ///< remap null: x is read as it is
  };
  struct Path {
    choose::MoeChoice choice;
    std::vector<Product> products;
  };
  struct Router {
    choose::RouteRange range;
    std::vector<std::shared_ptr<const Function>> kernels;  ///< one after the other
  };
  /// Offsets in the workspace, after the head that other plans count in.
  struct Places {
    std::size_t counts = 0, block_counts = 0, tiles[2] = {}, x_rows = 0, row_experts = 0, slots = 0, x = 0, h = 0,
                total = 0;
  };
  struct Run;

  const Path& path(std::int64_t rows) const;
  void acquire(std::vector<choose::MoeChoice> choices, Kernels& kernels);
  void place();
  std::int64_t out_columns(std::size_t product) const;
  bool any_mapped() const;
  RouteArgs route_args(const Run& run) const;
  void route(const Run& run) const;
  void remap(const Run& run, std::size_t product, const u16*& x, std::int64_t& x_stride, u16* to) const;
  void multiply(const Run& run, std::size_t product, const u16* x, std::int64_t x_stride, u16* out,
                std::int64_t out_stride) const;
  void combine(const Run& run, const u16* y, std::int64_t y_stride) const;

  std::shared_ptr<Driver> driver_;
  std::vector<std::shared_ptr<const Experts>> experts_;
  choose::MoeShape shape_;
  std::int64_t max_rows_;
  const Limits limits_;
  std::vector<Path> paths_;
  std::vector<Router> routers_;
  std::shared_ptr<const Function> combine_;
  Buffer map_;
  std::int64_t map_size_ = 0;
  Places places_;
  Buffer workspace_;
};

class MoePlanOnGpu final : public MoePlanBackend {
 public:
  explicit MoePlanOnGpu(ExpertsPlan plan) : plan_(std::move(plan)) {}
  void run(const MoeCall& call) const override;
  std::size_t workspace_bytes() const override { return plan_.workspace_bytes(); }
  std::string tactic(std::int64_t rows) const override { return plan_.tactic(rows); }
  std::vector<std::string> tactics(std::int64_t rows) const override { return plan_.tactics(rows); }

 private:
  ExpertsPlan plan_;
};

class GroupedPlanOnGpu final : public GroupedPlanBackend {
 public:
  explicit GroupedPlanOnGpu(ExpertsPlan plan) : plan_(std::move(plan)) {}
  void run(const GroupedCall& call) const override;
  std::size_t workspace_bytes() const override { return plan_.workspace_bytes(); }
  std::string tactic(std::int64_t rows) const override { return plan_.tactic(rows); }
  std::vector<std::string> tactics(std::int64_t rows) const override { return plan_.tactics(rows); }

 private:
  ExpertsPlan plan_;
};

}  // namespace q4::gpu
