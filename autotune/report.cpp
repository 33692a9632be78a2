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

std::string title_of(const TunedShape& shape) {
  const Problem& p = shape.problem;
  return fmt::format("{} {} × {}, group {}{}, {}", escaped(p.label), p.k, p.n, p.group,
                     p.act_order ? ", act-order" : "", to_string(shape.activation));
}

namespace {

/// What a person tells kernels apart by: the tactic's first word.
std::string family(const std::string& tactic) { return tactic.substr(0, tactic.find(' ')); }

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
    rows += fmt::format("<tr><td>{}</td><td class=\"{}\">{}</td><td>{}</td></tr>\n", title_of(s), style, what,
                        escaped(text));
  };
  for (const TunedShape& s : run.shapes) {
    for (const QuarantinedTactic& q : s.tuned.record.quarantined)
      row(s, "quarantined", "bad", fmt::format("{} at m = {}: {}", q.tactic, q.m, q.reason));
    if (!s.reached) row(s, "not measured", "bad", run.interrupted ? "interrupted before" : "no time was left");
    for (const std::string& note : s.tuned.notes)
      if (note.find("quarantined") == std::string::npos)
        row(s, s.tuned.failed ? "failed" : note.find("rejected") != std::string::npos ? "rejected" : "note", "", note);
    if (s.tuned.pruned > 0)
      row(s, "skipped", "", fmt::format("measurements that a bound made needless: {}", s.tuned.pruned));
  }
  if (rows.empty()) rows = "<tr><td colspan=\"3\">Nothing: every tactic was measured at every m.</td></tr>";
  return "<h2 id=\"left-out\">What is not in the result</h2><p class=\"note\">Skipped: the tactic was already slower "
         "at a "
         "smaller m than the best at this one, or would move more bytes than time allows. Rejected: wrong results, or "
         "an "
         "error. Quarantined: it crashed or hung the process that measured it, and is not tried again.</p>"
         "<div class=\"card\"><table><tr><th>shape</th><th>what</th><th>why</th></tr>" +
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

std::string heat_map(const TuningRun& run) {
  std::set<std::int64_t> ms;
  std::vector<std::string> families;
  for (const TunedShape& s : run.shapes)
    for (const TunedBucket& b : s.tuned.record.buckets) {
      ms.insert(b.m);
      if (std::ranges::find(families, family(b.tactic)) == families.end()) families.push_back(family(b.tactic));
    }
  if (ms.empty()) return "";
  const auto style = [&](const std::string& tactic) {
    return std::min<std::ptrdiff_t>(std::ranges::find(families, family(tactic)) - families.begin(), 6);
  };
  constexpr int kLabels = 190, kRow = 46, kTop = 24;
  const int cell = std::clamp(900 / static_cast<int>(ms.size()), 64, 110);
  std::string body;
  int column = 0;
  for (const std::int64_t m : ms)
    body += fmt::format("<text class=\"tick\" x=\"{}\" y=\"14\" text-anchor=\"middle\">m = {}</text>",
                        kLabels + column++ * cell + cell / 2, m);
  int y = kTop;
  for (const TunedShape& s : run.shapes) {
    if (s.tuned.record.buckets.empty()) continue;
    body += fmt::format("<text x=\"0\" y=\"{}\">{}</text><text class=\"who\" x=\"0\" y=\"{}\">{} × {}, g{}{}</text>\n",
                        y + 18, escaped(s.problem.label), y + 34, s.problem.k, s.problem.n, s.problem.group,
                        s.problem.act_order ? ", act-order" : "");
    column = 0;
    for (const std::int64_t m : ms) {
      const int x = kLabels + column++ * cell;
      const auto b = std::ranges::find(s.tuned.record.buckets, m, &TunedBucket::m);
      if (b == s.tuned.record.buckets.end()) continue;
      const bool better = gain(*b) > 0.0005;
      const std::string shown = family(b->tactic);
      const auto room = static_cast<std::size_t>((cell - 8) / 6);
      body += fmt::format(
          "<g><rect class=\"cell f{}\" x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" rx=\"4\"/><text class=\"{}\" "
          "x=\"{}\" "
          "y=\"{}\" text-anchor=\"middle\">{}</text><text class=\"who\" x=\"{}\" y=\"{}\" "
          "text-anchor=\"middle\">{}</text>"
          "<title>{}</title></g>\n",
          style(b->tactic), x + 1, y + 1, cell - 2, kRow - 2, better ? "gain" : "kept", x + cell / 2, y + 19,
          better              ? signed_percent(gain(*b))
          : b->default_us > 0 ? "default"
                              : "instead",
          x + cell / 2, y + 35, escaped(shown.size() > room ? shown.substr(0, room - 1) + "…" : shown),
          escaped(fmt::format("m = {}: {}: {} us, default {} us", m, b->tactic, short_number(b->us),
                              short_number(b->default_us))));
    }
    y += kRow;
  }
  std::string legend;
  for (std::size_t i = 0; i < families.size(); ++i)
    legend += fmt::format(
        "<span><svg viewBox=\"0 0 30 16\" aria-hidden=\"true\"><rect class=\"f{}\" fill-opacity=\"0.6\" x=\"8\" "
        "y=\"1\" "
        "width=\"14\" height=\"14\" rx=\"3\"/></svg>{}</span>",
        std::min<std::size_t>(i, 6), escaped(families[i]));
  return fmt::format(
      "<figure><div class=\"legend\">{}</div><svg class=\"map\" id=\"heat-map\" style=\"width: {}px\" viewBox=\"0 "
      "0 {} {}\" role=\"img\" "
      "aria-label=\"The kernel of each shape at each m, and its gain over the default\">{}</svg></figure>",
      legend, kLabels + cell * static_cast<int>(ms.size()), kLabels + cell * static_cast<int>(ms.size()), y, body);
}

std::string html_report(const TuningRun& run) {
  std::string cards;
  for (std::size_t i = 0; i < run.shapes.size(); ++i)
    if (!run.shapes[i].tuned.record.buckets.empty()) cards += shape_card(run.shapes[i], i);
  if (cards.empty()) cards = "<p>No shape was measured.</p>";
  return fmt::format(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
      "content=\"width=device-width, initial-scale=1\"><title>q4 tuning report: {0}</title><style>{1}</style></head>\n"
      "<body><main><p class=\"over\">q4 tuning report</p><h1>{0}</h1><p class=\"soft\">{2}, {3}{4}</p>\n{5}\n"
      "<h2 id=\"kernels\">Chosen kernels</h2><p class=\"note\">Colour: the kernel. Number: its gain over the default "
      "tactic of that m; instead: the default is quarantined. Rest the mouse on a cell for the whole tactic.</p><div "
      "class=\"card\">{6}</div>\n"
      "<h2 id=\"shapes\">Shapes</h2><p class=\"note\">Times are medians of one multiplication with {7} weights. A "
      "tactic "
      "replaces the default only if it is more than 2% faster and the 95% interval of the paired gain excludes "
      "zero.</p>\n"
      "{8}{9}{10}</main></body></html>\n",
      escaped(run.info.name), kReportStyle, escaped(run.info.arch), escaped(run.date),
      run.interrupted ? ", interrupted" : "", tiles(run), heat_map(run), escaped(run.policy), cards, left_out(run),
      about(run));
}

}  // namespace q4::autotune
