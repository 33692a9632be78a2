// One matrix in each format that quantizers write, packed as their own code does it.
#pragma once

#include <string>
#include <vector>

#include "checkpoint_maker.hpp"
#include "reference.hpp"

namespace q4::test {

/// A format of checkpoints; see docs/formats.md.
struct MadeFormat {
  std::string name;
  std::string config;  ///< the quantization_config
  std::vector<FileTensor> tensors;
  PlainMatrix want;     ///< what they mean
  const char* packing;  ///< MatrixEntry::packing
  bool act_order = false;
};

/// Every format that holds one matrix of 128 x 192 named `prefix` (groups of 32; one group where the name says so).
std::vector<MadeFormat> made_formats(const std::string& prefix);

}  // namespace q4::test
