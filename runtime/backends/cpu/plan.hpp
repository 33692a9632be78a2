// CpuPlan: which kernel multiplies for which m, and the run itself.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime/backends/backend.hpp"
#include "runtime/backends/cpu/adapters.hpp"
#include "runtime/backends/cpu/kernels.hpp"
#include "runtime/backends/cpu/packed.hpp"
#include "runtime/backends/cpu/paths.hpp"

namespace q4::cpu {

/// One choice of the tuner. Its name is the path and what is not the default: "cpu-amx math=bf16 rows=128". The bits of
/// a result depend on the path alone.
struct CpuConfig {
  Path path = Path::kDirect;
  int rows = 0;     ///< of x that a task multiplies by one tile; 0: 256, less where the path gains from it
  int threads = 0;  ///< that take part; 0: all

  /// Each tunable with the values that compete with the default; as the Configs of kernels/.
  template <class V>
  constexpr void fields(V&& v) {
    v("rows", rows, 64, 128, 256, 512);
    v("threads", threads, 1);
  }
  std::string name() const;
  friend bool operator==(const CpuConfig&, const CpuConfig&) = default;
};

inline std::size_t round_up(std::size_t value, std::size_t to) { return (value + to - 1) / to * to; }

Element element_of(DType activation);
/// Workspace of zeros. The system gives memory when it is first written, which takes longer than a multiplication: now,
/// not in run().
Buffer touched_buffer(const std::shared_ptr<MemoryLedger>& ledger, std::size_t bytes, ThreadPool& pool);

class CpuPlan final : public PlanBackend {
 public:
  CpuPlan(std::shared_ptr<const CpuMatrix> matrix, const Kernels& kernels, ThreadPool& pool,
          const std::shared_ptr<MemoryLedger>& ledger, const PlanOptions& options, const TuningRecord* tuned);

  void run(void* stream, const void* x, std::int64_t x_stride, void* out, std::int64_t out_stride, std::int64_t m,
           void* workspace, const EpilogueInputs& inputs) const override;
  std::size_t workspace_bytes() const override { return workspace_bytes_; }
  std::string tactic(std::int64_t m) const override { return name(config(m)); }
  std::vector<std::string> tactics(std::int64_t m) const override;

 private:
  static constexpr std::int64_t kChunkRows = 512;           // of a pass over the weights: bounds the workspace
  static constexpr std::int64_t kDenseColumns = 4 * kTile;  // that reconstruct + BLAS takes at a time
  static constexpr std::size_t kLine = 64;
  /// Of each thread: scratch, sums, and whether it has packed x for itself in this run.
  static constexpr std::size_t kThreadScratch = kScratch + kChunkRows * kTile * sizeof(float) + kLine;
  /// Rows of x and out of one pass over the weights.
  struct Rows {
    const std::byte* x;
    std::int64_t x_stride;
    std::byte* out;
    std::int64_t out_stride;
    std::int64_t count;
    const std::byte* residual = nullptr;
    std::int64_t residual_stride = 0;
    const CpuAdapters* adapters = nullptr;
    const std::int32_t* adapter_of_row = nullptr;
    const std::byte* norm_weight = nullptr;
    const float* low = nullptr;  ///< [count][lora_rank_] scale x A, with adapters
  };
  CpuConfig config(std::int64_t m) const;
  /// With the plan's epilogue: "cpu-direct+silu_mul math=fp32".
  std::string name(const CpuConfig& config) const;
  PathRules rules() const {
    const bool digits_pay = matrix_->n >= matrix_->k || !matrix_->source.empty();
    return {&kernels_, element_, matrix_->segment, int8_, batch_invariant_, digits_pay};
  }
  bool valid(Path path) const { return rules().valid(path); }
  std::int64_t task_rows(const CpuConfig& config) const {
    return config.rows != 0 ? config.rows : cpu::task_rows(config.path, element_, matrix_->blocks);
  }
  /// Blocks of W that AMX takes at a time, so that its part of x stays in the second-level cache.
  std::int64_t task_blocks(const CpuConfig& config, std::int64_t rows) const;
  /// Whether `config` could be better than the default for some m up to this.
  bool competes(const CpuConfig& config, std::int64_t m) const;
  std::vector<CpuConfig> configs(std::int64_t m) const;
  CpuConfig parse(const std::string& text) const;
  /// Parts of k that are added in order, for so few rows that tiles alone would not keep all threads busy to the end. A
  /// matter of the shape, never of the threads: it shapes the bits.
  std::int64_t k_parts(std::int64_t rows) const;
  void layout_workspace(std::int64_t max_m);
  std::size_t counters_bytes() const { return round_up(std::size_t(matrix_->tiles) * sizeof(std::uint32_t), 256); }

  using Multiply = void (*)(const TileJob&);
  using Pack = void (*)(const PackX&, std::int64_t row_begin, std::int64_t row_end);
  /// x as the tasks read it: packed for all, by each thread for itself (`own`), or where it lies (no packing.out).
  struct PackedX {
    PackX packing;
    Pack pack;
    bool own = false;
  };
  PackX pack_job(const Rows& rows, std::byte* workspace) const;
  /// Whether AMX multiplies x where it lies, without packing.
  bool in_place(const CpuConfig& config, const PackX& packing) const;
  /// Whether each thread packs all of x, which it then has in its second-level cache.
  bool packs_own(const CpuConfig& config, const PackX& packing) const;
  std::size_t packed_bytes(Path path, std::int64_t rows) const;  ///< of x as the tasks of AMX read it
  const void* own_x(const PackedX& x, int worker, std::byte* workspace) const;
  bool& has_own_x(int worker, std::byte* workspace) const;  ///< in this run
  TileJob tile_job(const PackedX& x, std::int64_t tile, int worker, std::byte* workspace) const;
  void run_tiles(const CpuConfig& config, const Rows& rows, std::byte* workspace) const;
  void pack_rows(Pack pack_x, const PackX& packing, const CpuConfig& config) const;
  void multiply_parts(Multiply multiply, const PackedX& x, const CpuConfig& config, const Rows& rows,
                      std::int64_t parts, std::byte* workspace) const;
  void multiply_rows(Multiply multiply, const PackedX& x, const CpuConfig& config, const Rows& rows,
                     std::byte* workspace) const;
  void run_blas(const Rows& rows, std::byte* workspace) const;
  const float* run_shrink(const Rows& rows, std::byte* workspace) const;
  void run_norm(Rows& rows, std::byte* workspace) const;
  /// Sums [count][y_stride] of `columns` columns of one tile from `column` on to rows from `row` on. `scratch`: kScratch
  /// bytes.
  void store(const Rows& rows, std::int64_t row, int count, std::int64_t tile, float* y, std::int64_t y_stride,
             std::byte* scratch, int column = 0, int columns = kTile) const;
  /// The same with an epilogue.
  void finish_and_store(const Rows& rows, std::int64_t row, int count, std::int64_t tile, float* y,
                        std::int64_t y_stride, std::byte* scratch) const;

  std::shared_ptr<const CpuMatrix> matrix_;
  Kernels kernels_;
  ThreadPool& pool_;
  Element element_;
  bool int8_, batch_invariant_, given_;  ///< given_: x comes in the matrix's order
  Epilogue epilogue_;
  std::int64_t lora_rank_ = 0;  // 0: no adapters
  bool norm_;
  float norm_epsilon_;
  std::int64_t blas_from_ = 0;  // 0: never
  struct Bucket {
    TunedBucket measured;
    CpuConfig config;
  };
  std::vector<Bucket> tuned_;  // ascending m
  bool forced_ = false;
  CpuConfig forced_config_;

  std::int64_t chunk_rows_ = 0;  // rows of one pass
  bool packs_own_ = false;       // there are enough threads for it
  std::size_t own_bytes_ = 0;    // of x that a thread has packed for itself
  std::size_t sums_at_ = 0, scratch_at_ = 0, partial_at_ = 0, dense_at_ = 0, product_at_ = 0, low_at_ = 0,
              normed_at_ = 0, workspace_bytes_ = 0;
  Buffer own_workspace_;
};

}  // namespace q4::cpu
