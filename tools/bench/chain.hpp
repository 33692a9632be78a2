// A model's layers as one chain of multiplications: what programmatic dependent launch is for.
#pragma once

#include <cstdint>
#include <q4/q4.hpp>
#include <vector>

#include "autotune/workload.hpp"

namespace q4::tools {

struct ChainResult {
  std::int64_t layers = 0, m = 0;
  std::size_t bytes = 0;     ///< of packed weights, all layers
  double us = 0;             ///< one pass over all layers, each kernel waiting for the one before
  double overlapped_us = 0;  ///< the same with PlanOptions::overlap_previous
  double read_only_us = 0;   ///< a kernel that only reads as many bytes; 0: unknown
};

/// Runs the problems in order, `layers` times over, with weights that are cold each time, as one captured graph on a
/// GPU.
ChainResult run_chain(const Runtime& runtime, Device device, const std::vector<autotune::Problem>& problems,
                      DType activation, std::int64_t layers, std::int64_t m);

}  // namespace q4::tools
