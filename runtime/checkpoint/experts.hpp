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

/// Experts of a token: num_experts_per_tok of the folder's config.json, at any depth; 0: it does not say.
std::int64_t experts_per_token(const std::string& folder);

}  // namespace q4::checkpoint
