// Prepares paths and launches them.
#include "runtime/gpu/plan.hpp"

#include <algorithm>

#include "kernels/prefill_config.h"
#include "kernels/reconstruct.h"
#include "kernels/remap.h"
#include "runtime/base/check.hpp"
#include "runtime/base/convert.hpp"

namespace q4::gpu {
namespace {

constexpr std::int64_t kRemapBlocks = 1 << 16;
/// W is reconstructed in slices of at most this many bytes, so that the workspace stays small beside the weights.
constexpr std::int64_t kSliceBytes = 256 << 20;

std::size_t align(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

/// One run(): what was asked for, with x replaced once it is permuted or copied.
struct Plan::Call {
  void* stream;
  const std::uint16_t* x;
  std::int64_t x_stride;
  std::uint16_t* out;
  std::int64_t out_stride;
  std::int64_t m;
  std::uint8_t* workspace;
};

Plan::Plan(std::shared_ptr<Driver> driver, Kernels& kernels, std::shared_ptr<const Matrix> matrix,
           const PlanOptions& options, const TuningRecord* tuned)
    : driver_(std::move(driver)),
      matrix_(std::move(matrix)),
      options_(options),
      bf16_(options.activation == DType::kBF16) {
  check(options.activation != DType::kF32, "MatmulPlan: activation fp32 is for the CPU; on {} use fp16 or bf16",
        driver_->info().device.str());
  if (!matrix_->bias.empty()) {
    std::vector<std::uint16_t> bias;
    for (const float v : matrix_->bias) bias.push_back(bf16_ ? bf16_from_float(v) : half_from_float(v));
    bias_ = Buffer(driver_, bias.data(), bias.size() * 2);
  }
  std::vector<std::int64_t> ends = {options.max_m};
  const bool forced = !options.tactic.empty();  // then it need not serve every m, and max_m alone is asked of it
  for (std::int64_t m = 1; m < options.max_m && !forced; m *= 2) ends.push_back(m);
  if (tuned && !forced)
    for (const auto& bucket : tuned->buckets) ends.push_back(bucket.m / 2), ends.push_back(bucket.m);
  for (const auto first : {options.reconstruct_from, tuned ? tuned->reconstruct_from : 0})
    if (!forced) ends.push_back(first - 1);
  std::sort(ends.begin(), ends.end());
  ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
  std::erase_if(ends, [&](std::int64_t m) { return m < 1 || m > options.max_m; });
  std::vector<Tactic> chosen;
  std::vector<jit::Source> sources;
  for (const auto m : ends) {
    const Tactic tactic = chosen.emplace_back(choose(m, tuned));
    const auto problem = make_problem(*matrix_, bf16_, tactic);
    sources.push_back(tactic.kernel ? tactic.kernel->source(problem, tactic.values) : jit::reconstruct_source(problem));
  }
  const auto compiled = kernels.get_all(sources);  // held until the paths below hold them
  std::size_t kernel_bytes = 0;
  bool remaps = false;
  for (std::size_t i = 0; i < ends.size(); ++i) {
    const Tactic& tactic = chosen[i];
    if (tactic.kernel) {
      const auto problem = make_problem(*matrix_, bf16_, tactic);
      const auto shape = tactic.kernel->shape(problem, tactic.values, ends[i], driver_->limits());
      kernel_bytes = std::max(kernel_bytes, static_cast<std::size_t>(shape.workspace_bytes));
    }
    remaps |= tactic.remap;
    if (tactic.kernel && !paths_.empty() && paths_.back().tactic == tactic)
      paths_.back().up_to = ends[i];
    else
      paths_.push_back(prepare(ends[i], tactic, kernels));
  }
  place(kernel_bytes, remaps, paths_);
  if (!options.own_workspace || !places_.total) return;
  workspace_ = Buffer(driver_, places_.total);
  driver_->fill(workspace_.get(), 0, places_.total);
}

Tactic Plan::choose(std::int64_t m, const TuningRecord* tuned) const {
  const auto limits = driver_->limits();
  if (!options_.tactic.empty()) {
    const Tactic tactic = Tactic::parse(options_.tactic);
    check(usable(tactic, *matrix_, bf16_, m, limits),
          "MatmulPlan: tactic '{}' cannot run m = {} of k = {}, n = {}, group {}{} on {}; MatmulPlan::tactics(m) lists "
          "those that can",
          options_.tactic, m, matrix_->k, matrix_->n, matrix_->group_size, matrix_->act_order ? ", act-order" : "",
          driver_->info().arch);
    return tactic;
  }
  const auto from = options_.reconstruct_from;
  if (from > 0 && m >= from) return {};
  const bool free_choice =
      !options_.batch_invariant && options_.math == Math::kAuto && options_.gather == Gather::kAuto;
  if (tuned && free_choice) {
    if (from < 0 && tuned->reconstruct_from > 0 && m >= tuned->reconstruct_from) return {};
    if (const auto* bucket = tuned->bucket(m)) {
      try {
        const Tactic tactic = Tactic::parse(bucket->tactic);
        if ((tactic.kernel || from < 0) && usable(tactic, *matrix_, bf16_, m, limits)) return tactic;
      } catch (const Error&) {  // written by another version: the default serves
      }
    }
  }
  return default_tactic(*matrix_, options_, m, limits, from >= 0);
}

Plan::Path Plan::prepare(std::int64_t m, const Tactic& tactic, Kernels& kernels) const {
  Path path;
  path.up_to = m, path.tactic = tactic;
  const Problem problem = make_problem(*matrix_, bf16_, tactic);
  if (tactic.remap) path.remap = kernels.keep(jit::remap_source(stages_rows()));
  if (!tactic.kernel) {
    const ReconstructConfig config{problem};
    path.kernel = kernels.get(jit::reconstruct_source(problem));
    path.shape.threads = threads(config), path.shape.shared_bytes = shared_bytes(config);
    path.gemm = driver_->gemm({matrix_->n, matrix_->k, m, bf16_, problem.bias != 0});
    return path;
  }
  const auto limits = driver_->limits();
  const auto shape = tactic.kernel->shape(problem, tactic.values, m, limits);
  path.kernel = kernels.get(tactic.kernel->source(problem, tactic.values));
  path.shape.threads = shape.threads, path.shape.shared_bytes = shape.shared_bytes, path.shape.cluster = shape.cluster;
  // After our own remap it always pays: that kernel began when the stream's earlier work had ended.
  path.shape.overlap_previous =
      tactic.kernel->overlaps && limits.arch >= 90 && (options_.overlap_previous || tactic.remap);
  path.grid = tactic.kernel->grid(problem, tactic.values, limits);
  path.boxes = tactic.kernel->boxes(problem, tactic.values);
  return path;
}

void Plan::place(std::size_t kernel_bytes, bool remaps, const std::vector<Path>& paths) {
  std::size_t w = 0, blas = 0;
  for (const auto& path : paths)
    if (path.gemm) {
      slice_columns_ =
          std::clamp<std::int64_t>(kSliceBytes / (2 * matrix_->k) / kStripColumns * kStripColumns, kStripColumns,
                                   (matrix_->n + kStripColumns - 1) / kStripColumns * kStripColumns);
      w = static_cast<std::size_t>(slice_columns_ * matrix_->k * 2);
      blas = std::max(blas, path.gemm->workspace_bytes());
    }
  // Nothing else is ever written over the kernels' counters: plans may share a workspace.
  if (remaps || w || blas) kernel_bytes = std::max<std::size_t>(kernel_bytes, kCounterBytes);
  places_.x = align(kernel_bytes);
  places_.w = places_.x + (remaps ? align(static_cast<std::size_t>(options_.max_m * matrix_->packed_k * 2)) : 0);
  places_.blas = places_.w + align(w);
  places_.total = places_.blas + align(blas);
}

const Plan::Path& Plan::path(std::int64_t m) const {
  for (const auto& path : paths_)
    if (m <= path.up_to) return path;
  return paths_.back();
}

void Plan::run(void* stream, const void* x, std::int64_t x_stride, void* out, std::int64_t out_stride, std::int64_t m,
               void* workspace) const {
  std::string problem;
  check(driver_->reachable(x, problem), "MatmulPlan::run: x = {} is {}; it must be memory of {}", x, problem,
        driver_->info().device.str());
  check(driver_->reachable(out, problem), "MatmulPlan::run: out = {} is {}; it must be memory of {}", out, problem,
        driver_->info().device.str());
  const Path& path = this->path(m);
  Call call{stream,
            static_cast<const std::uint16_t*>(x),
            x_stride,
            static_cast<std::uint16_t*>(out),
            out_stride,
            m,
            workspace ? static_cast<std::uint8_t*>(workspace) : workspace_.as<std::uint8_t>()};
  if (path.remap) run_remap(path, call);
  if (path.gemm)
    run_blas(path, call);
  else
    run_kernel(path, call);
}

bool Plan::stages_rows() const {
  return !matrix_->x_map.get() ||
         remap_shared_bytes(matrix_->k, 1) <= static_cast<std::int64_t>(driver_->info().shared_bytes);
}

void Plan::run_remap(const Path& path, Call& call) const {
  auto* x_new = reinterpret_cast<std::uint16_t*>(call.workspace + places_.x);
  const auto k = matrix_->k, columns = matrix_->packed_k;
  RemapArgs args{call.x,  x_new,  matrix_->x_map.as<const i32>(), call.x_stride,
                 columns, call.m, static_cast<i32>(columns),      static_cast<i32>(k)};
  LaunchShape shape;
  shape.threads = remap_threads(stages_rows());
  const auto& info = driver_->info();
  if (!args.x_map) {
    shape.blocks = remap_blocks(call.m, columns / 8, shape.threads);
  } else if (stages_rows()) {
    args.together = remap_together(call.m, k, info.compute_units, static_cast<int>(info.shared_bytes));
    const auto turns = (call.m + args.together - 1) / args.together;
    args.pieces = remap_pieces(turns, columns, info.compute_units);
    shape.blocks = turns * args.pieces;
    shape.shared_bytes = static_cast<int>(remap_shared_bytes(k, args.together));
  } else {
    shape.blocks = remap_blocks(call.m, columns, shape.threads);
  }
  shape.blocks = std::min<std::int64_t>(shape.blocks, kRemapBlocks);
  void* parameters[] = {&args};
  driver_->launch(*path.remap, shape, call.stream, parameters);
  call.x = x_new, call.x_stride = columns;
}

void Plan::run_kernel(const Path& path, const Call& call) const {
  MatmulArgs args{matrix_->codes.as<const u8>(),
                  matrix_->meta.as<const u8>(),
                  call.x,
                  matrix_->x_map.as<const i32>(),
                  bias_.as<const u16>(),
                  call.out,
                  call.workspace,
                  call.x_stride,
                  call.out_stride,
                  static_cast<i32>(call.m)};
  LaunchShape shape = path.shape;
  shape.blocks = path.grid(call.m);
  if (!path.boxes) {
    void* parameters[] = {&args};
    return driver_->launch(*path.kernel, shape, call.stream, parameters);
  }
  const auto box = path.boxes(call.m);
  const auto columns = path.remap ? matrix_->packed_k : matrix_->k;
  TensorMapBytes x_map = driver_->encode({call.x, call.m, columns, call.x_stride, box.x_rows, box.columns, bf16_});
  TensorMapBytes out_map =
      driver_->encode({call.out, call.m, matrix_->n, call.out_stride, box.out_rows, box.columns, bf16_});
  void* parameters[] = {&args, &x_map, &out_map};
  driver_->launch(*path.kernel, shape, call.stream, parameters);
}

void Plan::run_blas(const Path& path, const Call& call) const {
  auto* w = reinterpret_cast<std::uint16_t*>(call.workspace + places_.w);
  const ReconstructConfig config{make_problem(*matrix_, bf16_, path.tactic)};
  for (std::int64_t column = 0; column < matrix_->n; column += slice_columns_) {
    const auto columns = std::min(slice_columns_, matrix_->n - column);
    ReconstructArgs args{matrix_->codes.as<const u8>(),
                         matrix_->meta.as<const u8>(),
                         matrix_->x_map.as<const i32>(),
                         w,
                         columns,
                         static_cast<i32>(column / kStripColumns),
                         static_cast<i32>(columns)};
    void* parameters[] = {&args};
    LaunchShape shape = path.shape;
    shape.blocks = grid(config, columns);
    driver_->launch(*path.kernel, shape, call.stream, parameters);
    const auto* bias = bias_.as<const std::uint16_t>();
    path.gemm->run(call.stream, call.m, call.x, call.x_stride, w, columns, call.out + column, call.out_stride,
                   bias ? bias + column : nullptr, call.workspace + places_.blas);
  }
}

std::vector<std::string> Plan::tactics(std::int64_t m) const {
  std::vector<std::string> names;
  for (const auto& tactic : all_tactics(*matrix_, options_, m, driver_->limits())) names.push_back(tactic.str());
  return names;
}

}  // namespace q4::gpu
