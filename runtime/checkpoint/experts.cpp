// Finds layers of experts by the names of their matrices.
#include "runtime/checkpoint/experts.hpp"

#include <algorithm>
#include <filesystem>
#include <map>
#include <set>

#include "runtime/checkpoint/json.hpp"

namespace q4::checkpoint {
namespace {

constexpr const char* kNames[][3] = {{"gate_proj", "up_proj", "down_proj"}, {"w1", "w3", "w2"}};

std::int64_t per_token(const Json& json) {
  for (const auto& [key, value] : json.items()) {
    if (key == "num_experts_per_tok" && value.is_number_integer()) return value.get<std::int64_t>();
    if (!value.is_object()) continue;
    if (const std::int64_t found = per_token(value)) return found;
  }
  return 0;
}

}  // namespace

std::vector<ExpertLayer> expert_layers(const std::vector<MatrixEntry>& matrices) {
  std::set<std::string> there;
  std::map<std::string, std::set<std::int64_t>> numbers;
  std::vector<std::string> order;
  for (const auto& matrix : matrices) {
    if (!matrix.unsupported.empty()) continue;
    there.insert(matrix.name);
    const auto last = matrix.name.rfind('.');
    const auto before = last == std::string::npos ? last : matrix.name.rfind('.', last - 1);
    if (before == std::string::npos || last == 0) continue;
    const std::string prefix = matrix.name.substr(0, before),
                      number = matrix.name.substr(before + 1, last - before - 1);
    const bool digits = !number.empty() && number.size() < 7 &&
                        std::ranges::all_of(number, [](char c) { return c >= '0' && c <= '9'; });
    if (!prefix.ends_with(".experts") || !digits) continue;
    if (numbers.try_emplace(prefix).second) order.push_back(prefix);
    numbers[prefix].insert(std::stoll(number));
  }
  std::vector<ExpertLayer> layers;
  for (const auto& prefix : order)
    for (const auto& names : kNames) {
      ExpertLayer layer{prefix, names[0], names[1], names[2], static_cast<std::int64_t>(numbers[prefix].size())};
      bool complete = true;
      for (std::int64_t e = 0; e < layer.experts; ++e)
        for (const auto& part : {layer.gate, layer.up, layer.down}) complete &= there.contains(layer.name_of(e, part));
      if (complete) layers.push_back(layer);
    }
  return layers;
}

std::int64_t experts_per_token(const std::string& folder) {
  const auto path = std::filesystem::path(folder) / "config.json";
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return 0;
  const Json json = parse_json(without_nonfinite(read_text(path.string(), kMaxConfig)), path.string());
  return json.is_object() ? per_token(json) : 0;
}

}  // namespace q4::checkpoint
