// Tunes one shape: the tactic of each bucket of m, half2 or fp32 math, and the m from which reconstruct + BLAS wins.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <q4/tuning.hpp>
#include <string>
#include <vector>

#include "autotune/candidates.hpp"
#include "autotune/measured.hpp"
#include "autotune/search.hpp"
#include "autotune/workload.hpp"

namespace q4::autotune {

struct TuneProgress {
  double fraction = 0;  ///< of this shape, by expected time; 0: the copies of the weights are being made
  std::int64_t m = 0;
  double best_us = 0, default_us = 0;  ///< of the last bucket that is done; 0: none yet
  std::string stage;                   ///< "packing 4096 x 28672", "m = 64", "crossover"
};

/// What did well at this m elsewhere.
struct LikelyTactic {
  std::int64_t m = 0;
  std::string tactic;
};

struct TuneOptions {
  std::vector<std::int64_t> m;  ///< buckets, ascending
  DType activation = DType::kF16;
  std::string policy = "cold";   ///< or "warm": one copy of the weights
  double seconds = 60;           ///< for this shape, set-up included
  bool exhaustive = false;       ///< probe everything, prune nothing, and take many to the final
  bool yardsticks = false;       ///< time what only reads (on a GPU: always) and the dense BLAS too
  double floor_us_per_byte = 0;  ///< of this device, if known: its measurement is spared
  bool compile_ahead = true;
  bool compile_only = false;  ///< leave the kernels of all tactics in the cache, and measure nothing
  std::vector<QuarantinedTactic> quarantined = {};  ///< never tried; copied into the record
  std::vector<MeasuredBucket> known = {};           ///< of an earlier attempt: what is complete is not measured again
  std::vector<SlowTactic> slow = {};                ///< likewise
  std::vector<LikelyTactic> likely = {};            ///< tried first, in this order
  std::map<std::string, std::string> provenance;    ///< copied into the record
  std::function<bool()> interrupted = [] { return false; };
  std::function<void(const TuneProgress&)> progress = [](const TuneProgress&) {};
  std::function<void(const MeasuredBucket&)> measured = [](const MeasuredBucket&) {};
  StepWatch about_to = [](const Step&) {};                    ///< before each launch of a tactic
  std::function<double()> sm_clock_mhz = [] { return 0.0; };  ///< 0: unknown
};

struct Tuned {
  TuningRecord record;             ///< without buckets when nothing was measured
  bool failed = false;             ///< a default tactic raised an error or gave wrong results: see notes
  bool complete = false;           ///< every bucket and every candidate was measured
  std::vector<std::string> notes;  ///< what was rejected, and what was not measured
  /// Best direct tactic in each math at the smallest m; 0: there is none, or it was not measured.
  double half2_us = 0, fp32_us = 0;
  std::size_t measured = 0, pruned = 0;  ///< tactics, over all buckets; pruned: a bound says that they cannot win
  std::vector<MeasuredBucket> buckets;   ///< by ascending m; the default serves others
  std::vector<SlowTactic> slow;
  std::size_t copies = 0, cold_bytes = 0;
};

/// Nothing begins whose expected time, going by what was measured, exceeds the time that is left. The runtime should
/// have no tuning files of its own in use, or its tuned tactic counts as the default. Throws DeviceLost when a tactic
/// took the device with it.
Tuned tune(const Runtime& runtime, Device device, const Problem& problem, const TuneOptions& options);

/// What tune() would have returned if it had ended after these buckets, from another process: `missing` says why there
/// are no more.
Tuned partly_tuned(const TuningKey& key, const TuneOptions& options, std::vector<MeasuredBucket> buckets,
                   const std::string& missing);

/// The key under which tune() files its record. `kernels`: tuning_digest() of the device.
TuningKey key_of(const DeviceInfo& info, const std::string& kernels, const Problem& problem, DType activation,
                 const std::string& policy);
/// Whether a record of an earlier run makes tune() unnecessary: complete, every m measured.
bool covers(const TuningRecord& record, const std::vector<std::int64_t>& m);
/// Takes over the buckets of an older record of the same key for the m that `record` has none of, and the crossover
/// above them.
void complete_from(const TuningRecord& older, TuningRecord& record);
/// 0 for the same problem, else more the less alike they are: by the logarithms of k and n, the group and act-order.
double distance(const TuningKey& a, const TuningKey& b);
/// What won in the most similar record of the same device, kernels, policy and activation type.
std::vector<LikelyTactic> likely_from(const TuningDb& db, const TuningKey& key);
/// The same of a shape that was just measured: at each m, what came close to the winner, fastest first.
std::vector<LikelyTactic> likely_from(const Tuned& tuned);

}  // namespace q4::autotune
