// Picks one of many candidates by timing: one probe each, successive halving, and a final that pairs every round.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "autotune/forecast.hpp"
#include "autotune/statistics.hpp"

namespace q4::autotune {

struct Contender {
  std::string id;             ///< canonical: the tactic's text
  std::vector<double> early;  ///< samples of the probe and the halving
  std::vector<double> final;  ///< one a round of the final; empty: eliminated before
  double sample_s = 0;        ///< the cost of its last sample on seconds_left()'s clock
  std::string rejected;       ///< why it is out: wrong results, or the error it raised

  /// Best knowledge of its time: the final's median, else the earlier samples'; 0 when never measured.
  double us() const { return median(final.empty() ? early : final); }
};

struct SearchOptions {
  std::size_t finalists = 4;  ///< challengers in the final, the default not counted
  int final_rounds = 15;      ///< at most; kMinimumRounds are needed to replace the default
  double hopeless = 2.0;      ///< a probe this many times the best one's ends a candidate at once
  /// By candidate, a time in microseconds that it cannot beat: pruned when another one is already faster. Empty:
  /// unknown.
  std::vector<double> at_least_us;
  /// By candidate, its time in an earlier attempt: it is ranked without another probe. 0 or absent: there is none.
  std::vector<double> earlier_us;
  /// Time that may still be spent, read between measurements, and how their cost is learnt. 0: end with what there is.
  std::function<double()> seconds_left = [] { return 1e9; };
  /// The same for the default, without which nothing can be said; empty: seconds_left.
  std::function<double()> seconds_for_default;
};

struct SearchResult {
  std::vector<Contender> contenders;  ///< in the order given; [0] is the default, whose us() is 0 if it did not fit
  std::size_t winner = 0;
  std::size_t pruned = 0;      ///< candidates that could not win by at_least_us
  std::size_t unmeasured = 0;  ///< candidates that no time was left to probe
  bool undecided = false;      ///< a challenger looks faster, and no time was left for the final
};

/// What is searched, by index. prepare() and sample() throw q4::Error to reject a candidate for good.
class Candidates {
 public:
  virtual ~Candidates() = default;
  /// Once, before its first sample: compile, allocate, check the results. Anything but kFits: it did not do so, because
  /// the candidate cannot beat best_us (0: nothing to beat), or is not expected to end in the time that is left.
  virtual Outlook prepare(std::size_t index, double best_us, const std::function<double()>& seconds_left) = 0;
  virtual double sample(std::size_t index) = 0;  ///< microseconds of one run
  virtual void release(std::size_t index) = 0;   ///< it will not be sampled again
};

/// ids[0] is the default: measured first, in every final, replaced only by choose()'s rule. Its Error is not caught: if
/// the default does not work, nothing can be said.
SearchResult search(const std::vector<std::string>& ids, Candidates& candidates, const SearchOptions& options);

}  // namespace q4::autotune
