// One shape: buckets in ascending m, then the crossover between the last direct and the first reconstructed bucket.
#include "autotune/tuner.hpp"

#include <algorithm>
#include <chrono>
#include <optional>

#include "autotune/bracket.hpp"
#include "autotune/moe_tuner.hpp"
#include "autotune/yardsticks.hpp"
#include "runtime/base/check.hpp"
#include "runtime/runtime.hpp"
#include "runtime/tuning_key.hpp"

namespace q4::autotune {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kSetupShare = 0.2;      // of the shape's time, for making copies beyond the fewest
constexpr double kCompileShare = 0.4;    // of what is left then; kernels that are cached take next to nothing
constexpr double kCrossoverShare = 0.1;  // kept back from the buckets
constexpr double kYardstickShare = 0.1;  // for the read floor and the dense BLAS, where they are requested
constexpr double kFloorWorthS = 8;       // on a CPU the read floor takes a second or more, of a budget of so many
constexpr int kCrossoverRounds = 3;
constexpr double kSetUp = 1e-3;  // progress when the copies are there: any but 0

/// Expected cost of a bucket, relative: a fixed part and the arithmetic.
double weight(std::int64_t m, bool gpu) { return 1 + static_cast<double>(m) / (gpu ? 1024.0 : 64.0); }

/// Setting up is not begun, or not finished; the text says why.
struct NoTime : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class ShapeTuner {
 public:
  ShapeTuner(const Runtime& runtime, Device device, const Problem& problem, const TuneOptions& options)
      : runtime_(runtime), problem_(problem), options_(options), start_(Clock::now()) {
    report(0, 0, fmt::format("packing {}x{}", problem.k, problem.n));
    workload_.emplace(problem, options.activation, [this](double more_s) { expect("setting up", more_s); });
    const double before = seconds_left(0);
    rig_.emplace(runtime, device, *workload_, options.m.back(), kSetupShare * options.seconds,
                 options.policy == "cold" && !options.compile_only);
    expect("setting up", 0);
    const double copy_s = (before - seconds_left(0)) / static_cast<double>(rig_->copies());
    std::set<std::string> forbidden;
    for (const QuarantinedTactic& q : options.quarantined) forbidden.insert(q.tactic);
    space_.emplace(*rig_, options.m, options.activation, std::move(forbidden));
    yardsticks_.emplace(*rig_, problem_, options.activation, copy_s, options.about_to, forecast_,
                        [this] { return seconds_left(0); });
    tuned_.record.floor_us = options.floor_us_per_byte * problem.bytes(0);
    const bool wanted = rig_->gpu() ? !options.compile_only : options.yardsticks && options.seconds >= kFloorWorthS;
    if (tuned_.record.floor_us == 0 && wanted) yardsticks_->measure_floor(tuned_.record);
    tuned_.slow = options.slow;
    for (const SlowTactic& slow : options.slow) forecast_.note(slow);
    for (const MeasuredBucket& b : options.known)
      for (const Contender& c : b.found.contenders) forecast_.note(c.id, b.m, c.us());
  }

  Tuned run() {
    auto& record = tuned_.record;
    record.key = key_of(rig_->backend()->info(), tuning_digest(rig_->backend()->kernels_digest()), problem_,
                        options_.activation, options_.policy);
    if (options_.compile_only) {
      space_->compile_ahead(
          *rig_, options_.m, likely(0), [&] { return options_.interrupted() ? 0 : 1e9; }, 0);
      return std::move(tuned_);
    }
    if (rig_->gpu() && options_.compile_ahead) compile_ahead();
    tune_buckets();
    if (!skipped_.empty()) note_unmeasured("tactics: " + skipped_);
    record.quarantined = options_.quarantined;
    std::optional<TunedBucket> last_direct;
    try {
      last_direct = find_crossover();
    } catch (const Error& e) {
      tuned_.failed = true;
      tuned_.notes.push_back(fmt::format("crossover: {}", e.what()));
    }
    fill_buckets(record, buckets_, last_direct);
    describe();
    if (options_.yardsticks) measure_dense();
    tuned_.buckets = std::move(buckets_);
    return std::move(tuned_);
  }

 private:
  double seconds_left(double share_kept) const {
    if (options_.interrupted()) return 0;
    if (options_.yardsticks && !yardsticks_begun_) share_kept += kYardstickShare;
    return options_.seconds * (1 - share_kept) - std::chrono::duration<double>(Clock::now() - start_).count();
  }

  void expect(const char* what, double more_s) const {
    if (options_.interrupted()) throw NoTime("interrupted");
    const double left = seconds_left(0);
    if (more_s >= left)
      throw NoTime(fmt::format("no time: {} takes about {:.1f} s more, and {:.1f} s are left", what,
                               std::max(more_s, 0.0), std::max(left, 0.0)));
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
    note_not_measured(tuned_.record, what);
  }

  void compile_ahead() {
    std::vector<std::int64_t> open;
    for (const std::int64_t m : options_.m)
      if (!known_at(m) || !known_at(m)->complete()) open.push_back(m);
    if (open.empty()) return;
    report(kSetUp, 0, "compiling kernels");
    const double until = seconds_left(0) * (1 - kCompileShare);
    const auto mean_s = [&] {  // of the defaults, and of earlier shapes
      const CacheCounters past = runtime_.cache_counters();
      return past.compiled > 0 ? 1e-3 * past.compile_ms / static_cast<double>(past.compiled) : 0;
    };
    const std::size_t missed = space_->compile_ahead(
        *rig_, open, likely(0), [&] { return seconds_left(0) - until; }, mean_s());
    compile_s_ = mean_s();
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

  /// Of an earlier attempt; null: nothing was measured there.
  const MeasuredBucket* known_at(std::int64_t m) const {
    const auto known = std::ranges::find(options_.known, m, &MeasuredBucket::m);
    return known == options_.known.end() ? nullptr : &*known;
  }

  void tune_buckets() {
    const auto cost = [&](std::int64_t m) {
      const MeasuredBucket* const known = known_at(m);
      return known && known->complete() ? 0 : weight(m, rig_->gpu());
    };
    double all = 0;
    for (const std::int64_t m : options_.m) all += cost(m);
    double weight_left = all;
    std::string missing, why;
    for (const std::int64_t m : options_.m) {
      const MeasuredBucket* const known = known_at(m);
      const double expected = cost(m);
      if (expected > 0 && why.empty()) {
        report(1 - weight_left / all, m, fmt::format("m = {}", m));
        const double left = seconds_left(kCrossoverShare);
        why = tune_bucket(m, known, seconds_left(0) - left * expected / weight_left);
        weight_left -= expected;
        if (why.empty()) continue;
      }
      if (known)
        keep(*known);
      else
        missing += fmt::format("{}{}", missing.empty() ? "m = " : ", ", m);
    }
    if (!missing.empty()) note_unmeasured(fmt::format("{} ({})", missing, why));
    report(1 - kCrossoverShare, 0, "crossover");
  }

  /// Why not even the default fits into the time that is left.
  std::string too_long(const std::string& standard, std::int64_t m) const {
    if (options_.interrupted()) return "interrupted";
    const double left = std::max(0.0, seconds_left(kCrossoverShare));
    const double needed = 1e-6 * static_cast<double>(1 + rig_->first_runs()) * forecast_.expected_us(standard, m);
    if (needed <= left) return "out of time";
    return fmt::format("out of time: m = {} takes about {:.1f} s, and {:.1f} s are left", m, needed, left);
  }

  /// Ends when `reserve` seconds are left for the rest of the shape. Returns why nothing was measured; empty: something
  /// was.
  std::string tune_bucket(std::int64_t m, const MeasuredBucket* known, double reserve) {
    const std::vector<std::string> ids = space_->at(m, likely(m));
    const auto left_for_default = [&] { return seconds_left(kCrossoverShare); };
    if (left_for_default() <= (space_->compiled(ids[0]) ? 0 : compile_s_)) return too_long(ids[0], m);
    TacticCandidates candidates(*rig_, ids, m, options_.activation, options_.about_to, forecast_);
    SearchOptions options;
    options.seconds_left = [&] { return seconds_left(0) - reserve; };
    options.seconds_for_default = left_for_default;
    if (options_.exhaustive)
      options.hopeless = 1.5, options.finalists = 32;
    else
      for (const std::string& id : ids) options.at_least_us.push_back(bound_us(id, m));
    if (known) options.earlier_us = times_of(*known, ids);
    MeasuredBucket bucket{m, {}, space_->is_default(ids[0], m), space_->uncompiled(m)};
    try {
      bucket.found = search(ids, candidates, options);
    } catch (const Error& e) {
      tuned_.failed = true;
      tuned_.notes.push_back(fmt::format("m = {}: the default tactic '{}' failed: {}", m, ids[0], e.what()));
      return "the default tactic failed";
    }
    if (bucket.found.contenders[0].us() == 0) return too_long(ids[0], m);
    if (known) take_over(*known, bucket);
    if (const double mhz = options_.sm_clock_mhz(); mhz > 0) clocks_mhz_.push_back(mhz);
    options_.measured(bucket);
    keep(std::move(bucket));
    return {};
  }

  static std::vector<double> times_of(const MeasuredBucket& known, const std::vector<std::string>& ids) {
    std::vector<double> times;
    for (const std::string& id : ids) {
      const auto found = std::ranges::find(known.found.contenders, id, &Contender::id);
      times.push_back(found == known.found.contenders.end() ? 0 : found->us());
    }
    return times;
  }

  /// The earlier decision stands where this attempt had no time for a final.
  static void take_over(const MeasuredBucket& known, MeasuredBucket& bucket) {
    SearchResult& found = bucket.found;
    if (!known.earlier || found.contenders[0].final.size() >= kMinimumRounds) return;
    const auto winner = std::ranges::find(found.contenders, known.earlier->tactic, &Contender::id);
    if (winner == found.contenders.end()) return;
    found.winner = static_cast<std::size_t>(winner - found.contenders.begin());
    found.undecided = found.undecided || known.found.undecided;
    bucket.earlier = known.earlier;
  }

  void keep(MeasuredBucket bucket) {
    SearchResult& found = bucket.found;
    if (found.contenders[0].id.empty()) found.contenders[0].id = space_->at(bucket.m, {})[0];
    tuned_.pruned += found.pruned;
    const auto skipped = [&](const std::string& what) {
      skipped_ += fmt::format("{}{} at m = {}", skipped_.empty() ? "" : ", ", what, bucket.m);
    };
    if (found.unmeasured > 0) skipped(std::to_string(found.unmeasured));
    if (found.undecided) skipped("the final");
    for (const Contender& c : found.contenders) {
      if (!c.rejected.empty())
        tuned_.notes.push_back(fmt::format("m = {}: '{}' rejected: {}", bucket.m, c.id, c.rejected));
      tuned_.measured += c.rejected.empty() && c.us() > 0;
    }
    buckets_.push_back(std::move(bucket));
  }

  /// What a tactic cannot beat: its time at a smaller m, since more rows take no less; and for one that reconstructs W,
  /// reading the codes and writing W, at the rate of a kernel that only reads.
  double bound_us(const std::string& id, std::int64_t m) const {
    constexpr double kNoise = 0.9;
    const double bound = forecast_.at_least_us(id, m);
    if (!is_reconstruct(id) || !rig_->gpu()) return bound;
    const double dense = 2.0 * static_cast<double>(problem_.k) * static_cast<double>(problem_.n);
    return std::max(bound, kNoise * tuned_.record.floor_us * (1 + dense / problem_.bytes(0)));
  }

  /// Sets reconstruct_from; returns a bucket of its own for the direct tactic between two of the requested m, if any.
  std::optional<TunedBucket> find_crossover() {
    const std::size_t first = first_reconstructed(buckets_);
    if (first == buckets_.size()) return {};
    const MeasuredBucket& high = buckets_[first];
    const std::int64_t below = first == 0 ? 0 : buckets_[first - 1].m;
    tuned_.record.reconstruct_from = below + 1;
    const Contender* const direct = fastest(high, false);
    if (!direct || high.m - below <= 1) return {};

    const std::vector<std::string> ids = {direct->id, high.winner().id};
    TacticCandidates pair(*rig_, ids, high.m, options_.activation, options_.about_to, forecast_);
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
    bool stopped = false;
    const auto stop = [&](std::int64_t m) {
      const double runs = static_cast<double>(1 + kCrossoverRounds * rig_->first_runs());
      const double us = forecast_.expected_us(ids[0], m) + forecast_.expected_us(ids[1], m);
      stopped = stopped || seconds_left(0) <= 1e-6 * runs * us + rig_->reference_s(m);
      return stopped;
    };
    const auto left = [&] { return seconds_left(0); };
    Bracket found{below, high.m};
    if (stop(high.m) || pair.prepare(0, 0, left) != Outlook::kFits || pair.prepare(1, 0, left) != Outlook::kFits)
      stopped = true;
    else
      found = bracket_crossover(found, second_wins, stop);
    if (stopped) note_unmeasured(fmt::format("the crossover within ({}, {}]", found.low, found.high));
    tuned_.record.reconstruct_from = found.low + 1;
    if (found.low == below) return {};
    const std::string standard = space_->at(found.low, {})[0];
    const Contender& times = direct_at.at(found.low);
    if (is_reconstruct(standard)) return as_tuned(found.low, times, median(reconstruct_at.at(found.low)));
    if (standard == direct->id) return as_tuned(found.low, times, times.us());
    TacticCandidates both(*rig_, {standard, direct->id}, found.low, options_.activation, options_.about_to, forecast_);
    SearchOptions options;
    options.seconds_left = left;
    const SearchResult last = search(both.ids(), both, options);  // the default competes here too
    if (last.contenders[0].us() == 0) return {};
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
    if (!tuned_.complete) record.provenance[kUnfinished] = unfinished_text(buckets_, tuned_.slow);
    if (buckets_.empty()) return;
    const MeasuredBucket& smallest = buckets_.front();
    record.math = is_reconstruct(smallest.winner().id) ? Math::kAuto : space_->math(smallest.winner().id, smallest.m);
    const auto math = yardsticks_->measure_math(*space_, smallest.m);
    tuned_.half2_us = math.half2_us, tuned_.fp32_us = math.fp32_us;
    // What also computes cannot be faster than what only reads: a neighbour disturbed that.
    const double floor = record.floor_us * problem_.bytes(smallest.m) / problem_.bytes(0);
    if (!rig_->gpu() && smallest.winner().us() < floor && seconds_left(0) > kFloorWorthS / 4)
      yardsticks_->measure_floor(record);
    if (record.math == Math::kAuto && tuned_.half2_us != tuned_.fp32_us)
      record.math = tuned_.half2_us < tuned_.fp32_us ? Math::kHalf2 : Math::kFp32;
  }

  /// What W unquantized would take, in the time that is left.
  void measure_dense() {
    yardsticks_begun_ = true;
    const std::int64_t missing = yardsticks_->measure_dense(tuned_.record, [&](std::int64_t m) {
      report(1 - kCrossoverShare / 4, m, fmt::format("dense BLAS, m = {}", m));
    });
    if (missing > 0) tuned_.notes.push_back(fmt::format("the dense BLAS was not timed from m = {}: no time", missing));
  }

  Runtime runtime_;
  Problem problem_;
  const TuneOptions& options_;
  Clock::time_point start_;
  std::optional<Workload> workload_;
  std::optional<Rig> rig_;
  std::optional<TacticSpace> space_;
  Forecast forecast_;
  std::optional<Yardsticks> yardsticks_;
  double compile_s_ = 0;  ///< of one kernel
  std::string skipped_;   ///< "2 at m = 1, the final at m = 64": what a resumed run completes
  std::vector<MeasuredBucket> buckets_;
  std::vector<double> clocks_mhz_;
  bool yardsticks_begun_ = false;
  Tuned tuned_;
};

}  // namespace

Tuned tune(const Runtime& runtime, Device device, const Problem& problem, const TuneOptions& options) {
  check(!options.m.empty() && std::is_sorted(options.m.begin(), options.m.end()) && options.m.front() > 0,
        "tune: options.m must hold ascending numbers of rows");
  if (problem.experts > 0) return tune_experts(runtime, device, problem, options);
  try {
    return ShapeTuner(runtime, device, problem, options).run();
  } catch (const NoTime& e) {
    const auto backend = runtime.impl().open(device);
    return partly_tuned(
        key_of(backend->info(), tuning_digest(backend->kernels_digest()), problem, options.activation, options.policy),
        options, options.known, e.what());
  }
}

}  // namespace q4::autotune
