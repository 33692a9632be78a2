// From a kernel's Config to the source that is compiled: an include and one instantiation. Nothing else is ever text.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace q4::jit {

/// The tunables of a Config by name, in the order of its fields().
using Values = std::vector<std::pair<std::string, int>>;

/// One translation unit for the run-time compiler.
struct Source {
  std::string name;  ///< the kernel, then for messages how: "gemv half2=1 rows=1 ... k=4096 n=4096 ..."
  std::string text;
};

/// Its entry point, which profilers show: "q4_gemv".
std::string entry(const std::string& source_name);

/// "half2=1 rows=1"
std::string to_text(const Values& values);

namespace detail {
template <class T>
void append_fields(T& config, std::string& text, const char* assign, const char* between) {
  bool first = true;
  config.fields([&](const char* name, int& value, auto...) {
    if (!first) text += between;
    first = false;
    text += assign;
    text += name;
    text += '=';
    text += std::to_string(value);
  });
}
}  // namespace detail

/// `config` written as a C++20 designated initializer: "{.p={.k=4096,...},.half2=1,...}".
template <class Config>
std::string initializer(Config config) {
  std::string text = "{";
  if constexpr (requires { config.p; }) {
    text += ".p={";
    detail::append_fields(config.p, text, ".", ",");
    text += "}";
  }
  std::string tunables;
  detail::append_fields(config, tunables, ".", ",");
  if (text.size() > 1 && !tunables.empty()) text += ",";
  return text + tunables + "}";
}

/// Source of kernel `function` of `header`. `parameters` as in "MatmulArgs" or "MatmulArgs,TensorMap,TensorMap": each
/// is a by-value kernel parameter; the device function gets the first by reference and the others by pointer.
Source generate(const std::string& function, const std::string& header, const std::string& config_type,
                const std::string& initializer, const std::vector<std::string>& parameters, int threads,
                int blocks_per_unit);

/// The source with the embedded headers in place of its #include lines, for compilers that take one text.
std::string flatten(const Source& source);

}  // namespace q4::jit
