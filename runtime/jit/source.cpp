// Writes the generated source, and digests the headers that it includes.
#include "runtime/jit/source.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <set>
#include <sstream>

#include "runtime/base/check.hpp"
#include "runtime/base/sha256.hpp"
#include "runtime/jit/embedded.hpp"

namespace q4::jit {

std::string to_text(const Values& values) {
  std::string text;
  for (const auto& [name, value] : values) text += fmt::format("{}{}={}", text.empty() ? "" : " ", name, value);
  return text;
}

std::string entry(const std::string& source_name) { return "q4_" + source_name.substr(0, source_name.find(' ')); }

Source generate(const std::string& function, const std::string& header, const std::string& config_type,
                const std::string& initializer, const std::vector<std::string>& parameters, int threads,
                int blocks_per_unit) {
  std::string declared, passed;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    declared += fmt::format("{}Q4_PARAMETER(q4::{}) a{}", i ? ", " : "", parameters[i], i);
    passed += fmt::format("{}a{}", i ? ", &" : "", i);
  }
  return {fmt::format("{} {}", function, initializer),
          fmt::format("#include \"{}\"\n\nQ4_KERNEL({}, {}) {}({}) {{\n  q4::{}<q4::{}{}>({});\n}}\n", header, threads,
                      blocks_per_unit, entry(function), declared, function, config_type, initializer, passed)};
}

namespace {

void append_flat(const std::string& text, std::set<std::string>& seen, std::string& out) {
  const std::string include = "#include \"";
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line == "#pragma once") continue;
    if (!line.starts_with(include)) {
      out += line + "\n";
      continue;
    }
    const std::string name = line.substr(include.size(), line.find('"', include.size()) - include.size());
    if (!seen.insert(name).second) continue;
    const auto& headers = embedded_headers();
    const auto header = std::find_if(headers.begin(), headers.end(), [&](const auto& h) { return name == h.name; });
    if (header == headers.end()) fail(ErrorCode::kInternal, "flatten: there is no kernel header {}", name);
    append_flat(header->text, seen, out);
  }
}

}  // namespace

std::string flatten(const Source& source) {
  std::set<std::string> seen;
  std::string out;
  append_flat(source.text, seen, out);
  return out;
}

const std::string& headers_digest() {
  static const std::string digest = digest_of(embedded_headers());
  return digest;
}

std::string digest_of(const std::vector<EmbeddedHeader>& headers) {
  cache::Sha256 sha;
  for (const auto& header : headers) sha.field(header.name).field(header.text);
  return sha.hex();
}

}  // namespace q4::jit
