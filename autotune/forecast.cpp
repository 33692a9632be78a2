// Scales times by rows, and takes geometric steps towards many rows.
#include "autotune/forecast.hpp"

#include <algorithm>

namespace q4::autotune {
namespace {

constexpr double kNoise = 0.9;        // a time that was measured may be so much longer than the next one
constexpr double kSmallShare = 0.05;  // of the time that is left: what may begin without a look at fewer rows
constexpr double kSmallS = 0.02;
constexpr std::int64_t kEnough = 8;  // a time on an eighth of the rows says enough to begin

std::string path_of(const std::string& tactic) { return tactic.substr(0, tactic.find(' ')); }

void keep_least(std::map<std::int64_t, double>& times, std::int64_t m, double us) {
  const auto [place, is_new] = times.try_emplace(m, us);
  if (!is_new) place->second = std::min(place->second, us);
}

}  // namespace

void Forecast::note(const std::string& tactic, std::int64_t m, double us) {
  if (!(us > 0)) return;
  keep_least(by_tactic_[tactic], m, us);
  keep_least(by_path_[path_of(tactic)], m, us);
}

void Forecast::note(const SlowTactic& slow) {
  double& known = at_least_[slow.tactic][slow.m];
  known = std::max(known, slow.at_least_us);
}

double Forecast::scaled(const Times& times, std::int64_t m) {
  if (times.empty()) return 0;
  const auto above = times.upper_bound(m);
  if (above == times.begin()) return above->second;  // known on more rows only: fewer take no more
  const auto& [rows, us] = *std::prev(above);
  return us * static_cast<double>(m) / static_cast<double>(rows);
}

double Forecast::expected_us(const std::string& tactic, std::int64_t m) const {
  double expected = 0;
  if (const auto own = by_tactic_.find(tactic); own != by_tactic_.end()) {
    expected = scaled(own->second, m);
  } else if (const auto path = by_path_.find(path_of(tactic)); path != by_path_.end()) {
    expected = scaled(path->second, m);
  }
  const auto slow = at_least_.find(tactic);
  return slow == at_least_.end() ? expected : std::max(expected, at_least_us(tactic, m) / kNoise);
}

double Forecast::at_least_us(const std::string& tactic, std::int64_t m) const {
  double bound = 0;
  for (const auto* all : {&by_tactic_, &at_least_})
    if (const auto own = all->find(tactic); own != all->end())
      for (const auto& [rows, us] : own->second)
        if (rows <= m) bound = std::max(bound, us);
  return kNoise * bound;
}

std::int64_t Forecast::rows_known(const std::string& tactic, std::int64_t m) const {
  const auto own = by_tactic_.find(tactic);
  if (own == by_tactic_.end()) return 0;
  const auto above = own->second.upper_bound(m);
  return above == own->second.begin() ? 0 : std::prev(above)->first;
}

Outlook approach(Forecast& forecast, const std::string& tactic, std::int64_t m, double runs, double best_us,
                 const std::function<double()>& seconds_left, const std::function<double(std::int64_t)>& time_at) {
  const auto expected_s = [&](std::int64_t rows) { return 1e-6 * runs * forecast.expected_us(tactic, rows); };
  for (;;) {
    const std::int64_t known = forecast.rows_known(tactic, m);
    const double expected = expected_s(m), left = seconds_left();
    if (left <= 0) return Outlook::kTooLong;
    const bool small = expected < std::max(kSmallS, kSmallShare * left);
    if (expected > 0 && expected < left && (small || kEnough * known >= m)) return Outlook::kFits;
    std::int64_t rows = 4 * known;
    if (known == 0) rows = expected > 0 ? std::max<std::int64_t>(1, m / kEnough) : 1;
    if (rows >= m) rows = 2 * known;
    if (rows >= m || rows == 0) return expected < left ? Outlook::kFits : Outlook::kTooLong;  // no fewer rows say more
    if (expected_s(rows) >= left) return Outlook::kTooLong;
    forecast.note(tactic, rows, time_at(rows));
    if (best_us > 0 && forecast.at_least_us(tactic, m) > best_us) return Outlook::kHopeless;
  }
}

}  // namespace q4::autotune
