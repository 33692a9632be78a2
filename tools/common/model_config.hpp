// The multiplications of a transformer, from its Hugging Face config.json: no weights are needed.
#pragma once

#include <cstdint>
#include <optional>
#include <q4/moe.hpp>
#include <string>
#include <vector>

namespace q4::tools {

/// One linear layer as a rank multiplies by it: x [m, k] @ W [k, n].
struct ModelMatmul {
  std::string label;  ///< "qkv", "o", "gate_up", "down", "expert gate_up", "shared down", ...
  std::int64_t k = 0, n = 0;
  bool bias = false;
  bool expert = false;     ///< one of the routed experts of a mixture
  std::int64_t count = 1;  ///< of such matrices in the model
};

/// The layers of experts, as a rank has them: W13 is k x 2 width, W2 width x k.
struct ModelExperts {
  std::int64_t experts = 0, topk = 0, k = 0, width = 0;
  bool bias = false;
  MoeActivation activation = MoeActivation::kSiluMul;
};

struct ModelShapes {
  std::string type;  ///< model_type
  std::vector<ModelMatmul> matmuls;
  std::optional<ModelExperts> experts;  ///< none: it has no such layers, or does not say how many experts a token has
  std::optional<std::int64_t> group_size;  ///< of its quantization_config, -1: one group
  std::optional<bool> act_order;
};

struct ModelShapeOptions {
  bool fused = true;  ///< q, k and v as one matrix, gate and up as one
  /// Ranks that share each matrix: heads, gate, up and experts' columns are divided, o and down by rows; a rank has at
  /// least one key-value head, so that with more ranks than heads they are held several times.
  int tensor_parallel = 1;
};

/// The text of a config.json, or of that in a folder. Throws kNotFound, kIo or kCorrupt.
std::string read_config_file(const std::string& path);

/// `json`: config.json of a model type of the table in model_config.cpp, or of one that holds such a config as text_config,
/// language_config or llm_config. `where` is for messages. Throws kCorrupt for what is not such a file (not JSON, a field
/// that is missing, of a wrong type or out of range), kUnsupported for another model type, kInvalidArgument for a degree
/// that does not divide; each names the field, its value and a remedy.
ModelShapes model_shapes(const std::string& json, const std::string& where, const ModelShapeOptions& options);

}  // namespace q4::tools
