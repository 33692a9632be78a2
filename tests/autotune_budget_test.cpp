// q4-autotune and its time: the budget, what a killed worker had measured, going on within a shape, and interrupts.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <q4/q4.hpp>
#include <set>
#include <thread>

#include "autotune/candidates.hpp"
#include "autotune/device_clock.hpp"
#include "autotune/forecast.hpp"
#include "autotune/measured.hpp"
#include "autotune/process/device_turn.hpp"
#include "report.hpp"
#include "sandbox.hpp"
#include "tools/common/common.hpp"

namespace q4::tools {
namespace {

using autotune::Forecast;
using autotune::Outlook;
using test::Ended;
using test::kSlower;
using test::Sandbox;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

Json only_shape(const Ended& ended) { return Json::parse(ended.out)["shapes"].at(0); }

const std::string kShape = "q4-autotune --device cpu --shape 256x128 --group 32 --policy warm --json ";

/// How much longer than on an idle machine a short run takes now.
double busy() {
  static const double factor = [] {
    const Sandbox box;
    const auto start = std::chrono::steady_clock::now();
    box.run(kShape + "--m 1 --budget 60 --out " + box.file("t.jsonl"));
    const double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return std::clamp(took / 0.7, 1.0, 6.0);
  }();
  return factor;
}

double scaled(double seconds) { return seconds * std::max<double>(kSlower, busy()); }  // busy() counts a sanitizer too
std::string budget(double seconds) { return "--budget " + std::to_string(scaled(seconds)) + " "; }

TEST_CASE("forecast: times grow at most with the rows, and at least stay") {
  Forecast forecast;
  CHECK(forecast.expected_us("a x=1", 8) == 0);
  forecast.note("a x=1", 8, 100);
  CHECK(forecast.expected_us("a x=1", 512) == doctest::Approx(6400));
  CHECK(forecast.expected_us("a x=2", 512) == doctest::Approx(6400));  // of the same path
  CHECK(forecast.expected_us("b", 512) == 0);
  CHECK(forecast.expected_us("a x=1", 4) == 100);  // fewer rows take no more
  CHECK(forecast.at_least_us("a x=1", 512) == doctest::Approx(90));
  CHECK(forecast.at_least_us("a x=1", 4) == 0);
  CHECK(forecast.at_least_us("a x=2", 512) == 0);
  forecast.note({64, "a x=1", 5000});
  CHECK(forecast.at_least_us("a x=1", 512) == doctest::Approx(4500));
  CHECK(forecast.at_least_us("a x=1", 32) == doctest::Approx(90));
  CHECK(forecast.expected_us("a x=1", 64) >= 5000);
}

TEST_CASE("forecast: nothing begins whose expected time exceeds what is left, and few rows tell what is hopeless") {
  struct Clock {
    double left_s, us_per_row;
    std::int64_t longest = 0;
    Outlook run(std::int64_t m, double best_us) {
      Forecast forecast;
      return autotune::approach(
          forecast, "slow", m, 2, best_us, [this] { return left_s; },
          [this](std::int64_t rows) {
            CHECK(1e-6 * us_per_row * static_cast<double>(rows) < left_s);
            longest = std::max(longest, rows);
            left_s -= 1e-6 * us_per_row * static_cast<double>(rows);
            return us_per_row * static_cast<double>(rows);
          });
    }
  };
  Clock netlib{15, 7e4};  // 36 s at m = 512, where another tactic takes 1 s
  CHECK(netlib.run(512, 1e6) == Outlook::kHopeless);
  CHECK(netlib.longest <= 64);
  CHECK(netlib.left_s > 8);
  Clock alone{15, 7e4};
  CHECK(alone.run(512, 0) == Outlook::kTooLong);
  Clock good{15, 100};  // 51 ms
  CHECK(good.run(512, 1e5) == Outlook::kFits);
  CHECK(good.left_s > 14.9);
  Clock close{1.5, 1000};  // two runs of 0.51 s fit into 1.5 s, although not by the first estimates
  CHECK(close.run(512, 1e6) == Outlook::kFits);
  Clock over{0, 1};
  CHECK(over.run(1, 0) == Outlook::kTooLong);
}

TEST_CASE("compiling ahead: nothing is begun that the longest so far says will end too late") {
  using Clock = std::chrono::steady_clock;
  using Seconds = std::chrono::duration<double>;
  const auto start = Clock::now();
  const auto left = [&] { return 0.25 - Seconds(Clock::now() - start).count(); };
  constexpr double kJob = 0.1;
  std::mutex mutex;
  std::vector<std::pair<std::size_t, double>> begun;
  const auto job = [&](std::size_t i) {
    {
      const std::lock_guard lock(mutex);
      begun.emplace_back(i, left());
    }
    std::this_thread::sleep_for(Seconds(kJob));
  };
  const std::vector<char> reached = autotune::run_ahead(1000, 1, job, left, kJob);
  CHECK(begun.size() == static_cast<std::size_t>(std::ranges::count(reached, 1)));
  CHECK(begun.size() < 1000);
  for (const auto& [i, left_s] : begun) CHECK((i == 0 || left_s > kJob - 0.02));  // asked a little before it begins
  const auto none = [] { return 0.0; };
  begun.clear();
  CHECK(std::ranges::count(autotune::run_ahead(10, 3, job, none, 0), 1) == 3);  // the defaults, whatever the time
}

TEST_CASE("an unfinished record keeps what was measured, and a later run reads it") {
  using namespace autotune;
  MeasuredBucket one{1, {}}, many{512, {}};
  one.found.contenders = {{"default", {10}, {10, 10, 10, 10, 10}, 0, {}}, {"best", {8}, {8, 8, 8, 8, 8}, 0, {}}};
  one.found.winner = 1;
  many.found.contenders = {{"default", {1000}, {}, 0, {}},
                           {"other", {900}, {}, 0, {}},
                           {"wrong", {}, {}, 0, "NaN"},
                           {"unseen", {}, {}, 0, {}}};
  many.found.unmeasured = 1, many.found.undecided = true;
  TuningRecord record;
  fill_buckets(record, {one, many}, {});
  note_not_measured(record, "m = 512");
  record.provenance[kUnfinished] = unfinished_text({one, many}, {{512, "hung \"one\"", 7e6}});

  const Resumed resumed = resume(record);
  REQUIRE(resumed.known.size() == 2);
  CHECK(resumed.known[0].complete());
  CHECK(resumed.known[0].winner().id == "best");
  CHECK(resumed.known[0].earlier == record.buckets[0]);
  CHECK_FALSE(resumed.known[1].complete());
  CHECK(resumed.known[1].found.undecided);
  REQUIRE(resumed.known[1].found.contenders.size() == 3);  // what was not measured says nothing
  CHECK(resumed.known[1].found.contenders[1].us() == 900);
  CHECK(resumed.known[1].found.contenders[2].rejected == "NaN");
  CHECK(resumed.slow == std::vector<SlowTactic>{{512, "hung \"one\"", 7e6}});

  record.quarantined = {{"best", 512, "crashed"}};
  CHECK(resume(record).known.size() == 1);  // the winner at m = 1 cannot be used any more
  for (const char* damaged : {"", "[]", "{}", "{\"buckets\":[[1]],\"slow\":[]}", "{\"buckets\":[[\"x\",0,0,0,[]]]"}) {
    record.provenance[kUnfinished] = damaged;
    CHECK(resume(record).known.empty());
  }
  record.provenance.clear();
  record.quarantined.clear();
  CHECK(resume(record).known.size() == 2);  // complete: its lines say all
  CHECK(resume(record).known[1].complete());
}

TEST_CASE("q4-autotune: a BLAS that is slow by the row is not begun where few rows say enough") {
  const Sandbox box;
  const std::string slow = "env Q4_BLAS=" + test::slow_blas() + " Q4_SLOW_BLAS_US=20000 ";
  // 512 rows take 10 s, twice: to check the result, and to time it.
  const auto start = std::chrono::steady_clock::now();
  const Ended ended = box.run(kShape + "--m 1,512 " + budget(8) + "--report " + box.file("r.html"), false, slow);
  const double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  REQUIRE(ended.status == 0);
  CHECK(took < scaled(10));
  const Json shape = only_shape(ended);
  CHECK(shape["buckets"].size() == 2);
  if (kSlower == 1) CHECK(shape["complete"] == true);
  for (const Json& bucket : shape["buckets"]) CHECK(bucket["dense_us"].get<double>() < 1e6);
}

TEST_CASE(
    "q4-autotune: a worker that is killed at the end keeps what it had measured, and the next run goes on there") {
  const Sandbox box;
  const std::string tune = kShape + "--m 1,16 --out " + box.file("t.jsonl ");
  const Ended killed = box.run(tune + budget(4), false, "env 'Q4_AUTOTUNE_FAULT=hang-at:m = 16' ");
  REQUIRE(killed.status == 0);
  CHECK(Json::parse(killed.out)["seconds"] < 1.1 * scaled(4) + busy());
  const Json first = only_shape(killed);
  CHECK(first["complete"] == false);
  REQUIRE(first["buckets"].size() == 1);
  CHECK(contains(first["notes"].dump(), "out of time"));
  TuningDb db;
  db.load(box.file("t.jsonl"));
  REQUIRE(db.size() == 1);
  CHECK(db.records()[0].buckets.size() == 1);

  const Json second = only_shape(box.run(tune + budget(20)));
  CHECK(second["complete"] == true);
  CHECK(second["buckets"].size() >= 2);
  CHECK(second["buckets"].at(0)["us"] == first["buckets"].at(0)["us"]);  // not measured again
  CHECK_FALSE(second["provenance"].contains("unfinished"));
  CHECK(only_shape(box.run(tune + budget(20)))["kept"] == true);
}

TEST_CASE("q4-autotune: a tactic that outlasts the budget is known to be slow by the next run, which finishes") {
  const Sandbox box;
  const std::string tune = kShape + "--m 1,16 --out " + box.file("t.jsonl ");
  const Json all = only_shape(box.run(kShape + "--m 1,16 --exhaustive --out " + box.file("all.jsonl ") + budget(20)));
  // Not a default, which is measured in any case, and not a winner.
  std::set<std::string> needed;
  const Json untuned = Json::parse(
      box.run("q4-bench --device cpu --shape 256x128 --group 32 --m 1,16 --untuned --seconds 0.02 --json").out);
  for (const Json& point : untuned["points"]) needed.insert(point["kernel"]);
  for (const Json& bucket : all["buckets"]) needed.insert(bucket["tactic"]);
  std::string victim;
  for (const Json& c : all["contenders"])
    if (c["m"] == 1 && needed.count(c["tactic"]) == 0 && (victim.empty() || c["final"] == 0)) victim = c["tactic"];
  REQUIRE_FALSE(victim.empty());
  const std::string hangs = "env 'Q4_AUTOTUNE_FAULT=hang:" + victim + "' ";
  const std::string patient = tune + "--watchdog " + std::to_string(30 * kSlower) + " ";  // longer than the budgets
  const Json first = only_shape(box.run(patient + budget(4), false, hangs));
  CHECK(first["complete"] == false);
  Json next;
  for (int run = 0; run < 3 && (run == 0 || next["complete"] == false); ++run)
    next = only_shape(box.run(patient + budget(5), false, hangs));
  CHECK(next["complete"] == true);
  CHECK(next["quarantined"].empty());
}

TEST_CASE("q4-autotune: repeated with a budget that is too short, a shape makes progress each time and is finished") {
  const Sandbox box;
  std::size_t runs = 0, short_runs = 0, measured = 0;
  std::optional<TunedBucket> first;
  double seconds = 0.5;
  for (bool complete = false; !complete; ++runs) {
    REQUIRE(runs < 40);
    const Ended ended = box.run("q4-autotune --device cpu --shape 2048x1024 --m 1,16,64,256 --json " + budget(seconds) +
                                "--out " + box.file("t.jsonl"));
    complete = only_shape(ended)["complete"];
    if (complete && runs == 0 && seconds > 0.01) {  // a quick machine: again from nothing, with less
      std::filesystem::remove(box.file("t.jsonl"));
      seconds /= 3, complete = false, --runs;
      continue;
    }
    std::size_t known = 0;
    TuningDb db;
    db.load(box.file("t.jsonl"));
    if (db.size() == 1) {
      const autotune::Resumed resumed = autotune::resume(db.records()[0]);
      for (const auto& bucket : resumed.known) known += bucket.found.contenders.size();
      if (!complete) CHECK(known >= measured);
      if (first) CHECK(db.records()[0].buckets.at(0) == *first);  // what is complete is not measured again
      if (!first && !resumed.known.empty() && resumed.known[0].m == 1 && resumed.known[0].complete())
        first = resumed.known[0].earlier;
    }
    if (known == measured) seconds *= 1.5;  // not enough to start the worker and to set up, on a busy machine
    short_runs += !complete && known > measured;
    measured = known;
  }
  MESSAGE(runs << " runs, " << short_runs << " of them got further without finishing");
  CHECK(runs > 1);
}

TEST_CASE("q4-autotune: SIGTERM ends it within two seconds in any phase, with what was measured saved") {
  const Sandbox box;
  // Interrupted as soon as `sign` is on stderr.
  const auto interrupted = [&](const std::string& fault, const std::string& sign, const std::string& file) {
    CAPTURE(fault);
    const std::string log = box.file("log");
    const Ended ended = box.run(
        kShape + "--m 1,16 --budget 300 --report " + box.file("r.html") + " --out " + box.file(file), false,
        "env 'Q4_AUTOTUNE_FAULT=" + fault + "' sh -c '\"$@\" 2>" + log + " & pid=$!; while ! grep -q \"" + sign +
            "\" " + log + " && kill -0 $pid; do sleep 0.02; done; sleep 0.6; date +%s%N >" + box.file("from") +
            "; kill -TERM $pid; wait $pid; status=$?; date +%s%N >" + box.file("to") + "; exit $status' sh ");
    CHECK((std::stod(box.read("to")) - std::stod(box.read("from"))) / 1e9 < 2 * kSlower);
    CHECK(ended.status == 130);
    return ended.out + box.read("log");
  };
  CHECK(contains(interrupted("hang-at:open", "hangs at open", "a.jsonl"), "interrupted before anything was measured"));
  CHECK(contains(interrupted("hang-at:packing", "hangs at packing", "b.jsonl"), "interrupted while packing"));
  CHECK(contains(interrupted("hang-at:crossover", "hangs at crossover", "c.jsonl"), "interrupted while crossover"));
  CHECK(contains(interrupted("hang-at:m = 16", "hangs at m = 16", "d.jsonl"), "interrupted while m = 16"));
  for (const auto& [file, buckets] : {std::pair("c.jsonl", 2u), {"d.jsonl", 1u}}) {
    TuningDb db;
    db.load(box.file(file));
    REQUIRE(db.size() == 1);
    CHECK(db.records()[0].buckets.size() == buckets);
  }

  autotune::DeviceTurn turn(autotune::DeviceClock(Device()).address());
  int holder = 0;
  for (int i = 0; i < 1000 && !turn.take(holder); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(10));
  CHECK(
      contains(interrupted("none", "another q4-autotune", "e.jsonl"), "(process " + std::to_string(::getpid()) + ")"));
}

TEST_CASE("q4-autotune: a lock that another process holds does not keep SIGTERM from ending it") {
  const Sandbox box;
  std::filesystem::create_directories(box.file("held"));
  const int folder = ::open(box.file("held").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  REQUIRE(::flock(folder, LOCK_EX) == 0);
  const auto start = std::chrono::steady_clock::now();
  const Ended ended = box.run(kShape + "--m 1 --budget 300 --out " + box.file("held/t.jsonl"), false,
                              "timeout --preserve-status -s TERM 1 ");
  ::close(folder);
  CHECK(ended.status == 130);
  CHECK(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() < 3 * kSlower);
}

}  // namespace
}  // namespace q4::tools
