// Tables, notes and JSON of a tuning run.
#include "tools/autotune/output.hpp"

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "runtime/base/settings.hpp"

namespace q4::tools {

using autotune::name_of;
using autotune::Problem;
using autotune::size_of_shape;
using autotune::TunedShape;
using autotune::TuningRun;

namespace {

std::string buckets_table(const TuningRun& run) {
  const autotune::ArithmeticUnit unit = autotune::unit_of(run);
  Table table({"shape", "k x n", "m", "default us", "tuned us", "95% interval", "gain", "GB/s", unit.name, "of floor",
               "tactic"});
  for (const TunedShape& shape : run.shapes) {
    const Problem& p = shape.problem;
    for (const TunedBucket& b : shape.tuned.record.buckets) {
      const double floor = autotune::floor_us(p, shape.tuned.record, b.m);
      table.add({p.label, size_of_shape(p), std::to_string(b.m), number(b.default_us), number(b.us),
                 b.us_low < b.us_high ? number(b.us_low) + "-" + number(b.us_high) : "no interval",
                 b.default_us > 0 ? percent(autotune::gain(b)) : "-", number(p.bytes(b.m) / b.us / 1e3),
                 number(unit.rate(p, b.m, b.us)), floor > 0 ? fmt::format("{:.0f}%", 100 * floor / b.us) : "-",
                 b.tactic});
    }
  }
  return table.empty() ? "" : "\n" + table.str() + "\n";
}

std::string shapes_table(const TuningRun& run) {
  Table table({"shape", "k x n", "reconstruct from m", "math", "half2 us", "fp32 us", "geomean gain", "copies",
               "tactics", "pruned", "quarantined"});
  for (const TunedShape& shape : run.shapes) {
    const TuningRecord& r = shape.tuned.record;
    if (r.buckets.empty()) continue;
    const char* const maths[] = {"either", "half2", "fp32"};
    table.add(
        {shape.problem.label, size_of_shape(shape.problem),
         r.reconstruct_from == 0 ? fmt::format("never to {}", r.buckets.back().m) : std::to_string(r.reconstruct_from),
         maths[static_cast<int>(r.math)], number(shape.tuned.half2_us), number(shape.tuned.fp32_us),
         percent(autotune::geomean_gain(r)), r.provenance.count("copies") ? r.provenance.at("copies") : "-",
         shape.kept ? "kept" : std::to_string(shape.tuned.measured),
         shape.kept ? "-" : std::to_string(shape.tuned.pruned), std::to_string(r.quarantined.size())});
  }
  return table.empty() ? "" : table.str();
}

}  // namespace

std::string tables(const TuningRun& run) {
  std::string notes;
  for (const TunedShape& shape : run.shapes) {
    for (const std::string& note : shape.tuned.notes) notes += fmt::format("  {}: {}\n", name_of(shape), note);
    if (shape.kept)
      for (const QuarantinedTactic& q : shape.tuned.record.quarantined)
        notes += fmt::format("  {}: m = {}: '{}' is quarantined: {}\n", name_of(shape), q.m, q.tactic, q.reason);
  }
  return buckets_table(run) + shapes_table(run) + (notes.empty() ? "" : "\nNotes\n" + notes);
}

Json run_as_json(const TuningRun& run, bool all) {
  Json out{{"device", run.info.device.str()},
           {"fingerprint", run.info.fingerprint},
           {"kernels", run.kernels},
           {"policy", run.policy},
           {"file", run.file},
           {"seconds", run.seconds},
           {"interrupted", run.interrupted},
           {"shapes", Json::array()}};
  for (const TunedShape& s : run.shapes) {
    const Problem& p = s.problem;
    TuningRecord r = s.tuned.record;
    r.provenance.erase(autotune::kUnfinished);  // for a later run, not for people
    Json shape{{"label", p.label},
               {"k", p.k},
               {"n", p.n},
               {"experts", p.experts},
               {"topk", p.topk},
               {"width", p.width},
               {"group", p.group},
               {"act_order", p.act_order},
               {"activation", to_string(s.activation)},
               {"kept", s.kept},
               {"complete", s.tuned.complete},
               {"failed", s.tuned.failed},
               {"notes", s.tuned.notes},
               {"not_measured", autotune::why_not_measured(s)},
               {"reconstruct_from", r.reconstruct_from},
               {"half2_us", s.tuned.half2_us},
               {"fp32_us", s.tuned.fp32_us},
               {"floor_us", r.floor_us},
               {"geomean_gain", autotune::geomean_gain(r)},
               {"measured", s.tuned.measured},
               {"pruned", s.tuned.pruned},
               {"copies", s.tuned.copies},
               {"cold_bytes", s.tuned.cold_bytes},
               {"provenance", r.provenance},
               {"quarantined", Json::array()},
               {"buckets", Json::array()}};
    for (const QuarantinedTactic& q : r.quarantined)
      shape["quarantined"].push_back({{"tactic", q.tactic}, {"m", q.m}, {"reason", q.reason}});
    for (const TunedBucket& b : r.buckets)
      shape["buckets"].push_back({{"m", b.m},
                                  {"tactic", b.tactic},
                                  {"us", b.us},
                                  {"low", b.us_low},
                                  {"high", b.us_high},
                                  {"default_us", b.default_us},
                                  {"dense_us", b.dense_us},
                                  {"gain", autotune::gain(b)},
                                  {"gbps", p.bytes(b.m) / b.us / 1e3},
                                  {"tflops", p.flops(b.m) / b.us / 1e6}});
    for (const autotune::MeasuredBucket& b : s.tuned.buckets)
      for (const autotune::Contender& c : b.found.contenders)
        if (all ? c.us() > 0 : !c.final.empty())
          shape["contenders"].push_back(
              {{"m", b.m}, {"tactic", c.id}, {"us", c.us()}, {"final", c.final.size()}, {"rejected", c.rejected}});
    out["shapes"].push_back(std::move(shape));
  }
  return out;
}

std::string where_it_is(const TuningRun& run, const std::string& report, bool by_default) {
  std::string text = fmt::format("\n{:.0f} s. Tuning file: {}{}\n", run.seconds, run.file,
                                 by_default && !is_set("Q4_TUNING") ? " (read by every Runtime of this user)"
                                                                    : "\nTo use it: export Q4_TUNING=" + run.file +
                                                                          ", or RuntimeOptions::tuning_files");
  if (!report.empty()) text += fmt::format("Report: {}\n", std::filesystem::absolute(report).string());
  return text;
}

bool succeeded(const TuningRun& run) {
  const bool nothing = std::ranges::all_of(run.shapes, [](const auto& s) { return s.tuned.record.buckets.empty(); });
  const bool failed = std::ranges::any_of(run.shapes, [](const auto& s) { return s.tuned.failed; });
  return !failed && (!nothing || run.shapes.empty());
}

}  // namespace q4::tools
