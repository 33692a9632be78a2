// Compiles the kernels of shapes for GPUs that are not here.
#pragma once

#include <cstdint>
#include <memory>
#include <q4/device.hpp>
#include <q4/tuning.hpp>
#include <q4/warmup.hpp>
#include <string>
#include <vector>

#include "autotune/workload.hpp"
#include "kernels/device_limits.h"
#include "runtime/cache/kernel_cache.hpp"
#include "runtime/jit/source.hpp"

namespace q4::tools {

/// One kind of GPU. What a plan chooses depends on the number of SMs too, so an architecture stands for several.
struct Target {
  std::string arch;  ///< "sm_90a"
  std::string name;  ///< "H100, H200"
  Limits limits;
  BackendKind kind = BackendKind::kCuda;
  int warp_size = 32;
};

/// "sm_90a,sm_80": every GPU of those in the built-in list; "sm_90a/114": that number of SMs alone. Throws
/// kInvalidArgument with the architectures there are.
std::vector<Target> parse_targets(const std::string& text);
const std::vector<Target>& all_targets();

/// As a device of that target asks for it.
cache::KernelKey key_of(const std::string& arch, const jit::Source& source);

struct CrossOptions {
  std::int64_t max_m = 1;
  DType activation = DType::kF16;
  bool bias = false;
  bool in_place = false;             ///< loaded with Storage::kReuse
  const TuningDb* tuning = nullptr;  ///< also what its nearest record of the same architecture chose
};

/// Finds in `cache`, or compiles into it, what QuantizedMatrix, MatmulPlan and column_remap load for one shape on one
/// target, and what layers of experts load. Reused for several shapes: `kernels` counts what they need, `compiled` what was not found.
class CrossCompiler {
 public:
  CrossCompiler(const Target& target, cache::KernelCache& cache);
  ~CrossCompiler();
  /// Throws what compiling throws, or in mode require-prebuilt kNotFound.
  void add(const autotune::Problem& problem, const CrossOptions& options);
  /// What add() asks for, without asking: repeats are possible.
  std::vector<jit::Source> sources(const autotune::Problem& problem, const CrossOptions& options);
  /// The same for a layer of experts: what QuantizedExperts and MoePlan load.
  void add(const WarmupExperts& layer, const TuningDb* tuning = nullptr);
  std::vector<jit::Source> sources(const WarmupExperts& layer, const TuningDb* tuning = nullptr);
  std::size_t kernels() const;
  std::size_t compiled() const;
  std::size_t tuned() const { return tuned_; }  ///< shapes that a tuning record was used for

 private:
  struct Impl;
  std::size_t tuned_ = 0;
  std::unique_ptr<Impl> impl_;
};

}  // namespace q4::tools
