// What earlier records tell a run: what need not be measured again, and what to try first.
#include <algorithm>
#include <cmath>

#include "autotune/tuner.hpp"
#include "runtime/tuning_key.hpp"

namespace q4::autotune {

TuningKey key_of(const DeviceInfo& info, const std::string& kernels, const Problem& problem, DType activation,
                 const std::string& policy) {
  return tuning_key(info, kernels, problem.k, problem.n, problem.group, problem.act_order, activation, policy,
                    problem.experts ? experts_text(problem.experts, problem.topk, problem.width) : problem.with.text());
}

Tuned partly_tuned(const TuningKey& key, const TuneOptions& options, std::vector<MeasuredBucket> buckets,
                   const std::string& missing) {
  Tuned tuned;
  TuningRecord& record = tuned.record;
  record.key = key;
  record.quarantined = options.quarantined;
  std::erase_if(buckets, [](const MeasuredBucket& b) { return b.found.contenders[0].id.empty(); });
  if (const std::size_t first = first_reconstructed(buckets); first < buckets.size())
    record.reconstruct_from = first == 0 ? 1 : buckets[first - 1].m + 1;
  fill_buckets(record, buckets, {});
  record.provenance = options.provenance;
  tuned.slow = options.slow;
  tuned.notes.push_back(std::string(kNotMeasured) + ": " + missing);
  note_not_measured(record, missing);
  record.provenance[kUnfinished] = unfinished_text(buckets, tuned.slow);
  for (const MeasuredBucket& b : buckets)
    tuned.measured += static_cast<std::size_t>(
        std::ranges::count_if(b.found.contenders, [](const Contender& c) { return c.us() > 0; }));
  tuned.buckets = std::move(buckets);
  return tuned;
}

bool covers(const TuningRecord& record, const std::vector<std::int64_t>& m) {
  if (record.provenance.count(kNotMeasured)) return false;
  return std::all_of(m.begin(), m.end(), [&](std::int64_t wanted) {
    return std::any_of(record.buckets.begin(), record.buckets.end(),
                       [&](const auto& b) { return b.m == wanted && b.us > 0; });
  });
}

void complete_from(const TuningRecord& older, TuningRecord& record) {
  if (older.buckets.empty()) return;
  if (record.buckets.empty()) {  // nothing was measured this time
    record.buckets = older.buckets, record.reconstruct_from = older.reconstruct_from, record.math = older.math;
    return;
  }
  const std::int64_t end = record.buckets.back().m;
  if (record.reconstruct_from == 0 && older.reconstruct_from > 0 && older.buckets.back().m > end)
    record.reconstruct_from = std::max(older.reconstruct_from, end + 1);
  const std::size_t measured = record.buckets.size();
  for (const TunedBucket& b : older.buckets) {
    const bool known = std::ranges::count(record.buckets, b.m, &TunedBucket::m) > 0;
    const bool reconstructs = record.reconstruct_from > 0 && b.m >= record.reconstruct_from;
    if (!known && b.us > 0 && is_reconstruct(b.tactic) == reconstructs) record.buckets.push_back(b);
  }
  std::ranges::sort(record.buckets, {}, &TunedBucket::m);
  if (record.buckets.size() > measured && older.provenance.count(kNotMeasured))
    for (const char* gaps : {kNotMeasured, kUnfinished})
      if (const auto found = older.provenance.find(gaps); found != older.provenance.end())
        record.provenance.insert(*found);
}

double distance(const TuningKey& a, const TuningKey& b) {
  return std::abs(std::log(static_cast<double>(a.k) / static_cast<double>(b.k))) +
         std::abs(std::log(static_cast<double>(a.n) / static_cast<double>(b.n))) + (a.group == b.group ? 0 : 1) +
         (a.act_order == b.act_order ? 0 : 1);
}

std::vector<LikelyTactic> likely_from(const TuningDb& db, const TuningKey& key) {
  const auto records = db.records();
  const TuningRecord* nearest = nullptr;
  for (const TuningRecord& r : records) {
    const bool alike = r.key.fingerprint == key.fingerprint && r.key.kernels == key.kernels &&
                       r.key.policy == key.policy && r.key.activation == key.activation && !r.buckets.empty();
    if (alike && (!nearest || distance(r.key, key) < distance(nearest->key, key))) nearest = &r;
  }
  std::vector<LikelyTactic> likely;
  if (nearest)
    for (const TunedBucket& b : nearest->buckets) likely.push_back({b.m, b.tactic});
  return likely;
}

std::vector<LikelyTactic> likely_from(const Tuned& tuned) {
  constexpr double kClose = 1.2;
  constexpr std::size_t kMost = 12;  // at each m
  std::vector<LikelyTactic> likely;
  for (const MeasuredBucket& b : tuned.buckets) {
    std::vector<const Contender*> close;
    for (const Contender& c : b.found.contenders)
      if (c.rejected.empty() && c.us() > 0 && c.us() < kClose * b.winner().us()) close.push_back(&c);
    std::ranges::sort(close, {}, [](const Contender* c) { return c->us(); });
    for (std::size_t i = 0; i < std::min(close.size(), kMost); ++i) likely.push_back({b.m, close[i]->id});
  }
  return likely;
}

}  // namespace q4::autotune
