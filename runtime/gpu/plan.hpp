// A prepared multiplication on a GPU: for each range of m the kernels, their shapes and where their workspace is.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/gpu/tactic.hpp"

namespace q4::gpu {

class Plan : public PlanBackend {
 public:
  Plan(std::shared_ptr<Driver> driver, Kernels& kernels, std::shared_ptr<const Matrix> matrix,
       const PlanOptions& options, const TuningRecord* tuned);

  void run(void* stream, const void* x, std::int64_t x_stride, void* out, std::int64_t out_stride, std::int64_t m,
           void* workspace) const override;
  std::size_t workspace_bytes() const override { return places_.total; }
  std::string tactic(std::int64_t m) const override { return path(m).tactic.str(); }
  std::vector<std::string> tactics(std::int64_t m) const override;

 private:
  /// One range of m.
  struct Path {
    std::int64_t up_to = 0;
    Tactic tactic;
    std::shared_ptr<const Function> kernel;  ///< the matmul kernel, or reconstruct
    std::shared_ptr<const Function> remap;
    std::shared_ptr<const Gemm> gemm;
    LaunchShape shape;
    std::function<std::int64_t(std::int64_t)> grid;
    std::function<jit::TensorBoxes(std::int64_t)> boxes;  ///< empty: the kernel takes no tensor maps
  };
  /// Offsets in the workspace. The kernels' own part comes first: it is zero before the first launch and left so.
  struct Places {
    std::size_t x = 0, w = 0, blas = 0, total = 0;
  };
  struct Call;

  const Path& path(std::int64_t m) const;
  Tactic choose(std::int64_t m, const TuningRecord* tuned) const;
  Path prepare(std::int64_t m, const Tactic& tactic, Kernels& kernels) const;
  void place(std::size_t kernel_bytes, bool remaps, const std::vector<Path>& paths);
  bool stages_rows() const;  ///< a row of x fits in shared memory, so remap gathers from there
  void run_remap(const Path& path, Call& call) const;
  void run_kernel(const Path& path, const Call& call) const;
  void run_blas(const Path& path, const Call& call) const;

  std::shared_ptr<Driver> driver_;
  std::shared_ptr<const Matrix> matrix_;
  PlanOptions options_;
  bool bf16_;
  Buffer bias_;
  std::vector<Path> paths_;
  std::int64_t slice_columns_ = 0;  ///< columns of W that are reconstructed at a time
  Places places_;
  Buffer workspace_;
};

}  // namespace q4::gpu
