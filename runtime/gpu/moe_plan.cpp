// Acquires what was chosen for a mixture of experts (kernels, workspace), and launches it.
#include "runtime/gpu/moe_plan.hpp"

#include <algorithm>

#include "runtime/base/check.hpp"
#include "runtime/choose/defaults/remap.hpp"
#include "runtime/choose/sources.hpp"
#include "runtime/gpu/plan.hpp"

namespace q4::gpu {
namespace {

std::size_t align(std::size_t bytes) { return (bytes + 255) / 256 * 256; }
/// Rows in the workspace begin at whole lines.
std::int64_t row_stride(std::int64_t columns) { return (columns + 63) / 64 * 64; }

/// Blocks of the kernels that walk rows with a grid stride: a few for each multiprocessor.
constexpr std::int64_t kRowBlocks = 8;

}  // namespace

std::vector<jit::Source> moe_layer_sources(const ExpertsShape& w13, const ExpertsShape& w2, const MoeOptions& options,
                                           const choose::Gpu& gpu, const TuningRecord* tuned) {
  const auto shape = choose::moe_shape({w13, w2}, w13.experts, options.topk, options);
  auto all = choose::moe_sources(shape, options.max_tokens,
                                 choose::choose_moe(shape, options.max_tokens, options.tactic, gpu, tuned), gpu.limits);
  for (const auto& product : shape.products)
    for (auto& source : choose::loading_sources(product)) all.push_back(std::move(source));
  return all;
}

/// One run(): the call, where its parts of the workspace are, and what was chosen for its rows.
struct ExpertsPlan::Run {
  const Call& call;
  const Path& path;
  std::uint8_t* workspace;
  std::int64_t slots;

  template <class T>
  T* at(std::size_t place) const {
    return reinterpret_cast<T*>(workspace + place);
  }
};

ExpertsPlan::ExpertsPlan(std::shared_ptr<Driver> driver, Kernels& kernels,
                         std::vector<std::shared_ptr<const Experts>> experts, const ExpertsPlanOptions& options,
                         std::int64_t max_rows, std::int64_t topk, const std::vector<std::int32_t>& expert_map,
                         const TuningRecord* tuned)
    : driver_(std::move(driver)),
      experts_(std::move(experts)),
      max_rows_(max_rows),
      limits_(driver_->limits()),
      map_size_(static_cast<std::int64_t>(expert_map.size())) {
  std::vector<MatrixShape> products;
  for (const auto& each : experts_) products.push_back(each->shape());
  shape_ = choose::moe_shape(std::move(products), experts_.front()->shape().experts, topk, options);
  if (map_size_) map_ = upload(driver_, expert_map.data(), expert_map.size() * 4);
  acquire(choose::choose_moe(shape_, max_rows, options.tactic, gpu_of(*driver_), tuned), kernels);
  place();
  if (!options.own_workspace) return;
  workspace_ = Buffer(driver_, places_.total);
  driver_->fill(workspace_.get(), 0, places_.total);
}

void ExpertsPlan::acquire(std::vector<choose::MoeChoice> choices, Kernels& kernels) {
  // All of them side by side; what follows finds them loaded.
  const auto ranges = choose::route_ranges(shape_, max_rows_, choices, limits_);
  const auto loaded = kernels.get_all(choose::moe_sources(shape_, max_rows_, choices, limits_));
  std::vector<jit::Source> sources;
  for (const auto& choice : choices)
    for (const auto& product : choice.products) sources.push_back(product.kernel->source());
  const auto functions = kernels.get_all(sources);
  std::size_t next = 0;
  for (auto& choice : choices) {
    Path path{std::move(choice), {}};
    for (std::size_t i = 0; i < path.choice.products.size(); ++i) {
      Product product{functions[next++], nullptr};
      if (path.choice.products[i].tactic.remap)
        product.remap = kernels.keep(choose::remap_source(choose::stages_grouped(shape_.products[i], limits_), true));
      path.products.push_back(std::move(product));
    }
    paths_.push_back(std::move(path));
  }
  for (const auto& range : ranges) {
    Router router{range, {}};
    for (const auto& source : choose::route_sources(range.launch.config))
      router.kernels.push_back(kernels.keep(source));
    routers_.push_back(std::move(router));
  }
  combine_ = kernels.keep(choose::combine_source(shape_.bf16));
}

std::int64_t ExpertsPlan::out_columns(std::size_t product) const {
  const auto& matrix = shape_.products[product];
  return matrix.gate_up ? matrix.n / 2 : matrix.n;
}

bool ExpertsPlan::any_mapped() const {
  return std::any_of(shape_.products.begin(), shape_.products.end(), [](const auto& m) { return m.mapped; });
}

void ExpertsPlan::place() {
  const std::int64_t slots = max_rows_ * shape_.topk;
  std::size_t end = kCounterBytes;  // dense plans that share the workspace count there
  const auto take = [&](std::int64_t bytes) {
    const std::size_t at = end;
    end += align(static_cast<std::size_t>(bytes));
    return at;
  };
  places_.counts = take(64);
  std::int64_t blocks = 0;
  for (const Router& router : routers_)
    if (router.range.launch.config.part) blocks = std::max(blocks, router.range.launch.blocks);
  places_.block_counts = take(blocks * shape_.experts * 4);
  std::int64_t tiles[2] = {}, x = 0, h = 0;
  for (const Path& path : paths_)
    for (std::size_t i = 0; i < path.choice.products.size(); ++i) {
      const auto& product = path.choice.products[i];
      const std::int64_t most = std::min(slots, path.choice.up_to * shape_.topk);
      tiles[i] = std::max<std::int64_t>(tiles[i], most_tiles(most, shape_.experts, product.kernel->tile_rows()));
      // x and, with act-order, h as the products read them share a place: the one is over when the other begins. What
      // the second one makes takes the place that its x does not have.
      const std::int64_t out = most * row_stride(out_columns(i)) * 2;
      const std::int64_t sorted = product.tactic.remap ? most * row_stride(product.problem.x_k) * 2 : 0;
      x = std::max(x, sorted);
      if (i == 0 || product.tactic.remap)
        h = std::max(h, out);
      else
        x = std::max(x, out);
    }
  for (int i = 0; i < 2; ++i) places_.tiles[i] = take(tiles[i] * static_cast<std::int64_t>(sizeof(GroupTile)));
  places_.x_rows = take(slots * 4), places_.slots = take(slots * 4);
  if (any_mapped()) places_.row_experts = take(slots * 4);
  places_.x = take(x), places_.h = take(h);
  places_.total = end;
}

const ExpertsPlan::Path& ExpertsPlan::path(std::int64_t rows) const {
  for (const auto& path : paths_)
    if (rows <= path.choice.up_to) return path;
  return paths_.back();
}

void ExpertsPlan::run(const Call& call) const {
  const auto reach = [&](const char* name, const void* memory) {
    if (!memory) return;
    if (const auto reached = driver_->reachable(memory); !reached)
      fail(ErrorCode::kInvalidArgument, "{}: {} = {} is {}; it must be memory of {}", call.name, name, memory,
           reached.reason(), driver_->info().device.str());
  };
  reach("x", call.x), reach(experts_.size() > 1 ? "topk_ids" : "expert_ids", call.ids), reach("offsets", call.offsets);
  reach("topk_weights", call.weights), reach("out", call.out);
  const Run run{call, path(call.rows), static_cast<std::uint8_t*>(call.workspace ? call.workspace : workspace_.get()),
                call.rows * shape_.topk};
  if (!run.path.choice.routed) route(run);
  auto* const first = run.at<u16>(places_.x);
  auto* const second = run.at<u16>(places_.h);
  const u16* x = static_cast<const u16*>(call.x);
  std::int64_t x_stride = call.x_stride;
  u16* out = second;
  for (std::size_t i = 0; i < experts_.size(); ++i) {
    if (run.path.products[i].remap) {
      remap(run, i, x, x_stride, first);
      out = second;
    } else if (i > 0) {
      out = first;
    }
    multiply(run, i, x, x_stride, out, row_stride(out_columns(i)));
    x = out, x_stride = row_stride(out_columns(i));
  }
  combine(run, x, x_stride);
}

RouteArgs ExpertsPlan::route_args(const Run& run) const {
  RouteArgs args{};
  args.ids = run.call.ids, args.offsets = run.call.offsets;
  if (map_size_) args.map = map_.as<const i32>(), args.map_size = static_cast<i32>(map_size_);
  args.x_rows = run.at<i32>(places_.x_rows), args.places = run.at<i32>(places_.slots);
  if (any_mapped()) args.row_experts = run.at<i32>(places_.row_experts);
  auto* counts = run.at<i32>(places_.counts);
  args.row_count = counts;
  for (std::size_t i = 0; i < experts_.size(); ++i) {
    const int rows = run.path.choice.products[i].kernel->tile_rows();
    args.lists[i] = {counts + 1 + i, run.at<GroupTile>(places_.tiles[i]), rows, route_inverse(rows)};
  }
  args.slots = static_cast<i32>(run.slots), args.topk = static_cast<i32>(shape_.topk);
  args.experts = static_cast<i32>(shape_.experts), args.topk_inverse = route_inverse(args.topk);
  args.block_counts = run.at<i32>(places_.block_counts);
  return args;
}

void ExpertsPlan::route(const Run& run) const {
  RouteArgs args = route_args(run);
  const auto router =
      std::find_if(routers_.begin(), routers_.end(), [&](const Router& r) { return run.slots <= r.range.up_to; });
  const choose::RouteLaunch& launch = router->range.launch;
  LaunchShape shape;
  shape.blocks = launch.blocks;
  shape.threads = threads(launch.config), shape.shared_bytes = shared_bytes(launch.config);
  shape.overlap_previous = shape_.overlap_previous && limits_.arch >= 90;
  void* parameters[] = {&args};
  for (const auto& kernel : router->kernels) {
    driver_->launch(*kernel, shape, run.call.stream, parameters);
    shape.overlap_previous = limits_.arch >= 90;
  }
}

void ExpertsPlan::remap(const Run& run, std::size_t product, const u16*& x, std::int64_t& x_stride, u16* to) const {
  const MatrixShape& matrix = shape_.products[product];
  const auto columns = static_cast<std::int64_t>(run.path.choice.products[product].problem.x_k);
  // Without maps, which only the first product's x comes to: rows of x go to their places. Else rows of x_new are made.
  const std::int64_t rows = matrix.mapped ? run.slots : run.call.rows;
  RemapArgs args{x,
                 to,
                 matrix.mapped ? experts_[product]->first().x_map.as<const i32>() : nullptr,
                 x_stride,
                 row_stride(columns),
                 rows,
                 static_cast<i32>(columns),
                 static_cast<i32>(matrix.k),
                 1,
                 1};
  args.places = run.at<const i32>(places_.slots), args.topk = static_cast<i32>(shape_.topk);
  args.row_count = run.at<const i32>(places_.counts);
  if (product == 0) args.x_rows = run.at<const i32>(places_.x_rows);
  if (matrix.mapped)
    args.row_experts = run.at<const i32>(places_.row_experts), args.map_stride = experts_[product]->stride() / 4;
  LaunchShape shape;
  const bool staged = choose::stages_grouped(matrix, limits_);
  shape.threads = choose::remap_threads(staged), shape.overlap_previous = limits_.arch >= 90;
  const std::int64_t most = kRowBlocks * limits_.units;
  if (staged && matrix.mapped) {
    // Rows of one expert share its map.
    const bool several = run.slots >= 8 * shape_.experts;
    args.together = several ? choose::remap_together(run.slots, matrix.k, limits_.units, limits_.shared_bytes) : 1;
    const std::int64_t turns = (run.slots + args.together - 1) / args.together;
    args.pieces = choose::remap_pieces(turns, columns, limits_.units);
    shape.blocks = std::min<std::int64_t>(turns * args.pieces, most);
    shape.shared_bytes = static_cast<int>(choose::remap_shared_bytes(matrix.k, args.together));
  } else if (staged) {
    shape.blocks = std::min<std::int64_t>(choose::remap_blocks(rows, columns / 8, shape.threads), most);
  } else {
    shape.blocks = std::min<std::int64_t>(choose::remap_blocks(run.slots, columns, shape.threads), most);
  }
  void* parameters[] = {&args};
  driver_->launch(*run.path.products[product].remap, shape, run.call.stream, parameters);
  x = to, x_stride = row_stride(columns);
}

void ExpertsPlan::multiply(const Run& run, std::size_t product, const u16* x, std::int64_t x_stride, u16* out,
                           std::int64_t out_stride) const {
  const auto& chosen = run.path.choice.products[product];
  const Matrix& matrix = experts_[product]->first();
  RoutedArgs args{};
  args.codes = matrix.codes.as<const u8>(), args.meta = matrix.meta.as<const u8>();
  args.bias = matrix.bias_of(shape_.bf16), args.stride = experts_[product]->stride();
  args.x = x, args.x_stride = x_stride, args.out = out, args.out_stride = out_stride;
  args.m = static_cast<i32>(run.slots);
  args.tile_count = run.at<const i32>(places_.counts) + 1 + product;
  args.tiles = run.at<const GroupTile>(places_.tiles[product]);
  args.x_rows = run.at<const i32>(places_.x_rows);
  const std::int64_t tiles = most_tiles(run.slots, shape_.experts, chosen.kernel->tile_rows());
  LaunchShape shape = chosen.shape;
  shape.blocks = chosen.kernel->grid(tiles);
  if (run.path.choice.routed) {
    args.route = route_args(run);
    if (product == 0) shape.overlap_previous = shape_.overlap_previous && limits_.arch >= 90;
  }
  if (!chosen.tactic.kernel->tensor_maps) {
    void* parameters[] = {&args};
    return driver_->launch(*run.path.products[product].kernel, shape, run.call.stream, parameters);
  }
  const auto box = chosen.kernel->boxes(tiles);
  TensorMapBytes map =
      driver_->encode({x, run.slots, chosen.problem.x_k, x_stride, box.x_rows, box.columns, shape_.bf16});
  void* parameters[] = {&args, &map, &map};
  driver_->launch(*run.path.products[product].kernel, shape, run.call.stream, parameters);
}

void ExpertsPlan::combine(const Run& run, const u16* y, std::int64_t y_stride) const {
  const std::int64_t columns = out_columns(experts_.size() - 1);
  CombineArgs args{y,
                   run.at<const i32>(places_.slots),
                   run.call.weights,
                   static_cast<u16*>(run.call.out),
                   y_stride,
                   run.call.out_stride,
                   run.call.rows,
                   static_cast<i32>(columns),
                   static_cast<i32>(shape_.topk)};
  const auto config = choose::combine_config(shape_.bf16);
  LaunchShape shape;
  shape.threads = threads(config), shape.overlap_previous = limits_.arch >= 90;
  shape.blocks = std::min<std::int64_t>(blocks(config, run.call.rows, columns), 4 * kRowBlocks * limits_.units);
  void* parameters[] = {&args};
  driver_->launch(*combine_, shape, run.call.stream, parameters);
}

std::vector<std::string> ExpertsPlan::tactics(std::int64_t rows) const {
  return choose::moe_tactics(shape_, rows, gpu_of(*driver_));
}

void MoePlanOnGpu::run(const MoeCall& c) const {
  plan_.run({"MoePlan::run", c.stream, c.x, c.x_stride, c.ids, nullptr, c.weights, c.out, c.out_stride, c.tokens,
             c.workspace});
}

void GroupedPlanOnGpu::run(const GroupedCall& c) const {
  plan_.run({"GroupedPlan::run", c.stream, c.x, c.x_stride, c.ids, c.offsets, nullptr, c.out, c.out_stride, c.rows,
             c.workspace});
}

}  // namespace q4::gpu
