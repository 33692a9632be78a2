// Searches the tactics of a layer of experts.
#include "autotune/moe_tuner.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "autotune/moe_rig.hpp"
#include "autotune/tolerance.hpp"
#include "runtime/base/check.hpp"
#include "runtime/choose/tactic.hpp"
#include "runtime/runtime.hpp"
#include "runtime/tuning_key.hpp"

namespace q4::autotune {
namespace {

using Clock = std::chrono::steady_clock;
constexpr double kCompileShare = 0.5;  // of a bucket's time

/// The tactics of a layer at one number of tokens.
class LayerCandidates : public Candidates {
  /// `work` on this candidate, announced. Throws DeviceLost when the device does not answer afterwards.
  template <class F>
  auto watched(std::size_t index, std::size_t runs, const F& work) const {
    options_.about_to({ids_[index], traffic_.m, runs});
    try {
      return work();
    } catch (const Error& error) {
      if (error.code() != ErrorCode::kDevice) throw;
      try {
        rig_.touch();
      } catch (const Error&) { throw DeviceLost(error.what()); }
      throw;
    }
  }

 public:
  LayerCandidates(const MoeRig& rig, std::vector<std::string> ids, const MoeTraffic& traffic,
                  const TuneOptions& options)
      : rig_(rig), ids_(std::move(ids)), traffic_(traffic), options_(options), plans_(ids_.size()) {}

  const std::vector<std::string>& ids() const { return ids_; }
  Outlook prepare(std::size_t index, double, const std::function<double()>& seconds_left) override {
    if (seconds_left() <= 0) return Outlook::kTooLong;
    MoeOptions plan;
    plan.max_tokens = traffic_.m, plan.tactic = ids_[index];
    watched(index, 0, [&] { plans_[index] = rig_.plans(plan); });
    const double limit = tolerance_of_experts(options_.activation);
    const double error = watched(index, 1, [&] { return rig_.error(plans_[index], traffic_); });
    if (!(error <= limit))
      fail(ErrorCode::kInternal, "wrong result at m = {}: relative error {:.2e}, allowed {:.0e}", traffic_.m, error,
           limit);
    return Outlook::kFits;
  }
  double sample(std::size_t index) override {
    return watched(index, 2 * traffic_.routings.size(), [&] { return rig_.sample(plans_[index], traffic_); });
  }
  void release(std::size_t index) override { plans_[index].clear(); }

 private:
  const MoeRig& rig_;
  std::vector<std::string> ids_;
  const MoeTraffic& traffic_;
  const TuneOptions& options_;
  std::vector<std::vector<MoePlan>> plans_;
};

/// The fastest tactic of either product among the contenders, as one text.
std::string best_of_both(const SearchResult& found) {
  const auto first = choose::product_texts(found.contenders[0].id);
  std::vector<std::string> best = first;
  std::vector<double> us(first.size(), found.contenders[0].us());
  for (const Contender& c : found.contenders) {
    if (!c.rejected.empty() || c.us() == 0) continue;
    const auto texts = choose::product_texts(c.id);
    for (std::size_t i = 0; i < first.size(); ++i)
      if (texts[i] != first[i] && c.us() < us[i]) best[i] = texts[i], us[i] = c.us();
  }
  std::string text;
  for (const auto& one : best) text += (text.empty() ? "" : choose::kBetweenProducts) + one;
  return text;
}

class LayerTuner {
 public:
  LayerTuner(const Runtime& runtime, Device device, const Problem& problem, const TuneOptions& options)
      : options_(options), start_(Clock::now()), backend_(runtime.impl().open(device)) {
    options.progress({0, 0, 0, 0, fmt::format("packing {} experts", problem.experts)});
    rig_.emplace(runtime, device, layer_of(problem), options.activation, options.m.back());
    tuned_.record.key = key_of(backend_->info(), tuning_digest(backend_->kernels_digest()), problem, options.activation,
                               options.policy);
  }

  Tuned run() {
    std::vector<MeasuredBucket> buckets;
    std::string missing;
    for (std::size_t i = 0; i < options_.m.size(); ++i) {
      const std::int64_t m = options_.m[i];
      const auto known = std::ranges::find(options_.known, m, &MeasuredBucket::m);
      if (known != options_.known.end() && known->complete()) {
        buckets.push_back(*known);
        continue;
      }
      options_.progress({std::max(1e-3, static_cast<double>(i) / static_cast<double>(options_.m.size())), m, 0, 0,
                         fmt::format("m = {}", m)});
      const double share = seconds_left() / static_cast<double>(options_.m.size() - i);
      try {
        if (share <= 0)
          missing += fmt::format("{}{}", missing.empty() ? "m = " : ", ", m);
        else if (auto bucket = tune_bucket(m, seconds_left() - share))
          options_.measured(*bucket), buckets.push_back(std::move(*bucket));
      } catch (const Error& e) {
        tuned_.failed = true;
        tuned_.notes.push_back(fmt::format("m = {}: the default tactic failed: {}", m, e.what()));
      }
    }
    if (!missing.empty()) note(missing + (options_.interrupted() ? " (interrupted)" : " (out of time)"));
    finish(std::move(buckets));
    return std::move(tuned_);
  }

 private:
  double seconds_left() const {
    if (options_.interrupted()) return 0;
    return options_.seconds - std::chrono::duration<double>(Clock::now() - start_).count();
  }
  void note(const std::string& what) {
    tuned_.notes.push_back(std::string(kNotMeasured) + ": " + what);
    note_not_measured(tuned_.record, what);
  }

  /// Ends when `reserve` seconds are left. None: it was only to compile.
  std::optional<MeasuredBucket> tune_bucket(std::int64_t m, double reserve) {
    const auto left = [&] { return seconds_left() - reserve; };
    MoeOptions plan;
    plan.max_tokens = m;
    std::vector<std::string> ids = rig_->plans(plan).front().tactics(m);
    const std::string standard = ids[0];
    if (!backend_->traits().compiles) ids.resize(1);  // plans on the CPU choose for themselves, whatever a record says
    std::erase_if(ids, [&](const std::string& id) {
      return std::ranges::any_of(options_.quarantined, [&](const auto& q) { return q.tactic == id; });
    });
    check(!ids.empty(), "tune: every tactic at m = {} is quarantined", m);
    const std::size_t all = ids.size();
    if (backend_->traits().compiles && (options_.compile_ahead || options_.compile_only)) compile(ids, m, left);
    if (options_.compile_only) return std::nullopt;
    const MoeTraffic traffic = rig_->traffic(m, false);
    SearchOptions search_options;
    search_options.seconds_left = left;
    if (options_.exhaustive) search_options.hopeless = 1.5, search_options.finalists = 32;
    LayerCandidates candidates(*rig_, ids, traffic, options_);
    MeasuredBucket bucket{m, search(ids, candidates, search_options), ids[0] == standard, all - ids.size()};
    count(bucket.found, m);
    const std::string both = best_of_both(bucket.found);
    const bool is_new = std::ranges::none_of(bucket.found.contenders, [&](const auto& c) { return c.id == both; });
    if (is_new && left() > 0) {
      std::vector<std::string> few = {ids[0], both};
      if (bucket.found.winner != 0) few.push_back(bucket.found.contenders[bucket.found.winner].id);
      LayerCandidates last(*rig_, few, traffic, options_);
      SearchResult again = search(few, last, search_options);
      count(again, m);
      if (again.winner != 0) {
        again.unmeasured += bucket.found.unmeasured, again.pruned += bucket.found.pruned;
        bucket.found = std::move(again);
      }
    }
    return bucket;
  }

  /// Leaves of `ids` the first and those for which there was time.
  void compile(std::vector<std::string>& ids, std::int64_t m, const std::function<double()>& left) {
    const double until = left() * (1 - kCompileShare);
    const auto reached = run_ahead(
        ids.size(), 1,
        [&](std::size_t i) {
          MoeOptions plan;
          plan.max_tokens = m, plan.tactic = ids[i];
          try {
            rig_->plans(plan);               // its code stays in the kernel cache
          } catch (const std::exception&) {  // prepare() meets it again, and reports it
          }
        },
        [&] { return options_.compile_only && !options_.interrupted() ? 1e9 : left() - until; }, 0);
    std::vector<std::string> kept;
    for (std::size_t i = 0; i < ids.size(); ++i)
      if (reached[i]) kept.push_back(ids[i]);
    if (kept.size() < ids.size())
      note(fmt::format("{} tactics at m = {}: no time to compile them", ids.size() - kept.size(), m));
    ids = std::move(kept);
  }

  void count(const SearchResult& found, std::int64_t m) {
    for (const Contender& c : found.contenders) {
      if (!c.rejected.empty()) tuned_.notes.push_back(fmt::format("m = {}: '{}' rejected: {}", m, c.id, c.rejected));
      tuned_.measured += c.rejected.empty() && c.us() > 0;
    }
    tuned_.pruned += found.pruned;
    if (found.unmeasured > 0) note(fmt::format("{} tactics at m = {}", found.unmeasured, m));
    if (found.undecided) note(fmt::format("the final at m = {}", m));
  }

  void finish(std::vector<MeasuredBucket> buckets) {
    auto& record = tuned_.record;
    std::erase_if(buckets, [](const MeasuredBucket& b) { return b.found.contenders[0].us() == 0; });
    record.quarantined = options_.quarantined;
    fill_buckets(record, buckets, {});
    for (const auto& [key, value] : options_.provenance) record.provenance[key] = value;
    record.provenance["copies"] = std::to_string(rig_->copies());
    tuned_.copies = rig_->copies();
    tuned_.complete = !tuned_.failed && !record.provenance.count(kNotMeasured);
    if (!tuned_.complete) record.provenance[kUnfinished] = unfinished_text(buckets, {});
    tuned_.buckets = std::move(buckets);
  }

  const TuneOptions& options_;
  Clock::time_point start_;
  std::shared_ptr<DeviceBackend> backend_;
  std::optional<MoeRig> rig_;
  Tuned tuned_;
};

}  // namespace

Tuned tune_experts(const Runtime& runtime, Device device, const Problem& problem, const TuneOptions& options) {
  return LayerTuner(runtime, device, problem, options).run();
}

}  // namespace q4::autotune
