// One shape of the report: the roofline over m, the times against the default with their spread, and the numbers.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "autotune/plot.hpp"
#include "autotune/report_parts.hpp"

namespace q4::autotune {
namespace {

using Points = std::vector<Plot::Point>;

const TunedBucket* bucket_at(const TuningRecord& record, std::int64_t m) {
  const auto found = std::ranges::find(record.buckets, m, &TunedBucket::m);
  return found == record.buckets.end() ? nullptr : &*found;
}

std::vector<double> ticks_of(const TuningRecord& record) {
  std::vector<double> ticks;
  for (const TunedBucket& b : record.buckets) ticks.push_back(static_cast<double>(b.m));
  return ticks;
}

constexpr Plot::Size kPlotSize{480, 340};

std::string interval(const TunedBucket& b) {
  return b.us_low < b.us_high ? short_number(b.us_low) + " – " + short_number(b.us_high) : "no interval";
}

std::string legend_entry(const std::string& style, const std::string& mark, const std::string& text) {
  std::string shape = fmt::format("<path class=\"line {}\" d=\"M0 8H30\"/>", style);
  if (mark == "circle") shape += "<circle class=\"mark\" cx=\"15\" cy=\"8\" r=\"4\"/>";
  if (mark == "square") shape += "<rect class=\"mark\" x=\"11.5\" y=\"4.5\" width=\"7\" height=\"7\"/>";
  if (mark == "diamond") shape += "<path class=\"mark\" d=\"M15 3l5 5l-5 5l-5 -5z\"/>";
  if (mark == "dot") shape = "<circle class=\"mark\" cx=\"15\" cy=\"8\" r=\"2.5\"/>";
  return fmt::format("<span><svg viewBox=\"0 0 30 16\" aria-hidden=\"true\"><g class=\"{}\">{}</g></svg>{}</span>",
                     style, shape, escaped(text));
}

std::string dense_name(const TuningRecord& record) {
  const auto type = record.provenance.find("dense");
  return "dense BLAS" + (type == record.provenance.end() ? "" : ", " + type->second + " weights");
}

/// Arithmetic a second over m, both logarithmic, beneath the roof that memory makes.
std::string roofline(const TunedShape& shape, std::size_t index, const ArithmeticUnit& unit) {
  const Problem& p = shape.problem;
  const TuningRecord& r = shape.tuned.record;
  const auto rate = [&](std::int64_t m, double us) { return unit.rate(p, m, us); };
  double most = 0, least = 1e300;
  for (const TunedBucket& b : r.buckets)
    for (const double us : {b.us, b.us_low, b.us_high, b.default_us, b.dense_us})
      if (us > 0) most = std::max(most, rate(b.m, us)), least = std::min(least, rate(b.m, us));
  most = std::max(most, 4 * least);  // a single point needs an axis too
  Points floor, defaults, tuned, dense;
  for (const TunedBucket& b : r.buckets) {
    const auto m = static_cast<double>(b.m);
    const auto point = [&](Points& points, const char* what, double us, double low, double high) {
      if (us > 0)
        points.push_back({m, rate(b.m, us), rate(b.m, high), rate(b.m, low),
                          fmt::format("m = {}, {}: {} us, {} {}", b.m, what, short_number(us),
                                      short_number(rate(b.m, us)), unit.name)});
    };
    point(floor, "read floor", floor_us(p, r, b.m), 0, 0);
    point(defaults, "default", b.default_us, 0, 0);
    point(tuned, ("tuned (" + b.tactic + ")").c_str(), b.us, b.us_low, b.us_high);
    point(dense, "dense BLAS", b.dense_us, 0, 0);
  }
  Plot plot(fmt::format("roofline-{}", index), kPlotSize, ticks_of(r), Plot::Scale::kLog, least / 1.5, most * 1.6);
  plot.axes("m, rows of x", unit.name, "");
  std::string legend = legend_entry("s-tuned", "circle", "tuned, with its 95% interval");
  plot.line(floor, "s-floor", "none");
  plot.line(dense, "s-dense", "diamond");
  plot.line(defaults, "s-default", "square");
  plot.line(tuned, "s-tuned", "circle");
  legend += legend_entry("s-default", "square", "default");
  if (!dense.empty()) legend += legend_entry("s-dense", "diamond", dense_name(r));
  if (!floor.empty()) legend += legend_entry("s-floor", "", "roof of memory: W read once");
  return fmt::format(
      "<figure><figcaption>Speed over m; both axes logarithmic, higher is better</figcaption><div "
      "class=\"legend\">{}</div>"
      "{}</figure>",
      legend, plot.svg("Roofline of " + p.label + ": " + unit.name + " over m of the tuned and the default tactic"));
}

/// Gain over the default: of the finalists, and how sure the winner's is.
std::string spread(const TunedShape& shape, std::size_t index) {
  constexpr double kLeastShown = -0.35;  // what is slower still says nothing more
  Points tuned, others;
  double low = -0.1, high = 0.1;
  for (const MeasuredBucket& b : shape.tuned.buckets) {
    const TunedBucket* const used = bucket_at(shape.tuned.record, b.m);
    if (!used || used->default_us <= 0) continue;
    for (const Contender& c : b.found.contenders) {
      if (c.final.empty() || c.id == used->tactic) continue;
      const double gained = used->default_us / c.us() - 1;
      others.push_back(
          {static_cast<double>(b.m), 100 * gained, 0, 0,
           fmt::format("m = {}: {}: {} us, gain {}", b.m, c.id, short_number(c.us()), signed_percent(gained))});
      if (gained > kLeastShown) low = std::min(low, gained - 0.03);
      high = std::max(high, gained + 0.05);
    }
  }
  for (const TunedBucket& b : shape.tuned.record.buckets) {
    if (b.default_us <= 0) continue;
    const auto gained = [&](double us) { return b.default_us / us - 1; };
    tuned.push_back({static_cast<double>(b.m), 100 * gain(b), 100 * gained(b.us_high), 100 * gained(b.us_low),
                     fmt::format("m = {}: {}: {} us ({}), gain {}", b.m, b.tactic, short_number(b.us), interval(b),
                                 signed_percent(gain(b)))});
    high = std::max(high, gained(b.us_low) + 0.05);
    low = std::min(low, std::max(gained(b.us_high) - 0.03, kLeastShown));
  }
  Plot plot(fmt::format("spread-{}", index), kPlotSize, ticks_of(shape.tuned.record), Plot::Scale::kLinear, 100 * low,
            100 * high);
  plot.band(0, 2, "within");
  plot.axes("m, rows of x", "gain over the default", "%");
  plot.rule(0, "zero");
  plot.marks(others, "s-other", "dot");
  plot.marks(tuned, "s-tuned", "circle");
  const std::string legend = legend_entry("s-tuned", "circle", "chosen, with its 95% interval") +
                             legend_entry("s-default", "", "default") +
                             (others.empty() ? "" : legend_entry("s-other", "dot", "other finalists"));
  return fmt::format(
      "<figure><figcaption>Gain over the default, higher is faster; within the grey band the default "
      "stays</figcaption><div class=\"legend\">{}</div>{}</figure>",
      legend, plot.svg("Gains of the finalists of " + shape.problem.label + " over the default, over m"));
}

std::string numbers(const TunedShape& shape, const ArithmeticUnit& unit) {
  const Problem& p = shape.problem;
  const TuningRecord& r = shape.tuned.record;
  std::string rows;
  for (const TunedBucket& b : r.buckets) {
    const double floor = floor_us(p, r, b.m);
    const auto or_dash = [](double value) { return value > 0 ? short_number(value) : "–"; };
    const auto cell = [&](const char* of, const std::string& text, const char* style = "n") {
      rows += fmt::format("<td class=\"{}\" data-of=\"{}\">{}</td>", style, of, text);
    };
    rows += "<tr>";
    cell("m", std::to_string(b.m));
    cell("default us", or_dash(b.default_us));
    cell("tuned us", "<b>" + short_number(b.us) + "</b>");
    cell("95% interval", interval(b));
    cell("gain", b.default_us > 0 ? signed_percent(gain(b)) : "default quarantined", gain(b) > 0 ? "n good" : "n");
    cell("GB/s", short_number(p.bytes(b.m) / b.us / 1e3));
    cell(unit.name, short_number(unit.rate(p, b.m, b.us)));
    cell("of floor", floor > 0 ? fmt::format("{:.0f}%", 100 * floor / b.us) : "–");
    cell("dense us", or_dash(b.dense_us));
    cell("tactic", escaped(b.tactic), "t wide");
    rows += "</tr>\n";
  }
  return fmt::format(
      "<details><summary>Numbers</summary><table class=\"stack\"><tr><th class=\"n\">m</th><th class=\"n\">default "
      "us</th><th class=\"n\">tuned us</th><th class=\"n\">95% interval</th><th class=\"n\">gain</th><th "
      "class=\"n\">GB/s</th><th class=\"n\">{}</th><th class=\"n\">of floor</th><th class=\"n\">dense "
      "us</th><th>tactic</th></tr>\n{}</table></details>",
      unit.name, rows);
}

}  // namespace

std::string shape_card(const TunedShape& shape, std::size_t index, const ArithmeticUnit& unit) {
  const TuningRecord& r = shape.tuned.record;
  if (const std::string why = why_not_measured(shape); !why.empty())
    return fmt::format(
        "<section class=\"card\"><div class=\"head\"><h3>{}</h3><span class=\"bad\">not measured: "
        "{}</span></div></section>\n",
        title_of(shape), escaped(why));
  const std::string crossover = r.reconstruct_from > 0
                                    ? fmt::format("reconstruct + BLAS from m = {}", r.reconstruct_from)
                                    : fmt::format("direct kernels up to m = {}", r.buckets.back().m);
  std::string facts = fmt::format("geometric mean gain {}; {}", signed_percent(geomean_gain(r)), crossover);
  if (const auto clock = r.provenance.find("sm_clock_mhz"); clock != r.provenance.end() && clock->second != "unknown")
    facts += "; SM clock " + clock->second + " MHz";
  if (shape.kept) facts += "; kept from an earlier run";
  return fmt::format(
      "<section class=\"card\"><div class=\"head\"><h3>{}</h3><span class=\"soft\">{}</span></div>"
      "<div class=\"plots\">{}{}</div>{}</section>\n",
      title_of(shape), escaped(facts), roofline(shape, index, unit), spread(shape, index), numbers(shape, unit));
}

}  // namespace q4::autotune
