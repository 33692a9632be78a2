// What runs for a matrix on a GPU, for every m up to a largest one: decided from numbers alone, without a device.
#pragma once

#include <cstdint>
#include <memory>
#include <q4/matmul.hpp>
#include <q4/tuning.hpp>
#include <string>
#include <vector>

#include "runtime/choose/launch.hpp"
#include "runtime/choose/tactic.hpp"

namespace q4::choose {

/// What a choice depends on of a GPU, and its names for messages.
struct Gpu {
  std::string device;  ///< "cuda:0"
  std::string arch;    ///< "sm_90a"
  Limits limits;
};

/// What runs for a range of m: after the range of the choice before it, up to `up_to`.
struct Choice {
  std::int64_t up_to = 0;
  Tactic tactic;
  bool bf16 = false;  ///< activations are bf16, else fp16
  /// The matmul kernel; with reconstruct + BLAS the reconstruct kernel, whose grid counts columns instead of rows.
  std::shared_ptr<const BoundKernel> kernel;
  LaunchShape shape;                 ///< of every launch of it; its blocks are kernel->grid()
  std::int64_t workspace_bytes = 0;  ///< that the kernel itself needs in this range

  bool blas() const { return tactic.kernel == nullptr; }
};

/// In ascending ranges, the last of which ends at options.max_m. `tuned` may be null. Throws kInvalidArgument for an
/// activation that GPUs do not have, and for options.tactic if that is not a tactic or cannot run.
std::vector<Choice> choose(const MatrixShape& matrix, const PlanOptions& options, const Gpu& gpu,
                           const TuningRecord* tuned);

/// Where the parts of a plan's workspace begin, without the BLAS's own at the end. The kernels' part comes first: it is
/// zero before the first launch and left so.
struct WorkspaceLayout {
  std::size_t x = 0;     ///< permuted or copied x
  std::size_t w = 0;     ///< a slice of W for the BLAS
  std::size_t blas = 0;  ///< the end of the above
  std::int64_t slice_columns = 0;
};
/// `more`: something follows, a workspace of the BLAS or low of LoRA.
WorkspaceLayout layout(const MatrixShape& matrix, std::int64_t max_m, const std::vector<Choice>& choices, bool more);

/// Why tactics of a record are not used: one text for each that this version does not know.
std::vector<std::string> unknown_tactics(const TuningRecord& record);

}  // namespace q4::choose
