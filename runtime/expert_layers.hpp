// The layers of experts among the matrices of a checkpoint.
#pragma once

#include <cstdint>
#include <q4/checkpoint.hpp>
#include <string>
#include <vector>

namespace q4::checkpoint {

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

/// The complete ones, in order: experts 0, 1, ... with gate, up and down each, all supported.
std::vector<ExpertLayer> expert_layers(const std::vector<MatrixEntry>& matrices);

}  // namespace q4::checkpoint
