// The tuner's parts on synthetic timings, and the whole of it on the CPU with a small shape.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <q4/q4.hpp>

#include "autotune/bracket.hpp"
#include "autotune/search.hpp"
#include "autotune/statistics.hpp"
#include "autotune/tuner.hpp"
#include "autotune/workload.hpp"
#include "reference.hpp"
#include "report.hpp"
#include "runtime/base/check.hpp"

namespace q4::autotune {
namespace {

/// Timings with the noise of a shared machine: a few percent, and every tenth one a neighbour's burst.
double noisy(double us, test::Random& random) {
  return us * (1 + 0.03 * std::abs(random.normal())) * (random.below(10) == 0 ? 1.5 : 1.0);
}

struct Synthetic : Candidates {
  std::vector<double> us;
  std::vector<int> samples, released;
  std::vector<std::string> failing;  ///< by candidate: an error of prepare(), or empty
  double clock_s = 0, sample_s = 0, limit_s = 1e9;
  test::Random random{1};

  explicit Synthetic(std::vector<double> times, std::uint64_t seed = 1)
      : us(std::move(times)), samples(us.size()), released(us.size()), failing(us.size()), random(seed) {}
  Outlook prepare(std::size_t i, double, const std::function<double()>& seconds_left) override {
    if (!failing[i].empty()) fail(ErrorCode::kDevice, "{}", failing[i]);
    return sample_s <= seconds_left() ? Outlook::kFits : Outlook::kTooLong;
  }
  double sample(std::size_t i) override {
    ++samples[i];
    clock_s += sample_s;
    return noisy(us[i], random);
  }
  void release(std::size_t i) override { ++released[i]; }

  SearchResult run(SearchOptions options = {}) {
    std::vector<std::string> ids;
    for (std::size_t i = 0; i < us.size(); ++i) ids.push_back("tactic " + std::to_string(100 + i));
    options.seconds_left = [this] { return limit_s - clock_s; };
    return search(ids, *this, options);
  }
};

TEST_CASE("medians and intervals") {
  CHECK(median({}) == 0);
  CHECK(median({3}) == 3);
  CHECK(median({5, 1, 3}) == 3);
  CHECK(median({4, 1, 3, 2}) == 2.5);

  test::Random random(3);
  int covered = 0;
  constexpr int kTrials = 300;
  for (int t = 0; t < kTrials; ++t) {
    std::vector<double> samples(25);
    for (double& s : samples) s = 100 + random.normal();
    const Interval i = median_interval(samples);
    CHECK(i.low <= i.value);
    CHECK(i.value <= i.high);
    covered += i.low <= 100 && 100 <= i.high;
  }
  CHECK(covered > 0.88 * kTrials);  // 95% nominal; the percentile bootstrap of a median is a little short
  CHECK(covered < kTrials);         // an interval that always covers says nothing

  const std::vector<double> same = {1, 2, 3, 4, 9};
  CHECK(median_interval(same).low == median_interval(same).low);
  CHECK(median_interval(same).low < 3);
  CHECK(median_interval(same).high > 3);
}

TEST_CASE("pairs cancel drift that hides a difference") {
  std::vector<double> base, candidate;
  for (int i = 0; i < 15; ++i) {
    const double drift = 1 + 0.2 * i;  // the clock falls to a quarter while both are measured
    base.push_back(105 * drift), candidate.push_back(100 * drift);
  }
  const Interval gain = paired_gain(base, candidate);
  CHECK(gain.value == doctest::Approx(0.05));
  CHECK(gain.low > 0.04);
  CHECK(median_interval(base).low < median_interval(candidate).high);  // unpaired, they overlap
}

TEST_CASE("the default is kept under pure noise") {
  int replaced = 0;
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    Synthetic equal(std::vector<double>(20, 100.0), seed);
    replaced += equal.run().winner != 0;
  }
  CHECK(replaced <= 2);  // 1% of runs with 19 equal challengers each
}

TEST_CASE("in the shortest final nothing that is slower replaces the default") {
  int replaced = 0;
  constexpr int kTrials = 500;
  test::Random random(7);
  for (int trial = 0; trial < kTrials; ++trial) {
    std::vector<Finalist> finalists;
    for (const double us : {100.0, 102.0, 102.0, 102.0, 102.0}) {
      Finalist& f = finalists.emplace_back(Finalist{std::to_string(finalists.size()), {}});
      for (std::size_t r = 0; r < kMinimumRounds; ++r) f.us.push_back(noisy(us, random));
    }
    replaced += choose(finalists) != 0;
  }
  CHECK(replaced <= kTrials / 100);
}

TEST_CASE("a real gain is found among many, and near ties go to the lowest id") {
  int wrong = 0;
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    std::vector<double> times(40, 130.0);
    times[0] = 110, times[23] = 100;
    Synthetic one_best(times, seed);
    wrong += one_best.run().winner != 23;
  }
  CHECK(wrong <= 3);

  std::vector<Finalist> finalists = {{"default", {110, 111, 110, 112, 110}},
                                     {"b", {100.0, 100.1, 100.0, 100.2, 100.0}},
                                     {"a", {100.4, 100.5, 100.4, 100.6, 100.4}},
                                     {"0", {102.0, 102.1, 102.0, 102.2, 102.0}}};
  CHECK(finalists[choose(finalists)].id == "a");  // within 1% of b; "0" is not
  finalists.erase(finalists.begin() + 2);
  CHECK(finalists[choose(finalists)].id == "b");
}

TEST_CASE("what does not replace the default") {
  const auto chosen = [](std::vector<double> base, std::vector<double> other) {
    const std::vector<Finalist> finalists = {{"default", std::move(base)}, {"other", std::move(other)}};
    return choose(finalists);
  };
  CHECK(chosen({100, 100, 100, 100, 100}, {90, 90, 90, 90, 90}) == 1);
  CHECK(chosen({100, 100, 100, 100}, {90, 90, 90, 90}) == 0);                     // too few rounds
  CHECK(chosen({100, 100, 100, 100, 100}, {98.5, 98.5, 98.5, 98.5, 98.5}) == 0);  // certain, but below 2%
  CHECK(chosen({100, 100, 100, 100, 100}, {90, 125, 90, 125, 90}) == 0);          // large, but not certain
  CHECK(chosen({100, 100, 100, 100, 100}, {120, 120, 120, 120, 120}) == 0);
}

TEST_CASE("search: few samples for the slow, errors reject, the losers are released") {
  std::vector<double> times(64, 150.0);
  times[0] = 110, times[5] = 100, times[6] = 1000, times[7] = 50;
  Synthetic s(times);
  s.failing[7] = "illegal instruction";
  const SearchResult found = s.run();
  CHECK(found.winner == 5);
  CHECK(found.unmeasured == 0);
  CHECK(s.samples[6] == 1);
  CHECK(s.samples[7] == 0);
  CHECK(found.contenders[7].rejected == "illegal instruction");
  CHECK(s.samples[5] > 15);
  CHECK(found.contenders[5].final.size() == 15);
  CHECK(found.contenders[0].final.size() == 15);
  CHECK(s.released[5] == 0);
  CHECK(std::count(s.released.begin(), s.released.end(), 1) == 64 - 5);  // all but the default and four finalists

  Synthetic broken({100, 90});
  broken.failing[0] = "no such kernel";
  CHECK_THROWS_AS(broken.run(), Error);
}

TEST_CASE("search: a bound prunes what cannot win, and time that runs out keeps the default") {
  Synthetic s({110, 100, 100, 100});
  SearchOptions options;
  options.at_least_us = {0, 0, 300, 90};
  const SearchResult bounded = s.run(options);
  CHECK(bounded.pruned == 1);
  CHECK(s.samples[2] == 0);
  CHECK(s.samples[3] > 0);

  Synthetic late({110, 50, 50, 50});
  late.sample_s = 1, late.limit_s = 2.5;  // the default, one challenger, and too little for a final
  const SearchResult found = late.run();
  CHECK(found.winner == 0);
  CHECK(found.unmeasured == 2);
  CHECK(found.contenders[0].us() > 0);
  CHECK(late.clock_s <= late.limit_s + 1);

  Synthetic tight({110, 50, 60, 70, 80});
  tight.sample_s = 1, tight.limit_s = 16;  // five probes, then five rounds of two
  CHECK(tight.run().winner == 1);
  CHECK(tight.clock_s <= tight.limit_s + 1);

  Synthetic many(std::vector<double>(500, 110.0));
  many.us[3] = 50, many.sample_s = 1, many.limit_s = 40;  // for 39 probes, or fewer and a final
  CHECK(many.run().winner == 3);
  CHECK(many.clock_s <= many.limit_s + 1);
}

TEST_CASE("search: attempts that each have little time go on with what the earlier ones measured, and end") {
  std::vector<double> times(30, 110.0);
  times[0] = 100, times[17] = 70;
  std::vector<double> earlier(times.size());
  std::size_t before = times.size();
  SearchResult found;
  int attempts = 0;
  do {
    Synthetic s(times, static_cast<std::uint64_t>(attempts));
    s.sample_s = 1, s.limit_s = 14;  // the default, a few others, and five rounds of two
    SearchOptions options;
    options.earlier_us = earlier;
    found = s.run(options);
    CHECK(s.clock_s <= s.limit_s);
    CHECK((found.unmeasured < before || before == 0));  // each gets further
    before = found.unmeasured;
    for (std::size_t i = 0; i < times.size(); ++i) earlier[i] = found.contenders[i].us();
  } while ((found.unmeasured > 0 || found.undecided) && ++attempts < 40);
  CHECK(found.unmeasured == 0);
  CHECK_FALSE(found.undecided);
  CHECK(found.winner == 17);

  Synthetic none({110, 50});
  none.sample_s = 1, none.limit_s = 0.5;
  const SearchResult nothing = none.run();
  CHECK(nothing.contenders[0].us() == 0);
  CHECK(none.clock_s == 0);
}

TEST_CASE("an older record fills in what was not measured again, up to its crossover") {
  const auto bucket = [](std::int64_t m, const char* tactic) { return TunedBucket{m, tactic, 1, 1, 1, 1, 0}; };
  TuningRecord older, newer;
  older.buckets = {bucket(1, "a"), bucket(16, "b"), bucket(100, "c"), bucket(128, "reconstruct+blas")};
  older.reconstruct_from = 101, older.provenance["not measured"] = "2 at m = 16";
  newer.buckets = {bucket(1, "z"), bucket(2, "y")};
  TuningRecord both = newer;
  complete_from(older, both);
  CHECK(both.reconstruct_from == 101);
  REQUIRE(both.buckets.size() == 5);
  CHECK(both.bucket(1)->tactic == "z");
  CHECK(both.bucket(16)->tactic == "b");
  CHECK(both.provenance.count("not measured") == 1);

  both = newer;
  both.buckets.push_back(bucket(512, "x"));  // direct wins up to there now: what the older one reconstructs is void
  complete_from(older, both);
  CHECK(both.reconstruct_from == 0);
  CHECK(both.bucket(100)->tactic == "c");
  CHECK(std::ranges::count(both.buckets, 128, &TunedBucket::m) == 0);

  TuningRecord same = older;
  same.provenance.clear();
  complete_from(older, same);
  CHECK(same.buckets == older.buckets);
  CHECK(same.provenance.empty());  // all of it was measured anew
}

TEST_CASE("bracketing finds the crossover of two curves with few measurements") {
  for (const double step : {1.0, 16.0})
    for (const std::int64_t truth : {2, 9, 40, 333, 1000, 4095}) {
      int asked = 0;
      const auto second_wins = [&](std::int64_t m) {
        ++asked;
        const double direct = std::ceil(static_cast<double>(m) / step) * step;  // tiles of `step` rows
        return direct > static_cast<double>(truth);
      };
      if (second_wins(1)) continue;  // the ends are taken as known
      asked = 0;
      const Bracket found = bracket_crossover({1, 4096}, second_wins, [](auto) { return false; });
      CAPTURE(truth);
      CAPTURE(step);
      CHECK(!second_wins(found.low));
      CHECK((found.high == 4096 || second_wins(found.high)));
      CHECK(found.high - found.low <= std::max<std::int64_t>(1, found.low / 8));
      CHECK(asked <= 2 + 10);
    }
  const Bracket adjacent = bracket_crossover(
      {7, 8}, [](auto) -> bool { throw 1; }, [](auto) { return false; });
  CHECK(adjacent.low == 7);
  const Bracket stopped = bracket_crossover(
      {0, 4096}, [](auto) -> bool { throw 1; }, [](auto) { return true; });
  CHECK(stopped.high == 4096);
}

TEST_CASE("the workload's reference agrees with the tests' own, and sees one wrong element and one NaN") {
  for (const bool act_order : {false, true}) {
    Workload workload({"", 264, 48, 16, act_order}, DType::kF32);
    const auto plain = test::unpack(workload.tensors());
    const auto* x = reinterpret_cast<const float*>(workload.x().data());
    std::vector<float> out(48);
    for (std::int64_t c = 0; c < 48; ++c) {
      double sum = 0;
      for (std::int64_t r = 0; r < 264; ++r) sum += x[264 + r] * plain.weight(r, c);
      out[static_cast<std::size_t>(c)] = static_cast<float>(sum);
    }
    const auto error = [&](std::int64_t row) {
      const Workload::OutputRow rows[] = {{row, reinterpret_cast<const std::byte*>(out.data())}};
      return workload.error(rows);
    };
    CHECK(error(1) < 1e-6);
    CHECK(error(1 + workload.period()) < 1e-6);
    CHECK(error(2) > 0.1);
    out[47] += 1;
    CHECK(error(1) > 1e-3);
    out[47] = std::nanf("");
    CHECK(std::isnan(error(1)));
  }
}

TEST_CASE("the workload sees a NaN in columns that it does not sample") {
  Workload workload({"", 32768, 64, 128, false}, DType::kF32);
  for (std::size_t column = 0; column < 64; ++column) {
    std::vector<float> out(64, 1.0f);
    out[column] = std::nanf("");
    const Workload::OutputRow rows[] = {{0, reinterpret_cast<const std::byte*>(out.data())}};
    CHECK(std::isnan(workload.error(rows)));
  }
}

TEST_CASE("tune: a small shape on the CPU gives a record that covers it and that a plan follows") {
  RuntimeOptions untuned;
  untuned.tuning_files = {"/dev/null"};
  const Runtime runtime(untuned);
  const Device cpu;
  const Problem problem{"small", 512, 256, 64, true};
  TuneOptions options;
  options.m = {1, 4, 32};
  options.seconds = 20 * test::kSlower;
  int reports = 0;
  options.progress = [&](const TuneProgress& p) {
    ++reports;
    CHECK(p.fraction >= 0);
    CHECK(p.fraction <= 1);
  };
  const Tuned tuned = tune(runtime, cpu, problem, options);
  for (const auto& note : tuned.notes) MESSAGE(note);
  CHECK_FALSE(tuned.failed);
  CHECK(tuned.complete);
  CHECK(tuned.copies >= 4);
  CHECK(reports >= 4);
  const TuningRecord& record = tuned.record;
  REQUIRE(record.buckets.size() >= 3);
  for (const TunedBucket& b : record.buckets) {
    CHECK(b.us > 0);
    CHECK(b.us_low <= b.us);
    CHECK(b.us <= b.us_high);
  }
  CHECK(covers(record, {1, 32}));
  CHECK_FALSE(covers(record, {1, 64}));

  TuningDb db;  // what was measured survives the file, under the key that a plan asks for
  db.add(record);
  TuningMatch match;
  auto key = key_of(runtime.info(cpu), record.key.kernels, problem, DType::kF16, "cold");
  CHECK(db.find(key, &match) != nullptr);
  CHECK(match == TuningMatch::kExact);
  key.kernels = "other kernels";
  CHECK(db.find(key, &match) == nullptr);
  CHECK(match == TuningMatch::kStale);
}

TEST_CASE("tune: out of time or interrupted, the record says what is missing") {
  RuntimeOptions untuned;
  untuned.tuning_files = {"/dev/null"};
  const Runtime runtime(untuned);
  const Problem problem{"small", 512, 256, 64, false};
  TuneOptions options;
  options.m = {1, 4096};
  options.seconds = 1e-6;
  const Tuned none = tune(runtime, {}, problem, options);  // nothing begins without time
  CHECK(none.record.buckets.empty());
  CHECK_FALSE(none.complete);
  CHECK_FALSE(none.notes.empty());

  options.seconds = 20 * test::kSlower;
  Workload workload(problem, DType::kF16);
  const Rig rig(runtime, {}, workload, 4096, 0, false);
  options.slow = {{4096, rig.plan({.max_m = 4096}).tactic(4096), 1e9}};  // as an earlier attempt found out
  const Tuned hurried = tune(runtime, {}, problem, options);
  REQUIRE(hurried.record.buckets.size() == 1);  // it must not serve the other m
  CHECK(hurried.record.buckets[0].us > 0);
  CHECK(hurried.record.bucket(4096) == nullptr);
  CHECK_FALSE(hurried.complete);
  CHECK_FALSE(covers(hurried.record, {1}));
  CHECK(hurried.record.provenance.at(kNotMeasured).find("m = 4096 takes about") != std::string::npos);

  options.interrupted = [] { return true; };
  const Tuned interrupted = tune(runtime, {}, problem, options);
  CHECK(interrupted.record.buckets.empty());
  CHECK_FALSE(interrupted.complete);
  CHECK_FALSE(interrupted.notes.empty());
}

}  // namespace
}  // namespace q4::autotune
