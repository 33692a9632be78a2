// Buckets to records, and to the text that an unfinished record carries.
#include "autotune/measured.hpp"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "autotune/candidates.hpp"

namespace q4::autotune {
namespace {

using Json = nlohmann::ordered_json;

/// Buckets of an earlier record whose winner has been quarantined since are void.
bool still_valid(const TuningRecord& record, const TunedBucket& bucket) {
  return std::ranges::none_of(record.quarantined, [&](const auto& q) { return q.tactic == bucket.tactic; });
}

/// The contender that the record's line names, added where the text does not have it.
std::size_t place_of(MeasuredBucket& bucket, const TunedBucket& line) {
  auto& all = bucket.found.contenders;
  if (all.empty()) all.push_back({"", {line.default_us}, {}, 0, {}});  // the default, whose name a record does not say
  const auto found = std::ranges::find(all, line.tactic, &Contender::id);
  if (found != all.end()) return static_cast<std::size_t>(found - all.begin());
  if (line.default_us == line.us && all.size() == 1 && all[0].id.empty()) {
    all[0].id = line.tactic;
    return 0;
  }
  all.push_back({line.tactic, {line.us}, {}, 0, {}});
  return all.size() - 1;
}

void parse(const std::string& text, Resumed& resumed) {
  const Json j = Json::parse(text);
  for (const Json& b : j.at("buckets")) {
    MeasuredBucket bucket;
    b.at(0).get_to(bucket.m), b.at(1).get_to(bucket.found.unmeasured), b.at(2).get_to(bucket.found.undecided);
    b.at(3).get_to(bucket.default_ran);
    for (const Json& c : b.at(4)) {
      Contender contender{c.at(0), {}, {}, 0, {}};
      if (const double us = c.at(1); us > 0 && std::isfinite(us)) contender.early = {us};
      if (c.size() > 2) c.at(2).get_to(contender.rejected);
      bucket.found.contenders.push_back(std::move(contender));
    }
    if (bucket.m > 0 && !bucket.found.contenders.empty()) resumed.known.push_back(std::move(bucket));
  }
  for (const Json& s : j.at("slow")) resumed.slow.push_back({s.at(0), s.at(1), s.at(2)});
}

}  // namespace

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

std::size_t first_reconstructed(const std::vector<MeasuredBucket>& buckets) {
  std::size_t first = buckets.size();
  while (first > 0 && is_reconstruct(buckets[first - 1].winner().id)) --first;
  return first;
}

void fill_buckets(TuningRecord& record, const std::vector<MeasuredBucket>& buckets,
                  std::optional<TunedBucket> last_direct) {
  for (const MeasuredBucket& b : buckets) {
    if (last_direct && last_direct->m < b.m) record.buckets.push_back(*std::exchange(last_direct, std::nullopt));
    const bool reconstructs = record.reconstruct_from > 0 && b.m >= record.reconstruct_from;
    // A lone win of reconstruct + BLAS below a bucket that it lost is not a crossover. Who else is the fastest was not
    // compared with the default in a final.
    const Contender* direct = &b.found.contenders[0];
    if (is_reconstruct(direct->id)) direct = fastest(b, false);
    const bool replaced = !reconstructs && is_reconstruct(b.winner().id) && direct;
    if (b.earlier && !replaced)
      record.buckets.push_back(*b.earlier);
    else
      record.buckets.push_back(as_tuned(b.m, replaced ? *direct : b.winner(), b.default_us()));
  }
}

void note_not_measured(TuningRecord& record, const std::string& what) {
  auto& all = record.provenance[kNotMeasured];
  all += (all.empty() ? "" : "; ") + what;
}

std::string unfinished_text(const std::vector<MeasuredBucket>& buckets, const std::vector<SlowTactic>& slow) {
  Json j{{"buckets", Json::array()}, {"slow", Json::array()}};
  for (const MeasuredBucket& b : buckets) {
    Json contenders = Json::array();
    for (const Contender& c : b.found.contenders) {
      if (c.us() == 0 && c.rejected.empty() && &c != &b.found.contenders[0]) continue;
      contenders.push_back({c.id, std::round(1e3 * c.us()) / 1e3});
      if (!c.rejected.empty()) contenders.back().push_back(c.rejected);
    }
    j["buckets"].push_back(
        {b.m, b.found.unmeasured + b.uncompiled, b.found.undecided, b.default_ran, std::move(contenders)});
  }
  for (const SlowTactic& s : slow) j["slow"].push_back({s.m, s.tactic, s.at_least_us});
  return j.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Resumed resume(const TuningRecord& record) {
  Resumed resumed;
  const auto text = record.provenance.find(kUnfinished);
  if (text != record.provenance.end()) {
    try {
      parse(text->second, resumed);
    } catch (const nlohmann::json::exception&) { return {}; }
  } else if (record.provenance.count(kNotMeasured)) {
    return {};
  }
  for (const TunedBucket& line : record.buckets) {
    if (line.us <= 0 || !still_valid(record, line)) continue;
    auto bucket = std::ranges::find(resumed.known, line.m, &MeasuredBucket::m);
    if (bucket == resumed.known.end()) {
      if (text != record.provenance.end()) continue;  // between two m, beside the crossover: found anew
      resumed.known.emplace_back().m = line.m;
      bucket = std::prev(resumed.known.end());
      bucket->default_ran = line.default_us > 0;
    }
    bucket->found.winner = place_of(*bucket, line);
    bucket->earlier = line;
  }
  std::erase_if(resumed.known, [](const MeasuredBucket& b) { return !b.earlier; });
  std::ranges::sort(resumed.known, {}, &MeasuredBucket::m);
  return resumed;
}

}  // namespace q4::autotune
