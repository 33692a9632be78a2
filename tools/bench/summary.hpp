// Geometric means of a run of q4-bench over classes of m.
#pragma once

#include <string>

#include "tools/bench/points.hpp"

namespace q4::tools {

/// One row for each class of m that has points: how many, time over floor, over the dense BLAS and over the best peer, and at
/// how many points each of these was slower. Points without a time or without the other's count nowhere.
std::string summary_table(const BenchRun& run);
Json summary_json(const BenchRun& run);

}  // namespace q4::tools
