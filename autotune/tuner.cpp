// One shape: buckets in ascending m, then the crossover between the last direct and the first reconstructed bucket.
#include "autotune/tuner.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>
#include <utility>

#include "autotune/bracket.hpp"
#include "runtime/base/check.hpp"
#include "runtime/runtime.hpp"

namespace q4::autotune {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kSetupShare = 0.2;      // of the shape's time, for making copies beyond the fewest
constexpr double kCompileShare = 0.4;    // of what is left then; kernels that are cached take next to nothing
constexpr double kCrossoverShare = 0.1;  // kept back from the buckets
constexpr double kYardstickShare = 0.1;  // for the read floor and the dense BLAS, where they are asked for
constexpr double kFloorWorthS = 8;       // on a CPU the read floor takes a second or more, of a budget of so many
constexpr int kCrossoverRounds = 3;
constexpr double kSetUp = 1e-3;  // progress when the copies are there: any but 0

/// Expected cost of a bucket, relative: a fixed part and the arithmetic.
double weight(std::int64_t m, bool gpu) { return 1 + static_cast<double>(m) / (gpu ? 1024.0 : 64.0); }

/// The fastest of those that reconstruct W, or of those that do not; null: none was measured.
const Contender* fastest(const MeasuredBucket& bucket, bool reconstruct) {
  const Contender* best = nullptr;
  for (const Contender& c : bucket.found.contenders)
    if (is_reconstruct(c.id) == reconstruct && c.rejected.empty() && c.us() > 0 && (!best || c.us() < best->us()))
      best = &c;
  return best;
}

TunedBucket as_tuned(std::int64_t m, const Contender& c, double default_us) {
  const Interval us = median_interval(c.final.empty() ? c.early : c.final);
  return {m, c.id, us.value, us.low, us.high, default_us, 0};
}

class ShapeTuner {
 public:
  ShapeTuner(const Runtime& runtime, Device device, const Problem& problem, const TuneOptions& options)
      : runtime_(runtime), problem_(problem), options_(options), start_(Clock::now()) {
    report(0, 0, fmt::format("packing {}x{}", problem.k, problem.n));
    workload_.emplace(problem, options.activation);
    rig_.emplace(runtime, device, *workload_, options.m.back(), kSetupShare * options.seconds,
                 options.policy == "cold" && !options.compile_only);
    std::set<std::string> forbidden;
    for (const QuarantinedTactic& q : options.quarantined) forbidden.insert(q.tactic);
    space_.emplace(*rig_, options.m, options.activation, std::move(forbidden));
    tuned_.record.floor_us = options.floor_us_per_byte * problem.bytes(0);
    const bool wanted = rig_->gpu() ? !options.compile_only : options.yardsticks && options.seconds >= kFloorWorthS;
    if (tuned_.record.floor_us == 0 && wanted) measure_floor();  // on a GPU also a bound of the search
    for (const std::int64_t m : options.m) total_weight_ += weight(m, rig_->gpu());
  }

  Tuned run() {
    if (options_.compile_only) {
      space_->compile_ahead(
          *rig_, options_.m, likely(0), [&] { return options_.interrupted() ? 0 : 1e9; }, 0);
      tuned_.record.key = key_of(rig_->backend().info(), tuning_digest(rig_->backend().kernels_digest()), problem_,
                                 options_.activation, options_.policy);
      return std::move(tuned_);
    }
    if (rig_->gpu() && options_.compile_ahead) compile_ahead();
    tune_buckets();
    if (!skipped_.empty()) note_unmeasured("tactics: " + skipped_);
    auto& record = tuned_.record;
    record.key = key_of(rig_->backend().info(), tuning_digest(rig_->backend().kernels_digest()), problem_,
                        options_.activation, options_.policy);
    record.quarantined = options_.quarantined;
    std::optional<TunedBucket> last_direct;
    try {
      last_direct = find_crossover();
    } catch (const Error& e) {
      tuned_.failed = true;
      tuned_.notes.push_back(fmt::format("crossover: {}", e.what()));
    }
    for (const MeasuredBucket& b : buckets_) {
      if (last_direct && last_direct->m < b.m) record.buckets.push_back(*std::exchange(last_direct, std::nullopt));
      const bool reconstructs = record.reconstruct_from > 0 && b.m >= record.reconstruct_from;
      // A lone win of reconstruct + BLAS below a bucket that it lost is no crossover. Who else is the fastest was not
      // compared with the default in a final.
      const Contender* direct = &b.found.contenders[0];
      if (is_reconstruct(direct->id)) direct = fastest(b, false);
      const Contender& used = !reconstructs && is_reconstruct(b.winner().id) && direct ? *direct : b.winner();
      record.buckets.push_back(as_tuned(b.m, used, default_us(b)));
    }
    describe();
    if (options_.yardsticks) measure_yardsticks();
    tuned_.buckets = std::move(buckets_);
    return std::move(tuned_);
  }

 private:
  /// 0: it is quarantined, and the first contender is another one.
  double default_us(const MeasuredBucket& b) const {
    const Contender& first = b.found.contenders[0];
    return space_->is_default(first.id, b.m) ? first.us() : 0;
  }

  double seconds_left(double share_kept) const {
    if (options_.interrupted()) return 0;
    if (options_.yardsticks && !yardsticks_begun_) share_kept += kYardstickShare;
    return options_.seconds * (1 - share_kept) - std::chrono::duration<double>(Clock::now() - start_).count();
  }

  void report(double fraction, std::int64_t m, const std::string& stage) const {
    TuneProgress progress{fraction, m, 0, 0, stage};
    if (!buckets_.empty()) {
      progress.best_us = buckets_.back().winner().us();
      progress.default_us = buckets_.back().found.contenders[0].us();
    }
    options_.progress(progress);
  }

  void note_unmeasured(const std::string& what) {
    tuned_.notes.push_back(std::string(kNotMeasured) + ": " + what);
    auto& all = tuned_.record.provenance[kNotMeasured];
    all += (all.empty() ? "" : "; ") + what;
  }

  void compile_ahead() {
    report(kSetUp, 0, "compiling kernels");
    const double until = seconds_left(0) * (1 - kCompileShare);
    const CacheCounters past = runtime_.cache_counters();  // of the defaults, and of earlier shapes
    const double mean_s = past.compiled > 0 ? 1e-3 * past.compile_ms / static_cast<double>(past.compiled) : 0;
    const std::size_t missed = space_->compile_ahead(
        *rig_, options_.m, likely(0), [&] { return seconds_left(0) - until; }, mean_s);
    if (missed > 0) note_unmeasured(fmt::format("{} tactics: no time to compile them", missed));
  }

  /// What won at the m before, and what the neighbour has.
  std::vector<std::string> likely(std::int64_t m) const {
    std::vector<std::string> ids;
    if (!buckets_.empty()) ids.push_back(buckets_.back().winner().id);
    for (const LikelyTactic& l : options_.likely)
      if (m == 0 || m == l.m) ids.push_back(l.tactic);
    return ids;
  }

  void tune_buckets() {
    double weight_left = total_weight_;
    for (const std::int64_t m : options_.m) {
      const auto known = std::ranges::find(options_.known, m, &MeasuredBucket::m);
      if (known != options_.known.end()) {
        keep(*known);
        weight_left -= weight(m, rig_->gpu());
        continue;
      }
      const double left = seconds_left(kCrossoverShare), expected = weight(m, rig_->gpu());
      if (left < shortest_s(m)) {
        note_unmeasured(
            fmt::format("m = {} and above ({})", m, options_.interrupted() ? "interrupted" : "out of time"));
        return;
      }
      report(1 - weight_left / total_weight_, m, fmt::format("m = {}", m));
      if (!tune_bucket(m, seconds_left(0) - left * expected / weight_left)) return;
      weight_left -= expected;
    }
    report(1 - kCrossoverShare, 0, "crossover");
  }

  /// What the default alone will take: one run is checked, one is timed. The first bucket is always begun.
  double shortest_s(std::int64_t m) const {
    if (options_.interrupted()) return 1e9;
    if (buckets_.empty()) return -1e9;
    const MeasuredBucket& last = buckets_.back();
    const double scale = rig_->gpu() ? 1 : static_cast<double>(m) / static_cast<double>(last.m);
    return 1e-3 + 2e-6 * last.found.contenders[0].us() * scale;
  }

  /// Ends when `reserve` seconds are left for the rest of the shape.
  bool tune_bucket(std::int64_t m, double reserve) {
    const auto left = [&] { return seconds_left(0) - reserve; };
    TacticCandidates candidates(*rig_, space_->at(m, likely(m)), m, options_.activation, options_.about_to);
    SearchOptions options;
    options.seconds_left = left;
    if (options_.exhaustive)
      options.hopeless = 1.5, options.finalists = 32;
    else
      for (const std::string& id : candidates.ids()) options.at_least_us.push_back(bound_us(id));
    MeasuredBucket bucket{m, {}};
    try {
      bucket.found = search(candidates.ids(), candidates, options);
    } catch (const Error& e) {
      tuned_.failed = true;
      tuned_.notes.push_back(
          fmt::format("m = {}: the default tactic '{}' failed: {}", m, candidates.ids()[0], e.what()));
      return false;
    }
    if (const double mhz = options_.sm_clock_mhz(); mhz > 0) clocks_mhz_.push_back(mhz);
    options_.measured(bucket);
    keep(std::move(bucket));
    return true;
  }

  void keep(MeasuredBucket bucket) {
    const SearchResult& found = bucket.found;
    tuned_.pruned += found.pruned;
    if (found.unmeasured > 0)
      skipped_ += fmt::format("{}{} at m = {}", skipped_.empty() ? "" : ", ", found.unmeasured, bucket.m);
    for (const Contender& c : found.contenders) {
      if (!c.rejected.empty())
        tuned_.notes.push_back(fmt::format("m = {}: '{}' rejected: {}", bucket.m, c.id, c.rejected));
      if (!c.rejected.empty() || c.us() == 0) continue;
      ++tuned_.measured;
      known_us_[c.id] = std::min(*std::ranges::min_element(c.early), c.us());  // a burst is no bound
    }
    buckets_.push_back(std::move(bucket));
  }

  /// What a tactic cannot beat: its time at a smaller m, since more rows take no less; and for one that reconstructs W,
  /// reading the codes and writing W, at the rate of a kernel that only reads.
  double bound_us(const std::string& id) {
    constexpr double kNoise = 0.9;
    double bound = known_us_[id];
    if (is_reconstruct(id)) {
      const double dense = 2.0 * static_cast<double>(problem_.k) * static_cast<double>(problem_.n);
      if (rig_->gpu()) bound = std::max(bound, tuned_.record.floor_us * (1 + dense / problem_.bytes(0)));
    }
    return kNoise * bound;
  }

  /// Sets reconstruct_from; returns a bucket of its own for the direct tactic between two of the asked-for m, if any.
  std::optional<TunedBucket> find_crossover() {
    std::size_t first = buckets_.size();
    while (first > 0 && is_reconstruct(buckets_[first - 1].winner().id)) --first;
    if (first == buckets_.size()) return {};
    const MeasuredBucket& high = buckets_[first];
    const std::int64_t below = first == 0 ? 0 : buckets_[first - 1].m;
    tuned_.record.reconstruct_from = below + 1;
    const Contender* const direct = fastest(high, false);
    if (!direct || high.m - below <= 1) return {};

    TacticCandidates pair(*rig_, {direct->id, high.winner().id}, high.m, options_.activation, options_.about_to);
    pair.prepare(0), pair.prepare(1);
    std::map<std::int64_t, Contender> direct_at;
    std::map<std::int64_t, std::vector<double>> reconstruct_at;
    const auto second_wins = [&](std::int64_t m) {
      report(1 - kCrossoverShare / 2, m, fmt::format("crossover, m = {}", m));
      pair.check_results(0, m), pair.check_results(1, m);
      Contender& times = direct_at[m];
      times.id = direct->id;
      std::vector<double>& reconstruct = reconstruct_at[m];
      for (int r = 0; r < kCrossoverRounds; ++r) {
        times.final.push_back(pair.sample(0, m));
        reconstruct.push_back(pair.sample(1, m));
      }
      return median(reconstruct) < times.us();
    };
    const auto stop = [&] { return seconds_left(0) <= 0; };
    const Bracket found = bracket_crossover({below, high.m}, second_wins, stop);
    if (stop()) note_unmeasured(fmt::format("the crossover within ({}, {}]", found.low, found.high));
    tuned_.record.reconstruct_from = found.low + 1;
    if (found.low == below) return {};
    const std::string standard = space_->at(found.low, {})[0];
    const Contender& times = direct_at.at(found.low);
    if (is_reconstruct(standard)) return as_tuned(found.low, times, median(reconstruct_at.at(found.low)));
    if (standard == direct->id) return as_tuned(found.low, times, times.us());
    TacticCandidates both(*rig_, {standard, direct->id}, found.low, options_.activation, options_.about_to);
    SearchOptions options;
    options.seconds_left = [&] { return seconds_left(0); };
    const SearchResult last = search(both.ids(), both, options);  // the default competes here too
    return as_tuned(found.low, last.contenders[last.winner], last.contenders[0].us());
  }

  void describe() {
    auto& record = tuned_.record;
    tuned_.copies = rig_->copies();
    tuned_.cold_bytes = rig_->cold_bytes();
    for (const auto& [key, value] : options_.provenance) record.provenance[key] = value;
    record.provenance["copies"] = std::to_string(tuned_.copies);
    std::ranges::sort(clocks_mhz_);
    record.provenance["sm_clock_mhz"] =
        clocks_mhz_.empty() ? "unknown" : fmt::format("{:.0f}-{:.0f}", clocks_mhz_.front(), clocks_mhz_.back());
    tuned_.complete = !tuned_.failed && !record.provenance.count(kNotMeasured);
    if (buckets_.empty()) return;
    const MeasuredBucket& smallest = buckets_.front();
    record.math = is_reconstruct(smallest.winner().id) ? Math::kAuto : space_->math(smallest.winner().id, smallest.m);
    measure_math(smallest.m);
    // What also computes cannot be faster than what only reads: a neighbour disturbed that.
    const double floor = record.floor_us * problem_.bytes(smallest.m) / problem_.bytes(0);
    if (!rig_->gpu() && smallest.winner().us() < floor && seconds_left(0) > kFloorWorthS / 4) measure_floor();
    if (record.math == Math::kAuto && tuned_.half2_us != tuned_.fp32_us)
      record.math = tuned_.half2_us < tuned_.fp32_us ? Math::kHalf2 : Math::kFp32;
  }

  /// half2 against fp32 at one m, each in the default tactic of plans that ask for it, whoever won there.
  void measure_math(std::int64_t m) {
    const std::vector<std::string> ids = {space_->of_math(Math::kHalf2, m), space_->of_math(Math::kFp32, m)};
    if (ids[0] == ids[1] || space_->forbids(ids[0]) || space_->forbids(ids[1]) || seconds_left(0) <= 0) return;
    TacticCandidates pair(*rig_, ids, m, options_.activation, options_.about_to);
    pair.prepare(0), pair.prepare(1);
    std::vector<double> half2, fp32;
    for (int r = 0; r < kCrossoverRounds; ++r) half2.push_back(pair.sample(0, m)), fp32.push_back(pair.sample(1, m));
    tuned_.half2_us = median(half2), tuned_.fp32_us = median(fp32);
  }

  void measure_floor() {
    const double us = rig_->backend().read_floor_us(static_cast<std::size_t>(problem_.bytes(0)));
    double& floor = tuned_.record.floor_us;
    floor = floor > 0 ? std::min(floor, us) : us;
  }

  /// Beside the tactics, not among them: what W unquantized would take, in the time that is left.
  void measure_yardsticks() {
    yardsticks_begun_ = true;
    std::unique_ptr<Variant> dense;
    for (TunedBucket& b : tuned_.record.buckets) {
      if (seconds_left(0) <= 0 || b.us == 0) return;
      report(1 - kCrossoverShare / 4, b.m, fmt::format("dense BLAS, m = {}", b.m));
      options_.about_to({"dense BLAS", b.m});
      dense = rig_->prepare_dense(b.m, std::move(dense));
      if (!dense) return;
      std::vector<double> us;
      for (int r = 0; r < kCrossoverRounds; ++r) us.push_back(rig_->sample(*dense, b.m));
      b.dense_us = median(us);
      tuned_.record.provenance["dense"] = to_string(rig_->dense_type(b.m));
    }
  }

  Runtime runtime_;
  Problem problem_;
  const TuneOptions& options_;
  Clock::time_point start_;
  std::optional<Workload> workload_;
  std::optional<Rig> rig_;
  std::optional<TacticSpace> space_;
  double total_weight_ = 0;
  std::string skipped_;  ///< "2 at m = 1, 4 at m = 64": tactics without a probe
  std::vector<MeasuredBucket> buckets_;
  std::vector<double> clocks_mhz_;
  bool yardsticks_begun_ = false;
  std::map<std::string, double> known_us_;  ///< by tactic, at the largest m so far: more rows take no less
  Tuned tuned_;
};

}  // namespace

Tuned tune(const Runtime& runtime, Device device, const Problem& problem, const TuneOptions& options) {
  check(!options.m.empty() && std::is_sorted(options.m.begin(), options.m.end()) && options.m.front() > 0,
        "tune: options.m must hold ascending numbers of rows");
  return ShapeTuner(runtime, device, problem, options).run();
}

}  // namespace q4::autotune
