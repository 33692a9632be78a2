// The rule for conflicting records, and a comparison of files bucket by bucket.
#include "autotune/merge.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <map>

#include "autotune/plot.hpp"
#include "autotune/tuner.hpp"

namespace q4::autotune {

std::string name_of(const TuningKey& key) {
  return fmt::format("{}x{} g{}{} {} {} on {}, kernels {:.12}", key.k, key.n, key.group,
                     key.act_order ? " act-order" : "", to_string(key.activation), key.policy, key.fingerprint,
                     key.kernels);
}

namespace {

bool complete(const TuningRecord& record) { return record.provenance.count(kNotMeasured) == 0; }

const TunedBucket* at(const TuningRecord& record, std::int64_t m) {
  const auto found = std::ranges::find(record.buckets, m, &TunedBucket::m);
  return found == record.buckets.end() ? nullptr : &*found;
}

std::string point(const TunedBucket& a, const TunedBucket& b) {
  return fmt::format("m = {}: '{}' {} us ({}-{}) and '{}' {} us ({}-{})", a.m, a.tactic, short_number(a.us),
                     short_number(a.us_low), short_number(a.us_high), b.tactic, short_number(b.us),
                     short_number(b.us_low), short_number(b.us_high));
}

bool differ(const TuningRecord& a, const TuningRecord& b) {
  const bool alike = a.buckets.size() == b.buckets.size() && a.reconstruct_from == b.reconstruct_from &&
                     std::ranges::equal(a.buckets, b.buckets, [](const TunedBucket& x, const TunedBucket& y) {
                       return x.m == y.m && x.tactic == y.tactic;
                     });
  return !alike;
}

}  // namespace

TuningRecord united(const TuningRecord& first, const TuningRecord& second, Conflict& conflict) {
  conflict = {first.key, false, {}, {}};
  int first_wins = 0, second_wins = 0;
  for (const TunedBucket& a : first.buckets) {
    const TunedBucket* const b = at(second, a.m);
    if (!b || a.us == 0 || b->us == 0) continue;  // 0: not measured, the default
    first_wins += a.us_high < b->us_low;
    second_wins += b->us_high < a.us_low;
    if (a.tactic != b->tactic) conflict.points.push_back(point(a, *b));
  }
  if (complete(first) != complete(second)) {
    conflict.second = complete(second);
    conflict.why = "the other was not measured completely";
  } else if (first_wins != second_wins) {
    conflict.second = second_wins > first_wins;
    conflict.why = fmt::format("it is faster outside noise at {} m, the other at {}", std::max(first_wins, second_wins),
                               std::min(first_wins, second_wins));
  } else {
    conflict.why = "neither is faster outside noise";
  }
  TuningRecord result = conflict.second ? second : first;
  for (const QuarantinedTactic& q : (conflict.second ? first : second).quarantined)
    if (std::ranges::find(result.quarantined, q) == result.quarantined.end()) result.quarantined.push_back(q);
  return result;
}

TuningDb merged(const std::vector<std::string>& files, std::vector<Conflict>& conflicts) {
  std::map<TuningKey, TuningRecord> all;
  for (const std::string& file : files) {
    TuningDb db;
    db.load(file);
    for (TuningRecord& record : db.records()) {
      const auto [place, is_new] = all.try_emplace(record.key, record);
      if (is_new) continue;
      Conflict conflict;
      TuningRecord result = united(place->second, record, conflict);
      if (differ(place->second, record)) conflicts.push_back(std::move(conflict));
      place->second = std::move(result);
    }
  }
  TuningDb result;
  for (auto& [key, record] : all) result.add(std::move(record));
  return result;
}

std::vector<std::string> differences(const TuningDb& first, const TuningDb& second) {
  std::vector<std::string> lines;
  std::map<TuningKey, TuningRecord> others;
  for (TuningRecord& record : second.records()) others.emplace(record.key, std::move(record));
  for (const TuningRecord& a : first.records()) {
    const auto found = others.find(a.key);
    if (found == others.end()) {
      lines.push_back(fmt::format("only in the first: {}", name_of(a.key)));
      continue;
    }
    const TuningRecord& b = found->second;
    if (a.reconstruct_from != b.reconstruct_from)
      lines.push_back(
          fmt::format("{}: reconstruct from {} and {}", name_of(a.key), a.reconstruct_from, b.reconstruct_from));
    for (const TunedBucket& bucket : a.buckets) {
      const TunedBucket* const other = at(b, bucket.m);
      if (!other) lines.push_back(fmt::format("{}: m = {} only in the first", name_of(a.key), bucket.m));
      if (other && other->tactic != bucket.tactic)
        lines.push_back(fmt::format("{}: {}", name_of(a.key), point(bucket, *other)));
    }
    for (const TunedBucket& bucket : b.buckets)
      if (!at(a, bucket.m)) lines.push_back(fmt::format("{}: m = {} only in the second", name_of(a.key), bucket.m));
    others.erase(found);
  }
  for (const auto& [key, record] : others) lines.push_back(fmt::format("only in the second: {}", name_of(key)));
  return lines;
}

}  // namespace q4::autotune
