// Tunes one shape: the tactic of each bucket of m, half2 or fp32 math, and the m from which reconstruct + BLAS wins.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <q4/tuning.hpp>
#include <string>
#include <vector>

#include "autotune/workload.hpp"

namespace q4::autotune {

struct TuneProgress {
  double fraction = 0;  ///< of this shape, by expected time
  std::int64_t m = 0;
  double best_us = 0, default_us = 0;  ///< of the last bucket that is done; 0: none yet
  std::string stage;                   ///< "packing 4096 x 28672", "m = 64", "crossover"
};

struct TuneOptions {
  std::vector<std::int64_t> m;  ///< buckets, ascending
  DType activation = DType::kF16;
  double seconds = 60;                            ///< for this shape, set-up included
  std::map<std::string, std::string> provenance;  ///< copied into the record
  std::function<bool()> interrupted = [] { return false; };
  std::function<void(const TuneProgress&)> progress = [](const TuneProgress&) {};
};

struct Tuned {
  TuningRecord record;             ///< without buckets when nothing was measured
  bool failed = false;             ///< a default tactic raised an error or gave wrong results: see notes
  bool complete = false;           ///< every bucket and every candidate was measured
  std::vector<std::string> notes;  ///< what was rejected, and what was not measured
  /// Best direct tactic in each math at the smallest m; 0: there is none, or it was not measured.
  double half2_us = 0, fp32_us = 0;
  std::size_t measured = 0, pruned = 0;  ///< tactics, over all buckets; pruned: too slow at a smaller m to win
  std::size_t copies = 0, cold_bytes = 0;
};

/// The runtime should have no tuning files of its own in use, or its tuned tactic counts as the default.
Tuned tune(const Runtime& runtime, Device device, const Problem& problem, const TuneOptions& options);

/// The key under which tune() files its record.
TuningKey key_of(const DeviceInfo& info, const Problem& problem, DType activation);
/// Whether a record of an earlier run makes tune() unnecessary: same kernels, complete, every m measured.
bool covers(const TuningRecord& record, const std::vector<std::int64_t>& m, const std::string& kernels);

}  // namespace q4::autotune
