// A prepared multiplication on a GPU: what was chosen for each range of m (runtime/choose), loaded and with its
// workspace.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/choose/choose.hpp"
#include "runtime/choose/sources.hpp"
#include "runtime/gpu/matrix.hpp"

namespace q4::gpu {

/// What a choice depends on of this device.
choose::Gpu gpu_of(const Driver& driver);

class Plan : public PlanBackend {
 public:
  Plan(std::shared_ptr<Driver> driver, Kernels& kernels, std::shared_ptr<const Matrix> matrix,
       const PlanOptions& options, const TuningRecord* tuned);

  void run(void* stream, const void* x, std::int64_t x_stride, void* out, std::int64_t out_stride, std::int64_t m,
           void* workspace, const EpilogueInputs& inputs) const override;
  std::size_t workspace_bytes() const override { return places_.total; }
  std::string tactic(std::int64_t m) const override { return path(m).choice.tactic.str(); }
  std::vector<std::string> tactics(std::int64_t m) const override;

 private:
  /// One range of m: the choice, and what it needs on the device.
  struct Path {
    choose::Choice choice;
    std::shared_ptr<const Function> kernel;
    std::shared_ptr<const Function> remap;  ///< null: x is read as it comes
    std::shared_ptr<const Function> norm;   ///< instead of remap, where x is normalized by a launch before
    std::shared_ptr<const Gemm> gemm;       ///< with reconstruct + BLAS
  };
  /// Offsets in the workspace.
  struct Places : choose::WorkspaceLayout {
    std::size_t low = 0;     ///< x A of adapters
    std::size_t within = 0;  ///< the same where the matmul's own blocks make it
    std::size_t total = 0;
  };
  struct Shrink {
    choose::ShrinkKernel kernel;
    std::shared_ptr<const Function> function;
  };
  struct Call;

  const Path& path(std::int64_t m) const;
  choose::BoundKernel::LoraWithin shrinks_within(const Path& path, LoraLoad load) const;
  void acquire(std::vector<choose::Choice> choices, Kernels& kernels);
  LoraArgs run_shrink(const Path& path, Call& call, const EpilogueInputs& inputs) const;
  void run_remap(const Path& path, Call& call) const;
  void run_norm(const Path& path, Call& call) const;
  void run_kernel(const Path& path, const Call& call) const;
  void run_blas(const Path& path, const Call& call) const;

  std::shared_ptr<Driver> driver_;
  std::shared_ptr<const Matrix> matrix_;
  const MatrixShape shape_;  ///< as the plan reads it
  PlanOptions options_;
  const Limits limits_;
  bool bf16_;
  std::vector<Path> paths_;
  std::vector<Shrink> shrink_;  ///< with Epilogue::lora, in ascending order of their rows
  Places places_;
  Buffer workspace_;
};

}  // namespace q4::gpu
