// CpuPlan: which kernel multiplies for which m, and the run itself.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime/backends/backend.hpp"
#include "runtime/backends/cpu/kernels.hpp"
#include "runtime/backends/cpu/packed.hpp"

namespace q4::cpu {

/// The ways to multiply; their names are the tactics.
enum class Path : std::uint8_t { kDirect, kPanel, kDirectBf16, kPanelBf16, kAmx, kInt8, kBlas };
const char* to_string(Path path) noexcept;

class CpuPlan final : public PlanBackend {
 public:
  CpuPlan(std::shared_ptr<const CpuMatrix> matrix, const Kernels& kernels, ThreadPool& pool, const PlanOptions& options,
          const TuningRecord* tuned);

  void run(void* stream, const void* x, std::int64_t x_stride, void* out, std::int64_t out_stride, std::int64_t m,
           void* workspace) const override;
  std::size_t workspace_bytes() const override { return workspace_bytes_; }
  std::string tactic(std::int64_t m) const override { return to_string(path(m)); }
  std::vector<std::string> tactics(std::int64_t m) const override;

 private:
  /// Rows of x and out of one pass over the weights.
  struct Rows {
    const std::byte* x;
    std::int64_t x_stride;
    std::byte* out;
    std::int64_t out_stride;
    std::int64_t count;
  };
  Path path(std::int64_t m) const;
  Path default_path(std::int64_t m) const;
  bool valid(Path path) const;
  Path parse(const std::string& name) const;
  void layout_workspace(std::int64_t max_m);
  PackX pack_job(const Rows& rows, std::byte* workspace) const;
  void run_tiles(Path path, const Rows& rows, std::byte* workspace) const;
  void run_blas(const Rows& rows, std::byte* workspace) const;

  std::shared_ptr<const CpuMatrix> matrix_;
  Kernels kernels_;
  ThreadPool& pool_;
  Element element_;
  bool int8_, batch_invariant_;
  std::int64_t blas_from_ = 0;  // 0: never
  struct Bucket {
    std::int64_t m;
    Path path;
  };
  std::vector<Bucket> tuned_;  // ascending m
  bool forced_ = false;
  Path forced_path_ = Path::kDirect;

  std::int64_t chunk_rows_ = 0;  // rows of one pass
  std::size_t sums_at_ = 0, scratch_at_ = 0, dense_at_ = 0, product_at_ = 0, workspace_bytes_ = 0;
  Buffer own_workspace_;
};

}  // namespace q4::cpu
