// Geometric means of a run of q4-bench over classes of m.
#include "tools/bench/summary.hpp"

#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "tools/common/common.hpp"

namespace q4::tools {
namespace {

struct Mean {
  double logs = 0;
  int points = 0, slower = 0;  ///< `slower`: where q4's time was the longer one
  void add(double us, double other_us) {
    if (us <= 0 || other_us <= 0) return;
    logs += std::log(us / other_us), ++points, slower += us > other_us;
  }
  double value() const { return std::exp(logs / points); }
};

struct Class {
  const char* name;
  std::int64_t first, last;
  Mean floor = {}, dense = {}, peer = {};
};

/// The ranges of m that behave alike, then all.
std::vector<Class> classes(const BenchRun& run) {
  constexpr auto kMost = std::numeric_limits<std::int64_t>::max();
  std::vector<Class> all = {{"1", 1, 1},       {"2-8", 2, 8},       {"9-16", 9, 16},
                            {"17-64", 17, 64}, {"65-256", 65, 256}, {"over 256", 257, kMost},
                            {"all", 1, kMost}};
  for (const Point& p : run.points)
    for (Class& c : all) {
      if (p.m < c.first || p.m > c.last || !p.exact) continue;
      c.floor.add(p.us.value, p.floor_us);
      c.dense.add(p.us.value, p.dense_us > 0 ? p.dense_us : p.onednn_us);
      if (run.baseline) c.peer.add(p.us.value, run.baseline->at(p.problem, p.m).best_us);
    }
  std::erase_if(all, [](const Class& c) { return !c.floor.points; });
  return all;
}

}  // namespace

std::string summary_table(const BenchRun& run) {
  Table table({"m", "points", "x floor", "x dense", "slower than dense", "x best peer", "slower than it"});
  const auto ratio = [](const Mean& mean) { return mean.points ? fmt::format("{:.3f}", mean.value()) : "-"; };
  const auto slower = [](const Mean& mean) {
    return mean.points ? fmt::format("{} of {}", mean.slower, mean.points) : "-";
  };
  for (const Class& c : classes(run))
    table.add({c.name, std::to_string(c.floor.points), ratio(c.floor), ratio(c.dense), slower(c.dense), ratio(c.peer),
               slower(c.peer)});
  return "geometric means of time over each:\n" + table.str();
}

Json summary_json(const BenchRun& run) {
  Json rows = Json::array();
  for (const Class& c : classes(run)) {
    Json row{{"m", c.name}, {"points", c.floor.points}, {"x_floor", c.floor.value()}};
    if (c.dense.points) row["x_dense"] = c.dense.value(), row["slower_than_dense"] = c.dense.slower;
    if (c.peer.points) row["x_peer"] = c.peer.value(), row["slower_than_peer"] = c.peer.slower;
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace q4::tools
