// DeviceBackend of a GPU: the vendor's driver with packing, plans and kernels on top.
#pragma once

#include <cstdint>
#include <memory>

#include "runtime/backends/context.hpp"
#include "runtime/gpu/kernels.hpp"
#include "runtime/gpu/memory.hpp"

namespace q4::gpu {

class GpuDevice : public DeviceBackend {
 public:
  GpuDevice(std::shared_ptr<Driver> driver, const BackendContext& context)
      : driver_(std::move(driver)), kernels_(*driver_, *context.cache) {
    Driver& own = *driver_;
    own.ledger().open(
        own.info().device, context.options.allocator, context.seal,
        {[&own](std::size_t bytes) { return own.take(bytes); }, [&own](void* memory) { own.give(memory); }, false});
  }

  const DeviceInfo& info() const override { return driver_->info(); }
  MemoryLedger& ledger() override { return driver_->ledger(); }
  void trim() override;
  void copy(void* to, const void* from, std::size_t bytes, CopyKind kind) override {
    driver_->copy(to, from, bytes, kind);
  }
  void fill(void* memory, int byte, std::size_t bytes) override { driver_->fill(memory, byte, bytes); }
  void synchronize() override { driver_->synchronize(); }
  Result<void> ready() override { return driver_->can_compile(); }
  Result<void> reachable(const void* memory) const override { return driver_->reachable(memory); }
  std::unique_ptr<CapturedWork> capture(const std::function<void(void* stream)>& work) override {
    return driver_->capture(work);
  }
  /// For launches that are no multiplication: what the tuner compares with.
  const std::shared_ptr<Driver>& driver() const { return driver_; }
  Kernels& kernels() { return kernels_; }
  std::unique_ptr<PackedMatrix> pack(const MatrixSource& source) override;
  std::unique_ptr<PlanBackend> plan(std::shared_ptr<const PackedMatrix> matrix, const PlanOptions& options,
                                    const TuningRecord* tuned) override;
  std::unique_ptr<PackedExperts> make_experts(const ExpertsShape& shape) override;
  std::unique_ptr<ExpertsPlanBackend<MoeCall>> plan_moe(std::shared_ptr<const PackedExperts> w13,
                                                        std::shared_ptr<const PackedExperts> w2,
                                                        const MoeOptions& options, const TuningRecord* tuned) override;
  std::unique_ptr<ExpertsPlanBackend<GroupedCall>> plan_grouped(std::shared_ptr<const PackedExperts> experts,
                                                                const GroupedOptions& options) override;
  std::unique_ptr<AdapterTable> make_adapters(const AdaptersShape& shape) override;
  std::vector<WarmupJob> warmup(const MatrixShape& shape, const PlanOptions& options,
                                const TuningRecord* tuned) override;
  std::vector<WarmupJob> warmup(const ExpertsShape& w13, const ExpertsShape& w2, const MoeOptions& options,
                                const TuningRecord* tuned) override;
  std::string numerics(const MatrixShape& shape, const PlanOptions& options, const TuningRecord* tuned) override;
  void column_remap(void* stream, const void* x, std::int64_t x_stride, std::int64_t x_cols, void* x_new,
                    std::int64_t x_new_stride, const std::int32_t* x_map, std::int64_t cols,
                    std::int64_t rows) override;
  void multiply_segments(void* stream, const SegmentCall& call) override;
  std::string kernels_digest() const override;
  std::vector<std::string> unknown_tactics(const TuningRecord& record) const override;

 private:
  std::shared_ptr<Driver> driver_;
  Kernels kernels_;
  Scratch scratch_;
};

}  // namespace q4::gpu
