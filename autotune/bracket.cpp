// Bisection over m on a logarithmic scale.
#include "autotune/bracket.hpp"

#include <algorithm>
#include <cmath>

namespace q4::autotune {

Bracket bracket_crossover(Bracket known, const std::function<bool(std::int64_t)>& second_wins,
                          const std::function<bool(std::int64_t)>& stop) {
  while (known.high - known.low > std::max<std::int64_t>(1, known.low / 8)) {
    const double product = static_cast<double>(std::max<std::int64_t>(known.low, 1)) * static_cast<double>(known.high);
    const auto middle = std::clamp(std::llround(std::sqrt(product)), known.low + 1LL, known.high - 1LL);
    if (stop(middle)) break;
    (second_wins(middle) ? known.high : known.low) = middle;
  }
  return known;
}

}  // namespace q4::autotune
