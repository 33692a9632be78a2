// Environment variables: the one place that reads them.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

namespace q4 {

inline bool is_set(const char* variable) { return std::getenv(variable) != nullptr; }

/// The variable's value; empty where it is not set.
inline std::string setting(const char* variable) {
  const char* const value = std::getenv(variable);
  return value ? value : "";
}

/// The parts of a value between its colons. Empty parts do not count.
inline std::vector<std::string> setting_list(const char* variable) {
  std::vector<std::string> parts;
  const std::string value = setting(variable);
  for (std::size_t begin = 0, end = 0; begin < value.size(); begin = end + 1) {
    end = std::min(value.find(':', begin), value.size());
    if (end > begin) parts.push_back(value.substr(begin, end - begin));
  }
  return parts;
}

}  // namespace q4
