// The report of a tuning run, from synthetic results: what it says, and that a browser can show it on a narrow page.
#include <doctest/doctest.h>

#include <cstdlib>

#include "autotune/plot.hpp"
#include "autotune/report.hpp"
#include "report.hpp"
#include "sandbox.hpp"

namespace q4::autotune {
namespace {

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

/// Three shapes: one with every m, one of which m = 512 has one sample, one that was not measured. `speed`: 1 is a
/// GPU's.
TuningRun synthetic(double speed) {
  TuningRun run;
  run.info.name = "Synthetic Accelerator 9000", run.info.arch = "sm_90a";
  run.info.fingerprint = "Synthetic Accelerator 9000/sm_90a/132/with a rather long tail of caches and memory/141 GB";
  run.policy = "cold", run.file = "/some/folder/of/a/user/with/a/long/name/.cache/q4/tuning.jsonl";
  run.date = "2026-01-01 00:00:00 UTC", run.version = "0", run.kernels = std::string(64, 'a'), run.seconds = 60;
  run.versions = {{"compiler", "NVRTC 13.0"}, {"driver", "580"}};
  for (const char* label : {"qkv", "gate_up", "down"}) {
    TunedShape& shape = run.shapes.emplace_back();
    shape.problem = {label, 4096, label[0] == 'g' ? 28672 : 6144, 128, label[0] == 'd'};
    shape.reached = true;
    if (label[0] == 'd') {
      shape.tuned.notes = {"not measured: 1.2 s are left for it, and setting it up takes about 4.5 s"};
      continue;
    }
    TuningRecord& record = shape.tuned.record;
    record.floor_us = 4 / speed;
    for (std::int64_t m = 1; m <= 4096; m *= 2) {
      const double us = (5 + 0.04 * static_cast<double>(m)) / speed, faster = m == 16 ? us / 1.416 : us;
      const std::string tactic = m < 16    ? "remap+gemv half2=1 rows=2 tiles=2 warps=8 columns=4"
                                 : m < 256 ? "batch tile=64x128 stages=4 warps=8"
                                           : "prefill tile=128x256 clusters=2 stages=5 split=2";
      const bool once = m == 512 && label[0] == 'g';
      record.buckets.push_back({m, tactic, faster, faster * (once ? 1 : 0.97), faster * (once ? 1 : 1.02), us, 2 * us});
      MeasuredBucket& bucket = shape.tuned.buckets.emplace_back();
      bucket.m = m;
      bucket.found.contenders = {{"default", {us}, {us}, 0, {}}, {"other", {1.1 * us}, {1.1 * us}, 0, {}}};
    }
  }
  return run;
}

TEST_CASE("report: one sign for a gain, one unit, one sample without an interval, and why a shape has no times") {
  const std::string gpu = html_report(synthetic(1)), cpu = html_report(synthetic(1e-4));
  for (const std::string& page : {gpu, cpu}) {
    CHECK(contains(page, "+41.6%"));
    CHECK_FALSE(contains(page, "-29"));
    CHECK_FALSE(contains(page,
                         "\xe2\x88\x92"
                         "29"));
    CHECK(contains(page, ">no interval<"));
    CHECK(contains(page, "gain over the default"));
    CHECK(contains(page, "not measured: 1.2 s are left for it"));
    CHECK(contains(page, "down 4096"));
  }
  CHECK_FALSE(contains(gpu, "GFLOP/s"));
  CHECK(contains(gpu, "TFLOP/s"));
  CHECK_FALSE(contains(cpu, "TFLOP/s"));
  CHECK(contains(cpu, "GFLOP/s"));
  TuningRun empty = synthetic(1);
  for (TunedShape& shape : empty.shapes) shape.tuned = {}, shape.reached = false;
  CHECK(contains(html_report(empty), "not measured: no time was left for it"));
}

TEST_CASE("report: nothing is cut at the right of a narrow page") {
  std::string chromium;
  for (const char* name : {"chromium", "chromium-browser", "google-chrome"})
    if (std::system((std::string("command -v ") + name + " >/dev/null 2>&1").c_str()) == 0) chromium = name;
  if (chromium.empty()) return test::skip("there is no chromium to draw the report");
  const test::Sandbox box;
  std::string page = html_report(synthetic(1));
  for (std::size_t at = 0; (at = page.find("<details>", at)) != std::string::npos; ++at) page.insert(at + 8, " open");
  std::ofstream(box.file("report.html")) << page;
  std::ofstream wrapper(box.file("frames.html"));
  for (const int width : {1280, 600, 400, 320})
    wrapper << "<iframe width=\"" << width << "\" height=\"600\" srcdoc=\"" << escaped(page) << "\"></iframe>\n";
  wrapper << R"(<p id="out"></p><script>onload = () => {
    for (const f of document.querySelectorAll('iframe')) {
      const wide = f.contentWindow.innerWidth, over = [];
      for (const e of f.contentDocument.querySelectorAll('body *'))
        if (e.getBoundingClientRect().right > wide + 0.5 && !e.closest('.cell')) over.push(e.tagName + '.' + e.className);
      out.textContent += `[${f.width}: ${f.contentDocument.documentElement.scrollWidth <= wide ? 'fits' : 'scrolls'} ` +
                         `${over.length} over ${over[0] || ''}]`;
    }
  }</script>)";
  wrapper.close();
  const std::string line = "timeout 100 " + chromium +
                           " --headless --no-sandbox --disable-gpu --disable-dev-shm-usage " +
                           "--user-data-dir=" + box.file("profile") + " --virtual-time-budget=5000 --dump-dom file://" +
                           box.file("frames.html") + " >" + box.file("dom") + " 2>/dev/null";
  REQUIRE(std::system(line.c_str()) == 0);
  const std::string dom = box.read("dom"), said = dom.substr(std::min(dom.size(), dom.rfind("<p id=\"out\">")));
  CAPTURE(said.substr(0, 600));
  for (const char* width : {"1280", "600", "400", "320"})
    CHECK(contains(said, std::string("[") + width + ": fits 0 over ]"));
  if (const char* keep = std::getenv("Q4_KEEP_REPORT")) std::filesystem::copy(box.file("report.html"), keep);
}

}  // namespace
}  // namespace q4::autotune
