// Medians, seeded bootstrap intervals and the rule that lets a challenger replace the default.
#include "autotune/statistics.hpp"

#include <algorithm>
#include <cstdint>
#include <functional>

namespace q4::autotune {
namespace {

constexpr int kResamples = 500;

/// splitmix64: enough for resampling, and the same everywhere.
class Random {
 public:
  std::size_t below(std::size_t limit) {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return static_cast<std::size_t>((z ^ (z >> 31)) % limit);
  }

 private:
  std::uint64_t state_ = 1;
};

}  // namespace

double median(std::vector<double> samples) {
  if (samples.empty()) return 0;
  const auto middle = samples.begin() + static_cast<std::ptrdiff_t>(samples.size() / 2);
  std::nth_element(samples.begin(), middle, samples.end());
  if (samples.size() % 2 == 1) return *middle;
  return (*middle + *std::max_element(samples.begin(), middle)) / 2;
}

Interval median_interval(std::span<const double> samples) {
  if (samples.empty()) return {};
  Random random;
  std::vector<double> medians(kResamples), drawn(samples.size());
  for (double& value : medians) {
    for (double& sample : drawn) sample = samples[random.below(samples.size())];
    value = median(drawn);
  }
  std::sort(medians.begin(), medians.end());
  const auto at = [&](double share) { return medians[static_cast<std::size_t>(share * (kResamples - 1))]; };
  return {median({samples.begin(), samples.end()}), at(0.025), at(0.975)};
}

Interval paired_gain(std::span<const double> base, std::span<const double> candidate) {
  const std::size_t rounds = std::min(base.size(), candidate.size());
  std::vector<double> gains(rounds);
  for (std::size_t i = 0; i < rounds; ++i) gains[i] = base[i] / candidate[i] - 1;
  return median_interval(gains);
}

std::size_t choose(std::span<const Finalist> finalists) {
  std::vector<std::size_t> better;  // than the default, beyond doubt
  for (std::size_t i = 1; i < finalists.size(); ++i) {
    if (finalists[i].us.size() < kMinimumRounds) continue;
    const Interval gain = paired_gain(finalists[0].us, finalists[i].us);
    if (gain.value > kMinimumGain && gain.low > 0) better.push_back(i);
  }
  if (better.empty()) return 0;
  const auto time = [&](std::size_t i) { return median(finalists[i].us); };
  const std::size_t fastest = *std::ranges::min_element(better, std::less(), time);
  std::size_t winner = fastest;
  for (const std::size_t i : better)
    if (time(i) <= time(fastest) * (1 + kTie) && finalists[i].id < finalists[winner].id) winner = i;
  return winner;
}

}  // namespace q4::autotune
