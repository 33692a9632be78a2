// Runtime::warmup: every kernel that a set of plans will load, found or compiled ahead and in parallel.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <q4/cache.hpp>
#include <q4/matmul.hpp>
#include <q4/moe.hpp>
#include <string>
#include <vector>

namespace q4 {

/// What decides which kernels a matrix needs. Limits as for QuantizedMatrix.
struct WarmupShape {
  std::int64_t k = 0, n = 0;
  std::int64_t group_size = 128;  ///< rows that share a scale; -1: one group
  bool act_order = false;         ///< with groups of group_size rows each
  bool bias = false;
  bool awq = false;  ///< its packing kernel is another
  /// Loaded with Storage::kReuse from tensors on the device: the kernels are others where scales stay in place.
  bool in_place = false;
  friend bool operator==(const WarmupShape&, const WarmupShape&) = default;
};

/// A layer of experts and its plan. Limits as for QuantizedExperts and MoePlan.
struct WarmupExperts {
  std::int64_t experts = 0;
  std::int64_t k = 0, width = 0;  ///< W13 is k x 2 width, k x width with MoeActivation::kNone
  std::int64_t n = 0;             ///< W2 is width x n; 0: k
  std::int64_t group_size = 128;  ///< as in WarmupShape, as are the others
  bool act_order = false, bias = false, awq = false;
  MoeOptions plan = {};  ///< as it will be made: max_tokens, topk, dtype, activation, ...
};

struct WarmupOptions {
  /// Empty: Runtime::best_device(), which must be a GPU: kNotFound says why there is none. The CPU, when it is named,
  /// has nothing to compile: the report is empty and complete.
  std::optional<Device> device = std::nullopt;
  /// As the plans will be made: max_m, activation and whatever else chooses kernels. For a checkpoint's layers of
  /// experts max_m is max_tokens, with SiLU(gate) up between; of warmup_experts() each layer says it itself.
  PlanOptions plan = {};
  /// Kernels that are looked up or compiled at a time, by threads of lowered priority; 0: as many as the affinity mask
  /// and the cgroup's quota allow.
  int threads = 0;
  /// Seconds from the call on after which no further kernel is begun; 0: none. What is begun is finished.
  double deadline_s = 0;
  /// After each kernel, on the calling thread, while no lock is held. `total` does not change.
  std::function<void(std::size_t done, std::size_t total, const CacheEvent& kernel)> progress = {};
  /// Asked on the calling thread before the first kernel and at least every 50 ms; true: no further kernel is begun.
  std::function<bool()> cancel = {};
};

struct WarmupReport {
  std::vector<CacheEvent> kernels;  ///< in the order in which they were done; a failed one carries its error
  std::size_t skipped = 0;          ///< not begun: past the deadline, or cancelled
  bool cancelled = false, past_deadline = false;
  double ms = 0;  ///< of the whole call, without opening the driver and the device

  bool complete() const { return skipped == 0 && count(CacheLayer::kNone) == 0; }
  std::size_t count(CacheLayer layer) const {
    std::size_t found = 0;
    for (const auto& kernel : kernels) found += kernel.layer == layer;
    return found;
  }
};

}  // namespace q4
