// Prints what came of uniting or comparing tuning files.
#include "tools/cache/tuning_files.hpp"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "autotune/merge.hpp"
#include "tools/common/common.hpp"
#include "tools/common/exit.hpp"

namespace q4::tools {
int merge_tuning(const std::string& out, const std::vector<std::string>& files, bool json) {
  std::vector<autotune::Conflict> conflicts;
  const TuningDb db = read_input([&] { return autotune::merged(files, conflicts); });
  db.save(out);
  Json rows = Json::array();
  for (const autotune::Conflict& c : conflicts) {
    rows.push_back({{"key", autotune::name_of(c.key)},
                    {"used", c.second ? "later" : "earlier"},
                    {"why", c.why},
                    {"points", c.points}});
    if (json) continue;
    fmt::print("conflict: {}: the {} file's record is used: {}\n", autotune::name_of(c.key),
               c.second ? "later" : "earlier", c.why);
    for (const std::string& p : c.points) fmt::print("  {}\n", p);
  }
  if (json)
    fmt::print("{}\n", Json{{"file", out}, {"records", db.size()}, {"conflicts", rows}}.dump(2));
  else
    fmt::print("{}: records: {}, conflicts: {}\n", out, db.size(), conflicts.size());
  return kDone;
}

int diff_tuning(const std::string& first, const std::string& second, bool json) {
  TuningDb a, b;
  const auto lines = read_input([&] {
    a.load(first), b.load(second);
    return autotune::differences(a, b);
  });
  if (json) {
    fmt::print("{}\n", Json{{"differences", lines}}.dump(2));
  } else {
    for (const std::string& line : lines) fmt::print("{}\n", line);
    if (lines.empty()) fmt::print("the same tactics: {} records\n", a.size());
  }
  return lines.empty() ? kDone : kFailed;
}

}  // namespace q4::tools
