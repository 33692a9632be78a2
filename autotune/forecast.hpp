// What times on few rows say about more rows: how long a run will take, and what a tactic cannot beat.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>

namespace q4::autotune {

/// A tactic that was stopped at the end of the time before it had answered: it takes at least so long.
struct SlowTactic {
  std::int64_t m = 0;
  std::string tactic;
  double at_least_us = 0;
  friend bool operator==(const SlowTactic&, const SlowTactic&) = default;
};

/// The times of one shape, by tactic and number of rows.
class Forecast {
 public:
  void note(const std::string& tactic, std::int64_t m,
            double us);  ///< one run took so long; the least of several counts
  void note(const SlowTactic& slow);

  /// Microseconds of one run on m rows, if the time grows no faster than the rows: from the most rows up to m on which
  /// this tactic was timed, else on which the fastest tactic of the same path was. 0: nothing is known.
  double expected_us(const std::string& tactic, std::int64_t m) const;
  /// More rows take no less time: what was measured on fewer, less a margin for noise. 0: nothing is known.
  double at_least_us(const std::string& tactic, std::int64_t m) const;
  /// The most rows, up to m, on which it was timed; 0: none.
  std::int64_t rows_known(const std::string& tactic, std::int64_t m) const;

 private:
  using Times = std::map<std::int64_t, double>;
  static double scaled(const Times& times, std::int64_t m);

  std::map<std::string, Times> by_tactic_, by_path_;  ///< a path is a tactic's first word
  std::map<std::string, Times> at_least_;
};

enum class Outlook {
  kFits,      ///< the runs are expected to end in the time that is left
  kHopeless,  ///< on fewer rows it is already slower than what it would have to beat
  kTooLong,
};

/// Decides whether `runs` runs of a tactic on m rows may begin. Where their expected time is not small against the time
/// that is left, `time_at` times one run on fewer rows first (1, or four times what is known, and so on), which costs
/// little and says more; each of these begins only if it is expected to fit as well.
/// best_us: the time that the tactic has to beat, 0: none.
Outlook approach(Forecast& forecast, const std::string& tactic, std::int64_t m, double runs, double best_us,
                 const std::function<double()>& seconds_left, const std::function<double(std::int64_t)>& time_at);

}  // namespace q4::autotune
