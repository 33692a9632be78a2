// How q4-verify decides that an output is right.
#include "tools/common/compare.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "tools/common/weights.hpp"

namespace q4::tools {

std::vector<std::byte> random_rows(DType type, std::int64_t count) {
  std::vector<std::byte> rows(static_cast<std::size_t>(count) * size_of(type));
  std::mt19937_64 random(1);
  std::normal_distribution<double> normal;
  for (std::int64_t i = 0; i < count; ++i) set_value(type, rows.data(), i, normal(random));
  return rows;
}

std::set<std::int64_t> sample_columns(std::int64_t k, std::int64_t n, std::int64_t m, std::int64_t wanted) {
  constexpr std::int64_t kBudget = 200'000'000;  // products a matrix: a fraction of a second
  if (wanted < 0) wanted = std::max<std::int64_t>(64, kBudget / (k * (m + 1)));
  if (wanted == 0 || wanted > n) wanted = n;
  std::vector<std::int64_t> all(static_cast<std::size_t>(n));
  std::iota(all.begin(), all.end(), 0);
  if (wanted < n && n > 16) {  // the ends stay in front, the rest is shuffled
    std::rotate(all.begin(), all.end() - 8, all.end());
    std::shuffle(all.begin() + 16, all.end(), std::mt19937_64(2));
  }
  return {all.begin(), all.begin() + wanted};
}

void add_suspects(DType type, const std::vector<std::byte>& out, std::int64_t m, std::int64_t n,
                  std::set<std::int64_t>& columns) {
  int added = 0;
  for (std::int64_t i = 0; i < m * n && added < 64; ++i) {
    if (!std::isfinite(value_of(type, out.data(), i)) && columns.insert(i % n).second) ++added;
  }
}

double relative_error(DType type, const std::vector<std::byte>& out, const std::vector<double>& reference,
                      std::int64_t m, std::int64_t n, const std::vector<std::int64_t>& columns) {
  // Where the type's numbers begin to be normal, and the distance of those below.
  const double normal = std::ldexp(1.0, type == DType::kF16 ? -14 : -126);
  const double step = std::ldexp(normal, type == DType::kF16 ? -10 : type == DType::kBF16 ? -7 : -23);
  double difference = 0, norm = 0;
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::size_t j = 0; j < columns.size(); ++j) {
      const double got = value_of(type, out.data(), i * n + columns[j]);
      const double want = reference[static_cast<std::size_t>(i) * columns.size() + j];
      std::uint32_t rounded = 0;
      set_value(type, &rounded, 0, want);
      const double representable = value_of(type, &rounded, 0);
      if (!std::isfinite(representable)) {
        if (got != representable && !(std::isnan(got) && std::isnan(representable))) return INFINITY;
        continue;
      }
      if (!std::isfinite(got)) return INFINITY;
      double off = std::fabs(got - want);
      if (std::fabs(want) < normal) off = std::max(0.0, off - 1.001 * step / 2);  // the sum itself is inexact, too
      difference += off * off;
      norm += want * want;
    }
  }
  if (difference == 0) return 0;
  return std::sqrt(difference / norm);  // norm 0: infinite
}

}  // namespace q4::tools
