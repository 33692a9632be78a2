// The page: what was gained at a glance, which kernels serve, each shape, what was left out, and on what it ran.
#include "autotune/report.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "autotune/plot.hpp"
#include "autotune/report_parts.hpp"
#include "autotune/report_style.hpp"

namespace q4::autotune {

double gain(const TunedBucket& b) { return b.us > 0 && b.default_us > 0 ? b.default_us / b.us - 1 : 0; }

double geomean_gain(const TuningRecord& record) {
  double logs = 0;
  for (const TunedBucket& b : record.buckets) logs += std::log1p(gain(b));
  return record.buckets.empty() ? 0 : std::expm1(logs / static_cast<double>(record.buckets.size()));
}

double floor_us(const Problem& problem, const TuningRecord& record, std::int64_t m) {
  return record.floor_us * problem.bytes(m) / problem.bytes(0);
}

std::string signed_percent(double share) {
  return std::abs(share) < 0.0005 ? "0%" : fmt::format("{:+.1f}%", 100 * share);
}

std::string size_of_shape(const Problem& p) {
  if (p.experts > 0)
    return fmt::format("{}x{} of {} experts g{}{}", p.k, p.width, p.experts, p.group, p.act_order ? " act-order" : "");
  return fmt::format("{}x{} g{}{}{}", p.k, p.n, p.group, p.act_order ? " act-order" : "",
                     p.with.any() ? " " + p.with.text() : "");
}

std::string name_of(const TunedShape& shape) {
  const std::string& label = shape.problem.label;
  return label + (label.empty() ? "" : " ") + size_of_shape(shape.problem);
}

std::string why_not_measured(const TunedShape& shape) {
  if (!shape.tuned.record.buckets.empty()) return {};
  if (!shape.reached) return "no time was left for it";
  const std::string prefix = std::string(kNotMeasured) + ": ";
  for (const std::string& note : shape.tuned.notes)
    if (note.starts_with(prefix)) return note.substr(prefix.size());
  return shape.tuned.notes.empty() ? "unknown" : shape.tuned.notes.back();
}

ArithmeticUnit unit_of(const TuningRun& run) {
  double most = 0;
  for (const TunedShape& s : run.shapes)
    for (const TunedBucket& b : s.tuned.record.buckets)
      for (const double us : {b.us, b.us_low, b.default_us, b.dense_us})
        most = std::max(most, ArithmeticUnit{}.rate(s.problem, b.m, us));
  return most > 0 && most < 2 ? ArithmeticUnit{"GFLOP/s", 1e3} : ArithmeticUnit{};
}

std::string title_of(const TunedShape& shape) {
  const Problem& p = shape.problem;
  return fmt::format("{} {} × {}, group {}{}, {}", escaped(p.label), p.k, p.n, p.group,
                     p.act_order ? ", act-order" : "", to_string(shape.activation));
}

namespace {

struct Totals {
  std::size_t complete = 0, tuned = 0, measured = 0, pruned = 0, rejected = 0, quarantined = 0, points = 0, better = 0;
  double gain = 0;
};

Totals totals_of(const TuningRun& run) {
  Totals t;
  double logs = 0;
  for (const TunedShape& s : run.shapes) {
    const TuningRecord& r = s.tuned.record;
    t.complete += s.tuned.complete, t.tuned += !r.buckets.empty();
    t.measured += s.tuned.measured, t.pruned += s.tuned.pruned, t.quarantined += r.quarantined.size();
    for (const MeasuredBucket& b : s.tuned.buckets)
      for (const Contender& c : b.found.contenders) t.rejected += !c.rejected.empty();
    for (const TunedBucket& b : r.buckets) logs += std::log1p(gain(b)), ++t.points, t.better += gain(b) > 0.02;
  }
  t.gain = t.points > 0 ? std::expm1(logs / static_cast<double>(t.points)) : 0;
  return t;
}

std::string tile(const std::string& value, const std::string& what) {
  return fmt::format("<div class=\"tile\"><b>{}</b><span>{}</span></div>", escaped(value), escaped(what));
}

std::string tiles(const TuningRun& run) {
  const Totals t = totals_of(run);
  return "<div class=\"tiles\">" + tile(signed_percent(t.gain), "geometric mean gain over the defaults") +
         tile(fmt::format("{} of {}", t.better, t.points), "points where the tuned tactic is over 2% faster") +
         tile(fmt::format("{} of {}", t.complete, run.shapes.size()), "shapes measured completely") +
         tile(std::to_string(t.measured), "measurements of a tactic at an m") +
         tile(std::to_string(t.pruned), "skipped: a bound says that they cannot win") +
         tile(std::to_string(t.rejected + t.quarantined), "rejected or quarantined") +
         tile(fmt::format("{:.0f} s", run.seconds),
              run.budget > 0 ? fmt::format("of a budget of {:.0f} s", run.budget) : std::string("no budget")) +
         "</div>";
}

std::string left_out(const TuningRun& run) {
  std::string rows;
  const auto row = [&](const TunedShape& s, const char* what, const char* style, const std::string& text) {
    rows += fmt::format(
        "<tr><td class=\"wide\" data-of=\"shape\">{}</td><td data-of=\"what\" class=\"{}\">{}</td><td class=\"wide\" "
        "data-of=\"why\">{}</td></tr>\n",
        title_of(s), style, what, escaped(text));
  };
  for (const TunedShape& s : run.shapes) {
    for (const QuarantinedTactic& q : s.tuned.record.quarantined)
      row(s, "quarantined", "bad", fmt::format("{} at m = {}: {}", q.tactic, q.m, q.reason));
    if (const std::string why = why_not_measured(s); !why.empty()) row(s, "not measured", "bad", why);
    for (const std::string& note : s.tuned.notes)
      if (note.find("quarantined") == std::string::npos &&
          (why_not_measured(s).empty() || !note.starts_with(kNotMeasured)))
        row(s, s.tuned.failed ? "failed" : note.find("rejected") != std::string::npos ? "rejected" : "note", "", note);
    if (s.tuned.pruned > 0)
      row(s, "skipped", "", fmt::format("measurements that a bound made unnecessary: {}", s.tuned.pruned));
  }
  if (rows.empty()) rows = "<tr><td colspan=\"3\">Nothing: every tactic was measured at every m.</td></tr>";
  return "<h2 id=\"left-out\">What is not in the result</h2><p class=\"note\">Skipped: the tactic was already slower "
         "at a "
         "smaller m than the best at this one, or would move more bytes than time allows. Rejected: wrong results, or "
         "an "
         "error. Quarantined: it crashed or hung the process that measured it, and is not tried again.</p>"
         "<div class=\"card\"><table class=\"stack\"><tr><th>shape</th><th>what</th><th>why</th></tr>" +
         rows + "</table></div>";
}

std::string about(const TuningRun& run) {
  std::string list;
  const auto fact = [&](const std::string& name, const std::string& value) {
    if (!value.empty()) list += fmt::format("<dt>{}</dt><dd>{}</dd>", escaped(name), escaped(value));
  };
  fact("device", fmt::format("{} ({})", run.info.name, run.info.device.str()));
  fact("architecture", run.info.arch);
  fact("fingerprint", run.info.fingerprint);
  fact("driver", run.info.driver);
  for (const auto& [name, version] : run.versions)
    if (name != "driver") fact(name, version);
  fact("q4", run.version + ", kernels " + run.kernels.substr(0, 16));
  fact("weights", run.policy == "cold" ? "cold: each run reads another copy, so that no cache holds them"
                                       : "warm: each run reads the same copy");
  fact("tuning file", run.file);
  fact("date", run.date);
  return "<h2 id=\"about\">Device and versions</h2><div class=\"card\"><dl>" + list + "</dl></div>";
}

}  // namespace

std::string html_report(const TuningRun& run) {
  const ArithmeticUnit unit = unit_of(run);
  std::string cards;
  for (std::size_t i = 0; i < run.shapes.size(); ++i) cards += shape_card(run.shapes[i], i, unit);
  if (cards.empty()) cards = "<p>There was no shape to measure.</p>";
  return fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
      "content=\"width=device-width, initial-scale=1\"><title>q4 tuning report: {0}</title><style>{1}</style></head>\n"
      "<body><main><p class=\"over\">q4 tuning report</p><h1>{0}</h1><p class=\"soft\">{2}, {3}{4}</p>\n{5}\n"
      "<h2 id=\"kernels\">Chosen kernels</h2><p class=\"note\">Colour: the kernel. Number: its gain over the default "
      "tactic of that m, which is the default's time divided by its own, minus 1. \"instead\": the default is "
      "quarantined. "
      "Rest the mouse on a cell for the whole tactic.</p>{6}\n"
      "<h2 id=\"shapes\">Shapes</h2><p class=\"note\">Times are medians of one multiplication with {7} weights. A "
      "tactic replaces the default only if it is more than 2% faster and the 95% interval of the paired gain excludes "
      "zero. Where there was time for one sample, there is no interval.</p>\n"
      "{8}{9}{10}</main></body></html>\n",
      escaped(run.info.name), kReportStyle, escaped(run.info.arch), escaped(run.date),
      run.interrupted ? ", interrupted" : "", tiles(run), kernel_map(run), escaped(run.policy), cards, left_out(run),
      about(run));
}

}  // namespace q4::autotune
