// Acquires what was chosen (kernels, BLAS, workspace), and launches it.
#include "runtime/gpu/plan.hpp"

#include <algorithm>

#include "kernels/norm.h"
#include "kernels/reconstruct.h"
#include "runtime/base/check.hpp"
#include "runtime/choose/defaults/remap.hpp"
#include "runtime/choose/given.hpp"
#include "runtime/choose/sources.hpp"
#include "runtime/gpu/adapters.hpp"

namespace q4::gpu {
namespace {

std::size_t align(std::size_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

choose::Gpu gpu_of(const Driver& driver) { return {driver.info().device.str(), driver.info().arch, driver.limits()}; }

/// One run(): what was requested, with x replaced once it is permuted or copied.
struct Plan::Call {
  void* stream;
  const std::uint16_t* x;
  std::int64_t x_stride;
  std::uint16_t* out;
  std::int64_t out_stride;
  std::int64_t m;
  std::uint8_t* workspace;
  const std::uint16_t* residual;
  std::int64_t residual_stride;
  LoraArgs lora;
  const std::uint16_t* norm;
  std::int64_t blocks = 0;  ///< 0: the kernel's grid
};

Plan::Plan(std::shared_ptr<Driver> driver, Kernels& kernels, std::shared_ptr<const Matrix> matrix,
           const PlanOptions& options, const TuningRecord* tuned)
    : driver_(std::move(driver)),
      matrix_(std::move(matrix)),
      shape_(choose::as_read(*matrix_, options)),
      options_(options),
      limits_(driver_->limits()),
      bf16_(options.activation == DType::kBF16) {
  matrix_->wait();
  auto choices = choose::choose(shape_, options, gpu_of(*driver_), tuned);
  acquire(std::move(choices), kernels);
  if (!options.own_workspace || !places_.total) return;
  workspace_ = Buffer(driver_, places_.total);
  driver_->fill(workspace_.get(), 0, places_.total);
}

void Plan::acquire(std::vector<choose::Choice> choices, Kernels& kernels) {
  std::vector<jit::Source> sources;
  for (const auto& choice : choices) sources.push_back(choice.kernel->source());
  const auto functions = kernels.get_all(sources);
  std::size_t blas = 0;
  for (std::size_t i = 0; i < choices.size(); ++i) {
    Path path{choices[i], functions[i], nullptr, nullptr, nullptr};
    if (shape_.norm && (path.choice.tactic.remap || path.choice.blas()))
      path.norm = kernels.keep(choose::norm_source(bf16_));
    else if (path.choice.tactic.remap)
      path.remap = kernels.keep(choose::remap_source(choose::stages_rows(shape_, limits_)));
    if (path.choice.blas()) {
      path.gemm = driver_->gemm({matrix_->n, matrix_->k, path.choice.up_to, bf16_, matrix_->has_bias});
      blas = std::max(blas, path.gemm->workspace_bytes());
    }
    paths_.push_back(std::move(path));
  }
  static_cast<choose::WorkspaceLayout&>(places_) =
      choose::layout(shape_, options_.max_m, choices, blas > 0 || options_.epilogue.lora);
  places_.low = places_.blas + align(blas);
  places_.total = places_.low;
  if (!options_.epilogue.lora) return;
  for (auto& kernel : choose::shrink_kernels(bf16_, options_.max_m, limits_)) {
    auto function = kernels.keep(kernel.source);
    shrink_.push_back({std::move(kernel), std::move(function)});
  }
  const int chunks = lora_chunks(static_cast<int>(options_.lora_rank));
  places_.within = align(places_.low + static_cast<std::size_t>(options_.max_m) * chunks * kLoraRanks * 2);
  std::int64_t within = 0;
  for (const Path& path : paths_)
    within = std::max(within, shrinks_within(path, {path.choice.up_to, std::min(chunks, kLoraMostChunks), 1}).bytes);
  places_.total = places_.within + align(static_cast<std::size_t>(within));
}

choose::BoundKernel::LoraWithin Plan::shrinks_within(const Path& path, LoraLoad load) const {
  if (path.remap || path.gemm) return {};  // after remap x is not A's
  load.invariant = options_.batch_invariant;
  return path.choice.kernel->lora_within(load);
}

const Plan::Path& Plan::path(std::int64_t m) const {
  for (const auto& path : paths_)
    if (m <= path.choice.up_to) return path;
  return paths_.back();
}

void Plan::run(void* stream, const void* x, std::int64_t x_stride, void* out, std::int64_t out_stride, std::int64_t m,
               void* workspace, const EpilogueInputs& inputs) const {
  const auto check_reachable = [&](const char* name, const void* memory) {
    if (const auto reached = driver_->reachable(memory); !reached)
      fail(ErrorCode::kInvalidArgument, "MatmulPlan::run: {} = {} is {}; it must be memory of {}", name, memory,
           reached.reason(), driver_->info().device.str());
  };
  check_reachable("x", x), check_reachable("out", out);
  if (inputs.residual) check_reachable("residual", inputs.residual);
  if (inputs.norm_weight) check_reachable("norm_weight", inputs.norm_weight);
  if (inputs.adapter_of_row) check_reachable("adapter_of_row", inputs.adapter_of_row);
  const Path& path = this->path(m);
  Call call{stream,
            static_cast<const std::uint16_t*>(x),
            x_stride,
            static_cast<std::uint16_t*>(out),
            out_stride,
            m,
            workspace ? static_cast<std::uint8_t*>(workspace) : workspace_.as<std::uint8_t>(),
            static_cast<const std::uint16_t*>(inputs.residual),
            inputs.residual_stride,
            {},
            static_cast<const std::uint16_t*>(inputs.norm_weight)};
  if (inputs.adapters) call.lora = run_shrink(path, call, inputs);
  if (path.remap) run_remap(path, call);
  if (path.norm) run_norm(path, call);
  if (path.gemm)
    run_blas(path, call);
  else
    run_kernel(path, call);
}

LoraArgs Plan::run_shrink(const Path& path, Call& call, const EpilogueInputs& inputs) const {
  const auto& adapters = static_cast<const Adapters&>(*inputs.adapters);
  const int chunks = lora_chunks(static_cast<int>(adapters.shape.max_rank));
  const auto count = static_cast<i32>(adapters.shape.adapters);
  const auto within = shrinks_within(path, {call.m, chunks, count});
  call.blocks = within.blocks ? within.grid : path.choice.kernel->grid(call.m);
  auto* low = reinterpret_cast<u16*>(call.workspace + (within.blocks ? places_.within : places_.low));
  const i32 maker = within.first ? kLoraFirst : within.blocks ? kLoraWithin : path.remap ? kLoraBefore : kLoraBeside;
  const LoraArgs lora{adapters.table(), inputs.adapter_of_row, low, chunks * kLoraRanks, count, maker, within.blocks};
  if (within.blocks) return lora;
  const Shrink* shrink = &shrink_.front();
  while (call.m > shrink->kernel.up_to) ++shrink;
  const LoraLoad load{call.m, chunks, count, options_.batch_invariant};
  const auto k = static_cast<int>(matrix_->k);
  const LoraSplit split = lora_split(shrink->kernel.config, load, k, limits_);
  LoraShrinkArgs args{lora, low, call.x, call.x_stride, static_cast<i32>(call.m), k, chunks, split};
  LaunchShape shape = shrink->kernel.shape(load, split);
  shape.overlap_previous = options_.overlap_previous && limits_.arch >= 90;
  void* parameters[] = {&args};
  driver_->launch(*shrink->function, shape, call.stream, parameters);
  return lora;
}

void Plan::run_remap(const Path& path, Call& call) const {
  auto* x_new = reinterpret_cast<std::uint16_t*>(call.workspace + places_.x);
  const auto k = matrix_->k, columns = matrix_->packed_k;
  const auto launch = choose::remap_launch(shape_, call.m, limits_);
  const i32* map = shape_.mapped ? matrix_->x_map.as<const i32>() : nullptr;  // null: x is copied as it is
  RemapArgs args{call.x,
                 x_new,
                 map,
                 call.x_stride,
                 columns,
                 call.m,
                 static_cast<i32>(columns),
                 static_cast<i32>(k),
                 launch.pieces,
                 launch.together};
  void* parameters[] = {&args};
  driver_->launch(*path.remap, launch.shape, call.stream, parameters);
  call.x = x_new, call.x_stride = columns;
}

void Plan::run_norm(const Path& path, Call& call) const {
  auto* x_new = reinterpret_cast<std::uint16_t*>(call.workspace + places_.x);
  const bool packed = !path.gemm;  // the BLAS takes x's own columns
  const auto k = matrix_->k, columns = packed ? matrix_->packed_k : k;
  NormArgs args{call.x,
                x_new,
                shape_.mapped && packed ? matrix_->x_map.as<const i32>() : nullptr,
                call.norm,
                call.x_stride,
                columns,
                call.m,
                static_cast<i32>(columns),
                static_cast<i32>(k),
                options_.norm_epsilon};
  const NormConfig config;
  LaunchShape shape;
  shape.threads = config.threads, shape.shared_bytes = shared_bytes(config);
  shape.blocks = std::min<std::int64_t>(call.m, choose::kMostRemapBlocks);
  shape.overlap_previous = options_.overlap_previous && limits_.arch >= 90;
  void* parameters[] = {&args};
  driver_->launch(*path.norm, shape, call.stream, parameters);
  call.x = x_new, call.x_stride = columns;
}

void Plan::run_kernel(const Path& path, const Call& call) const {
  MatmulArgs args{matrix_->codes.as<const u8>(),
                  matrix_->meta.as<const u8>(),
                  call.x,
                  matrix_->x_map.as<const i32>(),
                  matrix_->bias_of(bf16_),
                  call.out,
                  call.workspace,
                  call.x_stride,
                  call.out_stride,
                  static_cast<i32>(call.m),
                  matrix_->zeros.as<const u8>(),

                  call.residual,
                  call.residual_stride,
                  call.lora,
                  call.norm,
                  options_.norm_epsilon};
  const auto& kernel = *path.choice.kernel;
  LaunchShape shape = path.choice.shape;
  shape.blocks = call.blocks ? call.blocks : kernel.grid(call.m);
  if (call.lora.blocks > 0) {
    shape.overlap_previous = shape.overlap_previous && options_.overlap_previous;  // no launch of ours is before it
  }
  if (!path.choice.tactic.kernel->tensor_maps) {
    void* parameters[] = {&args};
    return driver_->launch(*path.kernel, shape, call.stream, parameters);
  }
  const auto box = kernel.boxes(call.m);
  const auto columns = path.remap || path.norm ? matrix_->packed_k : matrix_->k;
  TensorMapBytes x_map = driver_->encode({call.x, call.m, columns, call.x_stride, box.x_rows, box.columns, bf16_});
  TensorMapBytes out_map = driver_->encode({call.out, call.m, matrix_->n * box.out_columns / box.columns,
                                            call.out_stride, box.out_rows, box.out_columns, bf16_});
  void* parameters[] = {&args, &x_map, &out_map};
  driver_->launch(*path.kernel, shape, call.stream, parameters);
}

void Plan::run_blas(const Path& path, const Call& call) const {
  auto* w = reinterpret_cast<std::uint16_t*>(call.workspace + places_.w);
  for (std::int64_t column = 0; column < matrix_->n; column += places_.slice_columns) {
    const auto columns = std::min(places_.slice_columns, matrix_->n - column);
    ReconstructArgs args{matrix_->codes.as<const u8>(),
                         matrix_->meta.as<const u8>(),
                         matrix_->x_map.as<const i32>(),
                         w,
                         columns,
                         static_cast<i32>(column / kStripColumns),
                         static_cast<i32>(columns),
                         matrix_->zeros.as<const u8>()};
    void* parameters[] = {&args};
    LaunchShape shape = path.choice.shape;
    shape.blocks = path.choice.kernel->grid(columns);
    driver_->launch(*path.kernel, shape, call.stream, parameters);
    const auto* bias = matrix_->bias_of(bf16_);
    path.gemm->run(call.stream, call.m, call.x, call.x_stride, w, columns, call.out + column, call.out_stride,
                   bias ? bias + column : nullptr, call.workspace + places_.blas);
  }
}

std::vector<std::string> Plan::tactics(std::int64_t m) const {
  std::vector<std::string> names;
  for (const auto& tactic : choose::all_tactics(shape_, options_, m, limits_)) names.push_back(tactic.str());
  return names;
}

}  // namespace q4::gpu
