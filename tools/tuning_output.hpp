// What q4-autotune prints when it is done.
#pragma once

#include <string>

#include "autotune/report.hpp"
#include "tools/common/common.hpp"

namespace q4::tools {

std::string name_of(const autotune::TunedShape& shape);       ///< "qkv 4096x6144 g128"
std::string size_of_shape(const autotune::Problem& problem);  ///< "4096x6144 g128 act-order"

/// Tables and notes for people.
std::string tables(const autotune::TuningRun& run);
/// The same and more for programs. `all`: every tactic's time at every m, not of the finalists alone.
Json run_as_json(const autotune::TuningRun& run, bool all);

}  // namespace q4::tools
