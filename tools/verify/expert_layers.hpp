// The layers of experts of a checkpoint, and their check: one product after the other, with the activation between.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <q4/q4.hpp>
#include <string>
#include <vector>

#include "tools/common/common.hpp"

namespace q4::tools {

/// "model.layers.0.mlp.experts" and how gate, up and down are called below each number.
struct ExpertLayer {
  std::string prefix;
  std::string gate, up, down;
  std::int64_t experts = 0;

  std::vector<std::string> gate_up_patterns() const { return {prefix + ".{}." + gate, prefix + ".{}." + up}; }
  std::string name_of(std::int64_t expert, const std::string& part) const {
    return prefix + "." + std::to_string(expert) + "." + part;
  }
};

/// The complete ones among these matrices, in order: experts 0, 1, ... with gate, up and down each, all supported.
std::vector<ExpertLayer> expert_layers(const std::vector<MatrixEntry>& matrices);

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
