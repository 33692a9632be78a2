// The map of the report: a row for each shape, a cell for each m; the cells wrap where the page is narrow.
#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "autotune/plot.hpp"
#include "autotune/report_parts.hpp"

namespace q4::autotune {
namespace {

/// What a person tells kernels apart by: the tactic's first word.
std::string family(const std::string& tactic) { return tactic.substr(0, tactic.find(' ')); }

constexpr std::size_t kColours = 7;  // classes f0 to f6 of the style sheet; the last one is for all others

class Families {
 public:
  explicit Families(const TuningRun& run) {
    for (const TunedShape& s : run.shapes)
      for (const TunedBucket& b : s.tuned.record.buckets)
        if (std::ranges::find(names_, family(b.tactic)) == names_.end()) names_.push_back(family(b.tactic));
  }
  std::size_t colour(const std::string& name) const {
    return std::min<std::size_t>(static_cast<std::size_t>(std::ranges::find(names_, name) - names_.begin()),
                                 kColours - 1);
  }
  std::string legend() const {
    std::string text;
    for (const std::string& name : names_)
      text += fmt::format("<span><i class=\"swatch f{}\"></i>{}</span>", colour(name), escaped(name));
    return "<div class=\"legend\">" + text + "</div>";
  }

 private:
  std::vector<std::string> names_;
};

std::string cell(const TunedBucket& b, const Families& families) {
  const bool better = gain(b) > 0.0005;
  const std::string shown = better ? signed_percent(gain(b)) : b.default_us > 0 ? "default" : "instead";
  const std::string whole = fmt::format("m = {}: {}: {} us, default {} us", b.m, b.tactic, short_number(b.us),
                                        b.default_us > 0 ? short_number(b.default_us) : "quarantined,");
  return fmt::format(
      "<span class=\"cell f{}\" title=\"{}\"><small>m = {}</small><b class=\"{}\">{}</b><small>{}</small></span>",
      families.colour(family(b.tactic)), escaped(whole), b.m, better ? "gain" : "same", shown,
      escaped(family(b.tactic)));
}

}  // namespace

std::string kernel_map(const TuningRun& run) {
  std::set<std::int64_t> ms;
  for (const TunedShape& s : run.shapes)
    for (const TunedBucket& b : s.tuned.record.buckets) ms.insert(b.m);
  const Families families(run);
  std::string rows;
  for (const TunedShape& s : run.shapes) {
    std::string cells;
    for (const std::int64_t m : ms) {
      const auto b = std::ranges::find(s.tuned.record.buckets, m, &TunedBucket::m);
      const bool measured = b != s.tuned.record.buckets.end();
      if (measured) cells += cell(*b, families);
      if (!measured && !s.tuned.record.buckets.empty())
        cells += fmt::format("<span class=\"cell none\"><small>m = {}</small><b class=\"same\">–</b></span>", m);
    }
    if (const std::string why = why_not_measured(s); !why.empty())
      cells = "<p class=\"bad\">not measured: " + escaped(why) + "</p>";
    rows += fmt::format("<div class=\"who\"><b>{}</b><span>{} × {}, g{}{}</span></div><div class=\"cells\">{}</div>\n",
                        escaped(s.problem.label), s.problem.k, s.problem.n, s.problem.group,
                        s.problem.act_order ? ", act-order" : "", cells);
  }
  return fmt::format("<figure class=\"card\">{}<div class=\"map\" id=\"kernel-map\">{}</div></figure>",
                     families.legend(), rows);
}

}  // namespace q4::autotune
