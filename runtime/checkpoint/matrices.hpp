// The quantized matrices among a checkpoint's tensors: which there are, and which reader has them.
#pragma once

#include <optional>
#include <q4/checkpoint.hpp>
#include <vector>

#include "runtime/checkpoint/formats/format.hpp"

namespace q4::checkpoint {

struct Matrices {
  QuantConfig config;
  std::vector<Matrix> list;  ///< sorted by name, numbers in numeric order
};

/// Every prefix with a qweight, weight_packed or B (with its s). `claimed` is checked against the shapes and fills in
/// what they leave open; without it everything comes from the shapes. A matrix that cannot be loaded is listed with the
/// reason.
Matrices find_matrices(const FileSet& files, const std::optional<ClaimedConfig>& claimed);

}  // namespace q4::checkpoint
