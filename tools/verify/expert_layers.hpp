// The check of a checkpoint's layers of experts: one product after the other, with the activation between.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <q4/q4.hpp>
#include <string>
#include <vector>

#include "tools/common/common.hpp"

namespace q4::tools {

struct VerifiedLayers {
  Json list = Json::array();
  std::size_t failed = 0;
  double worst = 0;
};

/// Loads each layer among the matrices to the device, runs `m` tokens with two experts each through it, and compares
/// some of them with fp64: SiLU(x @ gate) * (x @ up) @ down, summed with weights. One whose gate and up cannot be joined
/// is passed over. `print`: a line each.
VerifiedLayers verify_layers(const Runtime& runtime, Device device, const Checkpoint& checkpoint,
                             const std::vector<MatrixEntry>& matrices, DType type, std::int64_t m, bool print);

}  // namespace q4::tools
