// What was measured of one shape: as a tuning record, and as text from which a later run goes on.
#pragma once

#include <cstdint>
#include <optional>
#include <q4/tuning.hpp>
#include <string>
#include <vector>

#include "autotune/search.hpp"

namespace q4::autotune {

/// In the provenance of a record: what no time was left for, which a resumed run completes.
inline constexpr const char* kNotMeasured = "not measured";
/// Likewise: the times of an unfinished search, for a resumed run alone (unfinished_text()).
inline constexpr const char* kUnfinished = "unfinished";

/// All that was found at one m.
struct MeasuredBucket {
  std::int64_t m = 0;
  SearchResult found;
  bool default_ran = true;     ///< contenders[0] is what an untuned plan runs: it is not quarantined
  std::size_t uncompiled = 0;  ///< tactics that no time was left to compile
  /// The line of the record that an earlier run wrote, where that still holds.
  std::optional<TunedBucket> earlier = {};

  const Contender& winner() const { return found.contenders[found.winner]; }
  double default_us() const { return default_ran ? found.contenders[0].us() : 0; }
  /// Nothing is left to be done at this m.
  bool complete() const { return found.unmeasured == 0 && uncompiled == 0 && !found.undecided; }
};

/// The fastest of those that reconstruct W, or of those that do not; null: none was measured.
const Contender* fastest(const MeasuredBucket& bucket, bool reconstruct);

/// A line of a record: the contender's median time with its interval.
TunedBucket as_tuned(std::int64_t m, const Contender& contender, double default_us);

/// Position of the first bucket from which reconstruct + BLAS wins every larger one; buckets.size(): there is none.
std::size_t first_reconstructed(const std::vector<MeasuredBucket>& buckets);

/// Sets the record's buckets, by ascending m. `last_direct`: one of its own between two of them, for the direct tactic
/// below record.reconstruct_from.
void fill_buckets(TuningRecord& record, const std::vector<MeasuredBucket>& buckets,
                  std::optional<TunedBucket> last_direct);

/// Adds to what a record says is not measured.
void note_not_measured(TuningRecord& record, const std::string& what);

/// What an earlier run knew of a shape.
struct Resumed {
  std::vector<MeasuredBucket> known;
  std::vector<SlowTactic> slow;
};
std::string unfinished_text(const std::vector<MeasuredBucket>& buckets, const std::vector<SlowTactic>& slow);
/// From the record of the same key: of a complete one its buckets, of an unfinished one those and the times of the
/// other tactics. Nothing where it says too little (a record of an older version, or one that a person changed).
Resumed resume(const TuningRecord& record);

}  // namespace q4::autotune
