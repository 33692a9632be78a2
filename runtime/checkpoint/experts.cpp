// Reads of config.json how many experts a token has.
#include "runtime/checkpoint/experts.hpp"

#include <filesystem>

#include "runtime/checkpoint/json.hpp"

namespace q4::checkpoint {
namespace {

std::int64_t per_token(const Json& json) {
  for (const auto& [key, value] : json.items()) {
    if (key == "num_experts_per_tok" && value.is_number_integer()) return value.get<std::int64_t>();
    if (!value.is_object()) continue;
    if (const std::int64_t found = per_token(value)) return found;
  }
  return 0;
}

}  // namespace

std::int64_t experts_per_token(const std::string& folder) {
  const auto path = std::filesystem::path(folder) / "config.json";
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) return 0;
  const Json json = parse_json(without_nonfinite(read_text(path.string(), kMaxConfig)), path.string());
  return json.is_object() ? per_token(json) : 0;
}

}  // namespace q4::checkpoint
