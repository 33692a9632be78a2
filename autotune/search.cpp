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
      : candidates_(candidates), options_(options) {
    for (const std::string& id : ids) result_.contenders.push_back({id, {}, {}, 0, {}});
  }

  SearchResult run() {
    probe();
    halve();
    final();
    return std::move(result_);
  }

 private:
  Contender& at(std::size_t i) { return result_.contenders[i]; }

  /// False when the candidate is out.
  bool measure(std::size_t i, std::vector<double> Contender::*samples) {
    try {
      if (at(i).early.empty()) candidates_.prepare(i);
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

  void probe() {
    measure(0, &Contender::early);
    double best = at(0).us();
    const double whole_s = options_.seconds_left();
    for (std::size_t i = 1; i < result_.contenders.size(); ++i) {
      if (out_of_time() || final_is_due(whole_s)) {
        result_.unmeasured = result_.contenders.size() - i;
        break;
      }
      if (i < options_.at_least_us.size() && options_.at_least_us[i] > best) {
        ++result_.pruned;
        continue;
      }
      if (!measure(i, &Contender::early)) continue;
      alive_.push_back(i);
      best = std::min(best, at(i).us());
    }
    for (std::size_t place = alive_.size(); place-- > 0;)
      if (at(alive_[place]).us() > best * options_.hopeless) drop(place);
  }

  void halve() {
    const auto final_fits = [&] { return shortest_final_s(options_.finalists) < options_.seconds_left(); };
    for (int samples = 1; alive_.size() > options_.finalists && final_fits(); samples *= 2) {
      for (int s = 0; s < samples; ++s) round(&Contender::early, alive_);
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
    if (!alive_.empty() && shortest_final_s(alive_.size()) > 2 * options_.seconds_left()) return;
    for (int r = 0; r < options_.final_rounds && !out_of_time(); ++r) {
      std::vector<std::size_t> who = {0};
      who.insert(who.end(), alive_.begin(), alive_.end());
      round(&Contender::final, who);
    }
    std::vector<Finalist> finalists = {{at(0).id, at(0).final}};
    for (const std::size_t i : alive_) finalists.push_back({at(i).id, at(i).final});
    const std::size_t chosen = choose(finalists);
    result_.winner = chosen == 0 ? 0 : alive_[chosen - 1];
  }

  Candidates& candidates_;
  const SearchOptions& options_;
  SearchResult result_;
  std::vector<std::size_t> alive_;  ///< challengers still in
  bool backwards_ = false;
};

}  // namespace

SearchResult search(const std::vector<std::string>& ids, Candidates& candidates, const SearchOptions& options) {
  return Search(ids, candidates, options).run();
}

}  // namespace q4::autotune
