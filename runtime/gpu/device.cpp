// The parts of a GPU device that are more than a forward.
#include "runtime/gpu/device.hpp"

#include <algorithm>

#include "runtime/base/check.hpp"
#include "runtime/choose/defaults/remap.hpp"
#include "runtime/choose/sources.hpp"
#include "runtime/gpu/adapters.hpp"
#include "runtime/gpu/matrix.hpp"
#include "runtime/gpu/moe_plan.hpp"
#include "runtime/gpu/plan.hpp"

namespace q4::gpu {

std::unique_ptr<PackedMatrix> GpuDevice::pack(const MatrixSource& source) {
  return std::make_unique<Matrix>(driver_, kernels_, source, scratch_);
}

void GpuDevice::trim() { scratch_.trim(*driver_); }

std::unique_ptr<PlanBackend> GpuDevice::plan(std::shared_ptr<const PackedMatrix> matrix, const PlanOptions& options,
                                             const TuningRecord* tuned) {
  return std::make_unique<Plan>(driver_, kernels_, std::static_pointer_cast<const Matrix>(matrix), options, tuned);
}

std::unique_ptr<PackedExperts> GpuDevice::make_experts(const ExpertsShape& shape) {
  return std::make_unique<Experts>(driver_, kernels_, shape, scratch_);
}

std::unique_ptr<MoePlanBackend> GpuDevice::plan_moe(std::shared_ptr<const PackedExperts> w13,
                                                    std::shared_ptr<const PackedExperts> w2, const MoeOptions& options,
                                                    const TuningRecord* tuned) {
  return std::make_unique<MoePlanOnGpu>(ExpertsPlan(
      driver_, kernels_,
      {std::static_pointer_cast<const Experts>(std::move(w13)), std::static_pointer_cast<const Experts>(std::move(w2))},
      options, options.max_tokens, options.topk, options.expert_map, tuned));
}

std::unique_ptr<GroupedPlanBackend> GpuDevice::plan_grouped(std::shared_ptr<const PackedExperts> experts,
                                                            const GroupedOptions& options) {
  return std::make_unique<GroupedPlanOnGpu>(ExpertsPlan(driver_, kernels_,
                                                        {std::static_pointer_cast<const Experts>(std::move(experts))},
                                                        options, options.max_rows, 1, {}, nullptr));
}

std::unique_ptr<AdapterTable> GpuDevice::make_adapters(const AdaptersShape& shape) {
  return std::make_unique<Adapters>(driver_, shape);
}

std::vector<DeviceBackend::WarmupJob> GpuDevice::warmup(const MatrixShape& shape, const PlanOptions& options,
                                                        const TuningRecord* tuned) {
  std::vector<WarmupJob> jobs;
  const auto gpu = gpu_of(*driver_);
  for (auto& source : choose::sources(shape, choose::choose(shape, options, gpu, tuned), gpu.limits))
    jobs.push_back({source.text, [this, source] { return kernels_.warm(source); }});
  return jobs;
}

std::vector<DeviceBackend::WarmupJob> GpuDevice::warmup(const ExpertsShape& w13, const ExpertsShape& w2,
                                                        const MoeOptions& options, const TuningRecord* tuned) {
  std::vector<WarmupJob> jobs;
  for (auto& source : moe_layer_sources(w13, w2, options, gpu_of(*driver_), tuned))
    jobs.push_back({source.text, [this, source] { return kernels_.warm(source); }});
  return jobs;
}

std::string GpuDevice::numerics(const MatrixShape& shape, const PlanOptions& options, const TuningRecord* tuned) {
  std::string text;
  for (const auto& choice : choose::choose(shape, options, gpu_of(*driver_), tuned))
    text += fmt::format("m <= {} {}; ", choice.up_to, choice.tactic.str());
  return text;
}

void GpuDevice::column_remap(void* stream, const void* x, std::int64_t x_stride, std::int64_t x_cols, void* x_new,
                             std::int64_t x_new_stride, const std::int32_t* x_map, std::int64_t cols,
                             std::int64_t rows) {
  check(cols <= INT32_MAX && x_cols <= INT32_MAX, "column_remap: cols = {} or x_cols = {} exceeds {}", cols, x_cols,
        INT32_MAX);
  // x_map may be host memory: then it travels first. During graph capture it must be device memory.
  Buffer uploaded;
  if (!driver_->reachable(x_map)) {
    for (std::int64_t c = 0; c < cols; ++c)
      check(x_map[c] >= 0 && x_map[c] < x_cols, "column_remap: x_map[{}] = {} is outside [0, x_cols = {})", c, x_map[c],
            x_cols);
    uploaded = upload(driver_, x_map, static_cast<std::size_t>(cols) * 4);
    x_map = uploaded.as<const std::int32_t>();
  }
  for (const void* memory : {x, static_cast<const void*>(x_new)})
    if (const auto reached = driver_->reachable(memory); !reached)
      fail(ErrorCode::kInvalidArgument, "column_remap: {} = {} is {}; it must be memory of {}",
           memory == x ? "x" : "x_new", memory, reached.reason(), info().device.str());
  const auto function = kernels_.keep(choose::column_remap_source());
  RemapArgs args{static_cast<const u16*>(x), static_cast<u16*>(x_new), x_map, x_stride, x_new_stride, rows,
                 static_cast<i32>(cols),     static_cast<i32>(x_cols)};
  void* parameters[] = {&args};
  LaunchShape shape;
  shape.blocks =
      std::min<std::int64_t>(choose::remap_blocks(rows, cols, choose::remap_threads(false)), choose::kMostRemapBlocks);
  shape.threads = choose::remap_threads(false);
  driver_->launch(*function, shape, stream, parameters);
  if (uploaded.get()) driver_->synchronize();
}

void GpuDevice::multiply_segments(void* stream, const SegmentCall& call) {
  const SegmentConfig config =
      choose::segment_config(call.type == DType::kBF16, call.transposed, call.in, call.out, call.indices == nullptr);
  const auto function = kernels_.keep(choose::segment_source(config));
  SegmentArgs args{static_cast<u16*>(call.y),
                   static_cast<const u16*>(call.x),
                   static_cast<const u16* const*>(call.w),
                   reinterpret_cast<const i64*>(call.indices),
                   call.begin,
                   call.end,
                   call.m,
                   call.in,
                   call.out,
                   call.layer,
                   call.count,
                   call.scale};
  void* parameters[] = {&args};
  LaunchShape shape;
  shape.blocks = grid(config, call.m, call.out), shape.threads = kSegmentThreads;
  driver_->launch(*function, shape, stream, parameters);
}

std::string GpuDevice::kernels_digest() const { return choose::kernel_digests(); }

std::vector<std::string> GpuDevice::unknown_tactics(const TuningRecord& record) const {
  return choose::unknown_tactics(record);
}

}  // namespace q4::gpu
