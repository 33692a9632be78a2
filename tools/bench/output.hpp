// What q4-bench prints and writes: a table, JSON, a CSV.
#pragma once

#include <string>

#include "tools/bench/chain.hpp"
#include "tools/bench/points.hpp"

namespace q4::tools {

std::string bench_table(const BenchRun& run, const BenchOptions& options);
Json bench_json(const BenchRun& run, const BenchOptions& options);
std::string bench_csv(const BenchRun& run, const BenchOptions& options);

std::string chains_table(const std::vector<ChainResult>& chains);
Json chains_json(const std::vector<ChainResult>& chains);

}  // namespace q4::tools
