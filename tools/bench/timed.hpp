// Samples until there are enough or the time is over.
#pragma once

#include <chrono>
#include <vector>

#include "autotune/statistics.hpp"

namespace q4::tools {

/// The median of 25 samples, or of as many (3 at least) as `seconds` allow.
template <class F>
autotune::Interval timed(const F& sample, double seconds) {
  constexpr int kMostSamples = 25, kFewestSamples = 3;
  const auto start = std::chrono::steady_clock::now();
  sample();  // the first one also learns how long a run takes
  std::vector<double> us;
  while (us.size() < kFewestSamples ||
         (us.size() < kMostSamples &&
          std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < seconds))
    us.push_back(sample());
  return autotune::median_interval(us);
}

}  // namespace q4::tools
