// A multiplication set up on a device for honest timing: weights in enough copies that each run reads them cold.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <q4/lora.hpp>
#include <q4/matmul.hpp>
#include <q4/order.hpp>
#include <vector>

#include "autotune/dense.hpp"
#include "autotune/epilogue.hpp"
#include "autotune/workload.hpp"
#include "runtime/backends/backend.hpp"

namespace q4::autotune {

/// One tactic, prepared over the weight copies.
struct Variant {
  std::vector<MatmulPlan> plans;
  Buffer workspace;  ///< on the CPU, of all plans, which run one after the other; on a GPU each has its own
  /// Instead of plans: the dense BLAS and its own weights, for comparison.
  Dense dense;
  std::vector<Buffer> dense_weights;
  Buffer dense_x, dense_out;  ///< of their own where the dense type is wider
  /// With an epilogue, what each run is given: adapters in turn with the copies, numbers of rows, a residual.
  std::vector<LoraAdapters> adapters;
  Buffer adapter_of_row, residual;
  std::size_t copies() const { return dense ? dense_weights.size() : plans.size(); }
  std::size_t next = 0;    ///< the copy that the next run on the CPU reads
  double estimate_us = 0;  ///< of one run, from the last sample
};

class Rig {
 public:
  /// `max_m`: rows that x and out have room for. `setup_s`: beyond the fewest copies, stop making more after this long.
  /// `cold` false: one copy, which the last cache holds between runs where it fits. `gate_up`: the matrix is loaded so.
  Rig(const Runtime& runtime, Device device, Workload& workload, std::int64_t max_m, double setup_s, bool cold = true,
      bool gate_up = false);

  std::size_t copies() const { return matrices_.size(); }
  const QuantizedMatrix& matrix() const { return matrices_.front(); }
  std::size_t cold_bytes() const { return copies() * matrices_.front().bytes(); }
  /// Runs are replayed as graphs, and repacking on the device costs little; else both are calls.
  bool gpu() const { return backend_->traits().asynchronous; }
  const std::shared_ptr<DeviceBackend>& backend() const { return backend_; }

  /// A plan of one copy; for asking what there is. With the problem's epilogue where it has one, as prepare()'s.
  MatmulPlan plan(const PlanOptions& options) const { return plan(options, runtime_); }
  /// With the tuning files of another runtime.
  MatmulPlan plan(const PlanOptions& options, const Runtime& runtime) const {
    return {runtime, matrices_.front(), with_epilogue(options)};
  }
  /// Plans over the copies (fewer where workspaces would fill the memory).
  std::unique_ptr<Variant> prepare(const PlanOptions& options) const;

  /// The dense BLAS on weights of the same shape in as many bytes of copies, in the activations' type or else in fp32;
  /// null where there is none.
  /// `previous`: of another m, whose weights serve again.
  std::unique_ptr<Variant> prepare_dense(std::int64_t m, std::unique_ptr<Variant> previous = nullptr) const;
  DType dense_type(std::int64_t m) const;

  /// Relative error against fp64 of sampled rows and columns, out filled with NaN before. NaN: something was not
  /// written.
  double error(const Variant& variant, std::int64_t m, const Workload::Finish& finish = {}) const;
  /// Microseconds of one multiplication with cold weights: the median of a few graph replays over all copies on a GPU,
  /// of a few calls on the CPU.
  double sample(Variant& variant, std::int64_t m) const;
  std::size_t first_runs() const;  ///< how often sample() multiplies where the variant was not timed before
  std::size_t most_runs() const;   ///< and at most, later
  /// How far errors may be above those of a product alone: a GPU rounds x A to the activations' type.
  double more_rounding() const { return gpu() && workload_.problem().with.rank > 0 ? 1.5 : 1; }
  /// Seconds that the fp64 products for error() at this m will take, going by those so far.
  double reference_s(std::int64_t m) const { return workload_.reference_s(sampled_rows(m)); }
  /// From now on x comes in the matrix's own order, for plans with Gather::kGiven.
  void order_x() { fill_x(max_m_, x_order(matrices_.front())); }
  /// Writes a few bytes and waits: throws kDevice when the device does not answer.
  void touch() const;
  /// One multiplication by one copy, on a stream.
  void launch(const Variant& variant, std::size_t copy, void* stream, std::int64_t m) const;
  void run(const Variant& variant, std::size_t copy, void* stream, std::int64_t m) const;  ///< its plan

 private:
  static std::vector<std::int64_t> sampled_rows(std::int64_t m);
  PlanOptions with_epilogue(const PlanOptions& options) const;
  void add_copies(double setup_s, bool cold, const MatrixOptions& options);
  void fill_x(std::int64_t rows, const std::vector<std::int32_t>& order = {});
  double replay(Variant& variant, std::int64_t m) const;
  double call(Variant& variant, std::int64_t m) const;

  Runtime runtime_;
  Device device_;
  Workload& workload_;
  std::shared_ptr<DeviceBackend> backend_;
  std::int64_t max_m_;
  std::vector<QuantizedMatrix> matrices_;
  Buffer x_, out_;
  std::optional<EpilogueData> epilogue_;  ///< where the problem has one
};

}  // namespace q4::autotune
