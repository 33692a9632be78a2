// Successive halving over candidates with interleaved order.
#include "autotune/search.hpp"

#include <algorithm>
#include <q4/error.hpp>
#include <span>

namespace q4::autotune {
namespace {

constexpr double kFinalShare = 0.4;  // of the time after the default's probe, at most

class Search {
 public:
  Search(const std::vector<std::string>& ids, Candidates& candidates, const SearchOptions& options)
      : candidates_(candidates), options_(options), prepared_(ids.size()) {
    for (const std::string& id : ids) result_.contenders.push_back({id, {}, {}, 0, {}});
  }

  SearchResult run() {
    if (measure(0, &Contender::early)) {
      take_over_earlier();
      probe();
      halve();
      final();
    } else {
      result_.unmeasured = result_.contenders.size();
    }
    return std::move(result_);
  }

 private:
  Contender& at(std::size_t i) { return result_.contenders[i]; }

  /// False when the candidate is out.
  bool measure(std::size_t i, std::vector<double> Contender::*samples) {
    try {
      if (!prepared_[i] && !prepare(i)) return false;
      const double before = options_.seconds_left();
      (at(i).*samples).push_back(candidates_.sample(i));
      at(i).sample_s = before - options_.seconds_left();
      return true;
    } catch (const Error& e) {
      if (i == 0) throw;
      at(i).rejected = e.what();
      candidates_.release(i);
      return false;
    }
  }

  bool prepare(std::size_t i) {
    const bool special = i == 0 && options_.seconds_for_default;
    const Outlook outlook =
        candidates_.prepare(i, i == 0 ? 0 : best_us_, special ? options_.seconds_for_default : options_.seconds_left);
    prepared_[i] = outlook == Outlook::kFits;
    if (prepared_[i]) return true;
    result_.pruned += outlook == Outlook::kHopeless;
    result_.unmeasured += outlook == Outlook::kTooLong;
    candidates_.release(i);
    return false;
  }

  bool out_of_time() const { return options_.seconds_left() <= 0; }

  /// Enough rounds of the default and the `count` fastest to decide between them.
  double shortest_final_s(std::size_t count) const {
    double round = result_.contenders[0].sample_s;
    for (std::size_t i = 0; i < std::min(count, alive_.size()); ++i) round += result_.contenders[alive_[i]].sample_s;
    return round * static_cast<double>(kMinimumRounds);
  }

  void keep_fastest(std::size_t count) {
    std::stable_sort(alive_.begin(), alive_.end(), [&](auto a, auto b) { return at(a).us() < at(b).us(); });
    while (alive_.size() > count) drop(alive_.size() - 1);
  }

  void drop(std::size_t place) {
    candidates_.release(alive_[place]);
    alive_.erase(alive_.begin() + static_cast<std::ptrdiff_t>(place));
  }

  /// A winner needs its rounds: probing more than leaves time for them finds nothing.
  bool final_is_due(double whole_s) {
    if (alive_.empty()) return false;
    double round = 0;
    for (const std::size_t i : alive_) round = std::max(round, at(i).sample_s);
    round = at(0).sample_s + round * static_cast<double>(std::min(alive_.size(), options_.finalists));
    return options_.seconds_left() < std::min(kFinalShare * whole_s, 2 * round * static_cast<double>(kMinimumRounds));
  }

  /// What an earlier attempt measured is ranked by its time there, at the speed that the default has now.
  void take_over_earlier() {
    best_us_ = at(0).us();
    const auto earlier = [&](std::size_t i) { return i < options_.earlier_us.size() ? options_.earlier_us[i] : 0; };
    const double speed = earlier(0) > 0 ? best_us_ / earlier(0) : 1;
    for (std::size_t i = 1; i < result_.contenders.size(); ++i) {
      if (earlier(i) <= 0) continue;
      at(i).early = {earlier(i) * speed};
      at(i).sample_s = at(0).sample_s * at(i).us() / best_us_;
      best_us_ = std::min(best_us_, at(i).us());
      alive_.push_back(i);
    }
  }

  void probe() {
    const double whole_s = options_.seconds_left();
    bool probed = false;  // an attempt that goes on with an earlier one gets at least one probe further
    for (std::size_t i = 1; i < result_.contenders.size(); ++i) {
      if (!at(i).early.empty()) continue;
      if (i < options_.at_least_us.size() && options_.at_least_us[i] > best_us_) {
        ++result_.pruned;
        continue;
      }
      if (out_of_time() || (probed && final_is_due(whole_s))) {
        ++result_.unmeasured;
        continue;
      }
      if (!measure(i, &Contender::early)) continue;
      probed = true;
      alive_.push_back(i);
      best_us_ = std::min(best_us_, at(i).us());
    }
    for (std::size_t place = alive_.size(); place-- > 0;)
      if (at(alive_[place]).us() > best_us_ * options_.hopeless) drop(place);
  }

  /// Seconds of one more sample of each.
  double round_s() const {
    double seconds = result_.contenders[0].sample_s;
    for (const std::size_t i : alive_) seconds += result_.contenders[i].sample_s;
    return seconds;
  }

  void halve() {
    const auto fits = [&] { return round_s() + shortest_final_s(options_.finalists) < options_.seconds_left(); };
    for (int samples = 1; alive_.size() > options_.finalists && fits(); samples *= 2) {
      for (int s = 0; s < samples && fits(); ++s) round(&Contender::early, alive_);
      keep_fastest(std::max(options_.finalists, (alive_.size() + 1) / 2));
    }
    keep_fastest(options_.finalists);
    while (alive_.size() > 1 && shortest_final_s(alive_.size()) > options_.seconds_left()) drop(alive_.size() - 1);
  }

  /// Each of `who` once. Every other round runs backwards, so that nobody always follows the same neighbour.
  void round(std::vector<double> Contender::*samples, std::vector<std::size_t> who) {
    if (backwards_) std::reverse(who.begin(), who.end());
    backwards_ = !backwards_;
    for (const std::size_t i : who)
      if (!measure(i, samples)) std::erase(alive_, i);
  }

  void final() {
    // A few rounds decide nothing; the last samples may have been dearer than these will be.
    const bool fits = alive_.empty() || shortest_final_s(alive_.size()) <= 2 * options_.seconds_left();
    for (int r = 0; fits && r < options_.final_rounds && options_.seconds_left() > (r == 0 ? 0 : round_s()); ++r) {
      std::vector<std::size_t> who = {0};
      who.insert(who.end(), alive_.begin(), alive_.end());
      round(&Contender::final, who);
    }
    std::vector<Finalist> finalists = {{at(0).id, at(0).final}};
    for (const std::size_t i : alive_) {
      finalists.push_back({at(i).id, at(i).final});
      const bool faster = median(at(i).early) * (1 + kMinimumGain) < median(at(0).early);
      result_.undecided = result_.undecided || (faster && at(i).final.size() < kMinimumRounds);
    }
    const std::size_t chosen = choose(finalists);
    result_.winner = chosen == 0 ? 0 : alive_[chosen - 1];
  }

  Candidates& candidates_;
  const SearchOptions& options_;
  SearchResult result_;
  std::vector<char> prepared_;
  double best_us_ = 0;
  std::vector<std::size_t> alive_;  ///< challengers still in
  bool backwards_ = false;
};

}  // namespace

SearchResult search(const std::vector<std::string>& ids, Candidates& candidates, const SearchOptions& options) {
  return Search(ids, candidates, options).run();
}

}  // namespace q4::autotune
