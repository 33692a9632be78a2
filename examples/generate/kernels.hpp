// The GPU's kernels between the matrices that q4 multiplies by, as source for NVRTC.
#pragma once

#include <string>
#include <vector>

#include "config.hpp"

namespace generate {

constexpr int kSplits = 16;       ///< blocks at most that share a head's positions
constexpr int kHeadBlocks = 528;  ///< of the output layer: 4 for each of 132 multiprocessors

/// Warps in a block of `attend`, and tiles of 16 positions that each has in hand.
struct AttendShape {
  int warps, tiles;
};
AttendShape attend_shape(const Config& config);

/// Compiled for exactly one model: its sizes are constants of the kernels.
struct KernelSource {
  std::string text;
  std::vector<std::string> options;
};
KernelSource kernel_source(const Config& config);

extern const char* const kAttention;  ///< attention.cpp

}  // namespace generate
