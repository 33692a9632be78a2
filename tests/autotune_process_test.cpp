// q4-autotune as processes on the CPU: killed, with tactics that crash and hang, beside another one, sharded; its
// report in a browser.
#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <q4/q4.hpp>
#include <thread>

#include "report.hpp"
#include "sandbox.hpp"
#include "tools/common/common.hpp"

namespace q4::tools {
namespace {

using test::Ended;
using test::Sandbox;
using namespace std::chrono_literals;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

const std::string kBudget = "--budget " + std::to_string(20 * test::kSlower) + " ";
// Warm: thousands of cold copies of so small a matrix would be most of the time, and more mappings than TSan has.
const std::string kShape = "q4-autotune --device cpu --shape 256x128 --group 32 --policy warm " + kBudget;
const std::string kTune = kShape + "--m 1,16 ";

Json only_shape(const Ended& ended) { return Json::parse(ended.out)["shapes"].at(0); }

/// What competes with the default in that shape.
std::string challenger(const Sandbox& box) {
  const Json shape = only_shape(box.run(kTune + "--exhaustive --json --out " + box.file("all.jsonl")));
  for (const Json& c : shape["contenders"])
    if (c["m"] == 1 && c["tactic"] != shape["buckets"].at(0)["tactic"]) return c["tactic"];
  FAIL("there is one tactic alone");
  return {};
}

TEST_CASE("q4-autotune: a tactic that crashes or hangs is quarantined, and the run goes on") {
  const Sandbox box;
  const std::string victim = challenger(box);
  for (const std::string fault : {"abort", "hang"}) {
    CAPTURE(fault);
    const std::string tune =
        kTune + "--watchdog " + std::to_string(3 * test::kSlower) + " --out " + box.file(fault + ".jsonl ");
    const std::string wrapper = "env 'Q4_AUTOTUNE_FAULT=" + fault + ":" + victim + "' ";
    const Ended ended = box.run(tune + "--json --report " + box.file("report.html"), false, wrapper);
    REQUIRE(ended.status == 0);
    const Json shape = only_shape(ended);
    CHECK(shape["complete"] == true);
    CHECK(shape["buckets"].size() >= 2);
    REQUIRE(shape["quarantined"].size() == 1);
    CHECK(shape["quarantined"].at(0)["tactic"] == victim);
    CHECK(contains(shape["quarantined"].at(0)["reason"], fault == "abort" ? "signal 6" : "hung"));
    CHECK(contains(box.read("report.html"), "quarantined"));

    // The same command skips it, although the fault is still there; --again tries it, and meets no fault now.
    const Ended again = box.run(tune, true, wrapper);
    CHECK(again.status == 0);
    CHECK(contains(again.out, "kept from"));
    CHECK(contains(again.out, "'" + victim + "' is quarantined"));
    const std::string more = kShape + "--m 1,16,32 --json --out " + box.file(fault + ".jsonl ");
    CHECK(only_shape(box.run(more, false, wrapper))["quarantined"].size() == 1);
    CHECK(only_shape(box.run(tune + "--again --json"))["quarantined"].empty());
  }
}

TEST_CASE("q4-autotune: a default that crashes is replaced by what works") {
  const Sandbox box;
  const std::string tune = kTune + "--json --out " + box.file("a.jsonl ");
  const Json untuned = Json::parse(
      box.run("q4-bench --device cpu --shape 256x128 --group 32 --m 1 --untuned --seconds 0.05 --json").out);
  const std::string standard = untuned["points"].at(0)["kernel"];
  const Json shape = only_shape(box.run(tune, false, "env 'Q4_AUTOTUNE_FAULT=abort:" + standard + "' "));
  CHECK(shape["failed"] == false);
  CHECK(shape["buckets"].at(0)["tactic"] != standard);
  CHECK(shape["buckets"].at(0)["default_us"] == 0);
}

TEST_CASE("q4-autotune: kill -9 loses the shape that was being measured and nothing else") {
  const Sandbox box;
  std::ofstream(box.file("shapes.csv")) << "k,n,group\n256,128,32\n512,128,32\n4096,4096,128\n";
  const std::string tune = "q4-autotune --device cpu --shapes " + box.file("shapes.csv") +
                           " --m 1,64 --budget 24 --out " + box.file("t.jsonl");
  // Killed by its own watcher as soon as two shapes are saved: the third takes seconds.
  const std::string watch =
      "sh -c '\"$@\" & pid=$!; while [ $(cat " + box.file("t.jsonl") +
      " 2>/dev/null | wc -l) -lt 2 ] && kill -0 $pid; do sleep 0.05; done; kill -9 $pid; wait $pid' sh ";
  box.run(tune, false, watch);
  TuningDb db;
  db.load(box.file("t.jsonl"));
  REQUIRE(db.records().size() == 2);
  const Json resumed = Json::parse(box.run(tune + " --json").out);
  // On a busy machine the first two may have been saved with gaps, which a resumed run fills.
  for (std::size_t i = 0; i < 2; ++i)
    CHECK(resumed["shapes"].at(i)["kept"] == (db.records()[i].provenance.count("not measured") == 0));
  CHECK(resumed["shapes"].at(2)["kept"] == false);
  CHECK_FALSE(resumed["shapes"].at(2)["buckets"].empty());
}

TEST_CASE("q4-autotune: a file that cannot be written ends no run, and nothing that was there is lost") {
  const Sandbox box;
  std::ofstream(box.file("shapes.csv")) << "k,n,group\n256,128,32\n2048,4096,128\n";
  const std::string file = box.file("t.jsonl"), tune = "q4-autotune --device cpu --shapes " + box.file("shapes.csv") +
                                                       " --m 1,64 --budget 24 --out " + file;
  // After the first shape a folder takes the file's place, as a full disk would: the second one cannot be saved.
  const std::string trouble = "sh -c '\"$@\" & pid=$!; while [ $(cat " + file +
                              " 2>/dev/null | wc -l) -lt 1 ] && kill -0 $pid; do sleep 0.02; done; mv " + file + " " +
                              file + ".1 && mkdir " + file + "; wait $pid' sh ";
  const Ended ended = box.run(tune, true, trouble);
  CHECK(ended.status == 1);
  CHECK(contains(ended.out, "tried again at the end"));
  CHECK(contains(ended.out, "2048x4096 g128: not saved: TuningDb::load: path = " + file + ": is a folder"));
  TuningDb db;
  db.load(file + ".1");
  CHECK(db.size() == 1);

  // Told before anything is measured, and nothing is overwritten: a damaged file, also with --again; a device; an
  // input.
  std::ofstream(box.file("damaged.jsonl")) << "{\"q4_tuning\":1";
  for (const std::string out : {"damaged.jsonl --again", "t.jsonl", "shapes.csv"}) {
    const Ended refused = box.run(kTune + std::string("--out ") + box.file(out), true);
    CHECK(refused.status == 2);
    CHECK_FALSE(contains(refused.out, "measured at"));
  }
  CHECK(box.read("damaged.jsonl") == "{\"q4_tuning\":1");
  const std::string both = box.file("a");
  CHECK(contains(box.run(kTune + std::string("--out ") + both + " --report " + both, true).out, "file of --out"));
}

TEST_CASE("q4-autotune: what an earlier run found for other m stays") {
  const Sandbox box;
  const std::string out = " --json --out " + box.file("t.jsonl");
  CHECK(box.run(kTune + out).status == 0);
  CHECK(box.run(kShape + std::string("--m 1,2 --again") + out).status == 0);
  TuningDb db;
  db.load(box.file("t.jsonl"));
  REQUIRE(db.size() == 1);
  const TuningRecord record = db.records()[0];
  for (const std::int64_t m : {1, 2, 16}) CHECK(std::ranges::count(record.buckets, m, &TunedBucket::m) == 1);
}

TEST_CASE("q4-autotune: more shapes than the budget has time for end within 10% of it, each with something") {
  const Sandbox box;
  std::ofstream shapes(box.file("s.csv"));
  shapes << "k,n,group\n";
  for (const int n : {2048, 4096, 3072, 6144, 2560, 5120}) shapes << "2048," << n << ",128\n";
  shapes.close();
  constexpr int kBudget = 8 * test::kSlower;
  const Json tuned = Json::parse(box.run("q4-autotune --device cpu --shapes " + box.file("s.csv") +
                                         " --m 1-512 --json --budget " + std::to_string(kBudget))
                                     .out);
  CHECK(tuned["seconds"] <= kBudget * 1.1);
  for (const Json& shape : tuned["shapes"]) CHECK_FALSE(shape["buckets"].empty());
}

TEST_CASE("q4-autotune: two on one device notice each other, take turns and lose nothing") {
  const Sandbox box;
  const std::string out = "--again --out " + box.file("t.jsonl");
  Ended other;
  std::jthread beside(
      [&] { other = box.run("q4-autotune --device cpu --shape 4096x8192 --m 1,256 --budget 20 " + out, true); });
  std::string heard;
  for (int i = 0; i < 30 && !contains(heard, "another q4-autotune (process "); ++i)
    heard += box.run(kTune + out, true).out;
  beside.join();
  CHECK(contains(heard + other.out, "another q4-autotune (process "));
  CHECK(contains(heard + other.out, "taking turns"));
  TuningDb db;
  db.load(box.file("t.jsonl"));
  CHECK(db.size() == 2);
}

TEST_CASE("q4-autotune: shards write their own files, which q4-cache merge unites; slices; recorded shapes; policies") {
  const Sandbox box;
  std::ofstream(box.file("s.csv")) << "layer,k,n,group\nqkv,256,128,32\no,256,256,32\ndown,512,128,32\n";
  const std::string tune =
      "q4-autotune --device cpu --shapes " + box.file("s.csv") + " --m 1,2 --policy warm " + kBudget;
  std::string files;
  for (const char* shard : {"0", "1"}) {
    CHECK(box.run(tune + "--shard " + shard + "/2 --out " + box.file("gpu.jsonl")).status == 0);
    files += " " + box.file(std::string("gpu-") + shard + "-of-2.jsonl");
  }
  const Ended merge = box.run("q4-cache merge --json --out " + box.file("gpu.jsonl") + files);
  REQUIRE(merge.status == 0);
  CHECK(Json::parse(merge.out)["records"] == 3);
  CHECK(Json::parse(merge.out)["conflicts"].empty());
  CHECK(box.run("q4-cache diff " + box.file("gpu.jsonl ") + box.file("gpu.jsonl")).status == 0);
  CHECK(box.run("q4-cache diff " + box.file("gpu.jsonl ") + box.file("gpu-0-of-2.jsonl")).status == 1);
  CHECK(box.run("q4-cache diff " + box.file("gpu.jsonl ") + box.file("none.jsonl")).status == 2);
  CHECK(box.run("q4-cache merge --out " + box.file("x.jsonl ") + box.file("none.jsonl")).status == 2);

  const Json sliced = Json::parse(box.run(tune + "--tp 2 --json --out " + box.file("tp.jsonl")).out)["shapes"];
  REQUIRE(sliced.size() == 3);
  CHECK(sliced.at(0)["n"] == 64);
  CHECK(sliced.at(1)["k"] == 128);

  std::ofstream(box.file("u.jsonl")) << R"({"k":256,"n":64,"group":32,"act_order":true,"activation":"fp32"})"
                                     << "\n";
  const Json recorded =
      only_shape(box.run("q4-autotune --device cpu --m 1,2 " + kBudget + "--json --policy warm --shapes " +
                         box.file("u.jsonl") + " --out " + box.file("w.jsonl")));
  CHECK(recorded["activation"] == "fp32");
  CHECK(recorded["act_order"] == true);
  CHECK(recorded["copies"] == 1);
  TuningDb warm;
  warm.load(box.file("w.jsonl"));
  CHECK(warm.records().at(0).key.policy == "warm");
}

/// Chromium's name here; empty when there is none.
std::string browser() {
  for (const char* name : {"chromium", "chromium-browser", "google-chrome"})
    if (std::system((std::string("command -v ") + name + " >/dev/null 2>&1").c_str()) == 0) return name;
  return {};
}

TEST_CASE("q4-autotune --report: a browser draws the page without complaint, with every plot") {
  const Sandbox box;
  const std::string tune =
      "q4-autotune --device cpu --shape 512x256 --group 64 --activation fp32 --m 1,16,64 --budget 10 ";
  REQUIRE(box.run(tune + "--report " + box.file("report.html")).status == 0);
  const std::string page = box.read("report.html");
  CHECK(contains(page, "prefers-color-scheme: dark"));
  for (const char* part : {"http:", "https:", "<script", "src=", "url(", "@import"}) {
    CAPTURE(part);
    CHECK_FALSE(contains(page, part));  // nothing from elsewhere
  }
  CHECK(contains(box.run(tune + "--again --report " + box.file("no/such/folder.html"), true).out, "--report"));

  const std::string chromium = browser();
  if (chromium.empty()) return test::skip("there is no chromium to draw the report");
  const auto draw = [&](const std::string& file) {
    const std::string errors = box.file(file + ".log");
    const std::string line = "timeout 100 " + chromium +
                             " --headless --no-sandbox --disable-gpu --disable-dev-shm-usage " +
                             "--user-data-dir=" + box.file("profile") + " --enable-logging=stderr --dump-dom file://" +
                             box.file(file) + " >" + box.file(file + ".dom") + " 2>" + errors;
    CHECK(std::system(line.c_str()) == 0);
    return box.read(file + ".dom");
  };
  const std::string dom = draw("report.html");
  CHECK_FALSE(contains(box.read("report.html.log"), "CONSOLE"));
  for (const char* id : {"kernel-map", "roofline-0", "spread-0", "left-out", "about"}) {
    CAPTURE(id);
    CHECK(contains(dom, std::string("id=\"") + id + '"'));
  }
  const auto plot = dom.substr(dom.find("id=\"roofline-0\""));
  for (const char* style : {"line s-tuned", "line s-default", "line s-dense", "line s-floor"}) {
    CAPTURE(style);
    CHECK(contains(plot.substr(0, plot.find("</svg>")), style));
  }
  std::ofstream(box.file("broken.html")) << page
                                         << "<script>console.error('no')</script>";  // what is looked for does appear
  draw("broken.html");
  CHECK(contains(box.read("broken.html.log"), "CONSOLE"));
}

}  // namespace
}  // namespace q4::tools
