// Finds layers of experts by the names of their matrices.
#include "runtime/expert_layers.hpp"

#include <algorithm>
#include <map>
#include <set>

namespace q4::checkpoint {
namespace {

constexpr const char* kNames[][3] = {{"gate_proj", "up_proj", "down_proj"}, {"w1", "w3", "w2"}};

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

}  // namespace q4::checkpoint
