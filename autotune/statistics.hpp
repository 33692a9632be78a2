// What a set of timings allows us to say: medians, bootstrap intervals, and who wins.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace q4::autotune {

/// Middle value; the mean of the two middle ones for an even count, 0 for none.
double median(std::vector<double> samples);

struct Interval {
  double value = 0, low = 0, high = 0;
};

/// Median with its 95% percentile-bootstrap interval. The same samples give the same interval: resampling is seeded.
Interval median_interval(std::span<const double> samples);

/// How much faster `candidate` is than `base`: median of base[i] / candidate[i] - 1 over rounds i in which both were
/// measured one after the other, with its 95% bootstrap interval. Pairs cancel drift of the clock and the neighbours.
Interval paired_gain(std::span<const double> base, std::span<const double> candidate);

/// One finalist: its canonical id and its time in each round of the final.
struct Finalist {
  std::string id;
  std::vector<double> us;
};

/// A challenger replaces the default only with this gain, an interval that excludes zero, and this many rounds.
constexpr double kMinimumGain = 0.02;
constexpr std::size_t kMinimumRounds = 5;
/// Challengers whose medians lie this close to the fastest one's are the same speed: the lowest id wins, so that ranks
/// agree.
constexpr double kTie = 0.01;

/// Index of the winner. finalists[0] is the default; all have the same number of rounds.
std::size_t choose(std::span<const Finalist> finalists);

}  // namespace q4::autotune
