// What q4-autotune prints when it is done.
#pragma once

#include <string>

#include "autotune/report.hpp"
#include "tools/common/common.hpp"

namespace q4::tools {

/// Tables and notes for people.
std::string tables(const autotune::TuningRun& run);
/// The same and more for programs. `all`: every tactic's time at every m, not of the finalists alone.
Json run_as_json(const autotune::TuningRun& run, bool all);
/// Where the tuning file and the report are, and how to use them. `by_default`: it is the file of the user's cache
/// folder.
std::string where_it_is(const autotune::TuningRun& run, const std::string& report, bool by_default);
/// Something was measured, or there was nothing to measure, and nothing failed.
bool succeeded(const autotune::TuningRun& run);

}  // namespace q4::tools
