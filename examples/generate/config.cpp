// Reads config.json, and computes RoPE's frequencies, with the scaling that Llama 3.1 introduced.
#include "config.hpp"

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace generate {
namespace {

using nlohmann::json;

json read_json(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error("cannot read " + path);
  try {
    return json::parse(file);
  } catch (const json::exception& error) { throw std::runtime_error(path + ": " + error.what()); }
}

/// A field, or `otherwise` where it is absent or null.
template <class T>
T get(const json& object, const char* name, T otherwise) {
  const auto field = object.find(name);
  return field == object.end() || field->is_null() ? otherwise : field->get<T>();
}

int positive(const json& config, const char* name, int otherwise = 0) {
  const int value = get(config, name, otherwise);
  if (value < 1 || value > 1 << 24)
    throw std::runtime_error(std::string(name) + " is " + std::to_string(value) + ", not a number from 1 to 2^24");
  return value;
}

/// The formula of transformers' modeling_rope_utils.py for "default", "linear" and "llama3".
std::vector<float> frequencies(const json& config, int head_dim) {
  // transformers 5 writes rope_parameters, earlier versions rope_theta and rope_scaling.
  const json none = json::object();
  const json& rope = config.contains("rope_parameters") && config["rope_parameters"].is_object()
                         ? config["rope_parameters"]
                     : config.contains("rope_scaling") && config["rope_scaling"].is_object() ? config["rope_scaling"]
                                                                                             : none;
  const double theta = get(rope, "rope_theta", get(config, "rope_theta", 10000.0));
  const std::string type = get<std::string>(rope, "rope_type", get<std::string>(rope, "type", "default"));
  if (type != "default" && type != "linear" && type != "llama3")
    throw std::runtime_error("rope_type \"" + type + "\" is not supported: default, linear or llama3");
  const double factor = type == "default" ? 1.0 : get(rope, "factor", 1.0);
  const double low = get(rope, "low_freq_factor", 1.0), high = get(rope, "high_freq_factor", 4.0);
  const double trained = get(rope, "original_max_position_embeddings", 8192.0);
  std::vector<float> result(head_dim / 2);
  for (int i = 0; i < head_dim / 2; ++i) {
    double frequency = std::pow(theta, -2.0 * i / head_dim);
    if (type == "llama3") {
      // Long waves are stretched by the factor, short ones stay, those between are blended.
      const double waves = trained * frequency / (2 * M_PI);  // that fit into the trained length
      const double blend = std::min(1.0, std::max(0.0, (waves - low) / (high - low)));
      frequency *= (1 - blend) / factor + blend;
    } else {
      frequency /= factor;
    }
    result[i] = static_cast<float>(frequency);
  }
  return result;
}

std::vector<int> token_list(const json& config) {
  if (!config.contains("eos_token_id") || config["eos_token_id"].is_null()) return {};
  const json& value = config["eos_token_id"];
  return value.is_array() ? value.get<std::vector<int>>() : std::vector<int>{value.get<int>()};
}

}  // namespace

Config read_config(const std::string& folder) {
  const std::string path = folder + "/config.json";
  const json file = read_json(path);
  try {
    const std::string type = get<std::string>(file, "model_type", "");
    if (type != "llama") throw std::runtime_error("model_type \"" + type + "\" is not supported: llama is");
    const std::string activation = get<std::string>(file, "hidden_act", "silu");
    if (activation != "silu") throw std::runtime_error("hidden_act \"" + activation + "\" is not supported: silu is");
    Config config;
    config.layers = positive(file, "num_hidden_layers");
    config.hidden = positive(file, "hidden_size");
    config.intermediate = positive(file, "intermediate_size");
    config.vocab = positive(file, "vocab_size");
    config.heads = positive(file, "num_attention_heads");
    config.kv_heads = positive(file, "num_key_value_heads", config.heads);
    config.head_dim = positive(file, "head_dim", config.hidden / config.heads);
    config.max_positions = positive(file, "max_position_embeddings", 2048);
    config.norm_epsilon = get(file, "rms_norm_eps", 1e-6f);
    config.tied_head = get(file, "tie_word_embeddings", false);
    if (config.heads % config.kv_heads != 0 || config.head_dim % 2 != 0)
      throw std::runtime_error("num_attention_heads must be a multiple of num_key_value_heads, and head_dim even");
    config.inverse_frequencies = frequencies(file, config.head_dim);
    config.stop = token_list(file);
    if (std::ifstream(folder + "/generation_config.json"))
      for (const int token : token_list(read_json(folder + "/generation_config.json"))) config.stop.push_back(token);
    return config;
  } catch (const std::exception& error) { throw std::runtime_error(path + ": " + error.what()); }
}

std::vector<float> rope_table(const Config& config, int positions) {
  const int half = config.head_dim / 2;
  std::vector<float> table(static_cast<std::size_t>(positions) * 2 * half);
  for (int p = 0; p < positions; ++p)
    for (int i = 0; i < half; ++i) {
      const float angle = static_cast<float>(p) * config.inverse_frequencies[i];
      table[(2 * p) * half + i] = std::cos(angle);
      table[(2 * p + 1) * half + i] = std::sin(angle);
    }
  return table;
}

}  // namespace generate
