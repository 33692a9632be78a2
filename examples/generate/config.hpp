// What config.json says of a Llama-architecture model.
#pragma once

#include <string>
#include <vector>

namespace generate {

struct Config {
  int layers = 0, hidden = 0, intermediate = 0, vocab = 0;
  int heads = 0;                           ///< of queries
  int kv_heads = 0;                        ///< of keys and values; each serves heads / kv_heads heads of queries
  int head_dim = 0;                        ///< elements of one head
  int max_positions = 0;                   ///< the longest text that the model was trained for, in tokens
  float norm_epsilon = 0;                  ///< of RMSNorm
  bool tied_head = false;                  ///< the output layer is the embedding table
  std::vector<int> stop;                   ///< tokens that end a text
  std::vector<float> inverse_frequencies;  ///< [head_dim / 2] of RoPE: radians a position, scaling applied

  int q_columns() const { return heads * head_dim; }
  int kv_columns() const { return kv_heads * head_dim; }
};

/// Reads config.json and, for the stop tokens, generation_config.json of a folder. Throws std::runtime_error with the
/// file, the field and its value for a model that this example cannot run.
Config read_config(const std::string& folder);

/// cos and sin of every position and frequency: [positions][2][head_dim / 2].
std::vector<float> rope_table(const Config& config, int positions);

}  // namespace generate
