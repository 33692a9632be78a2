// Writes the generated source, and digests the headers that it includes.
#include "runtime/jit/source.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <mutex>
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

constexpr const char* kInclude = "#include \"";

/// The header that a line includes; empty if it does not include one.
std::string included(const std::string& line) {
  const std::string include = kInclude;
  if (!line.starts_with(include)) return {};
  return line.substr(include.size(), line.find('"', include.size()) - include.size());
}

const char* text_of(const std::string& name, const std::vector<EmbeddedHeader>& headers) {
  const auto header = std::find_if(headers.begin(), headers.end(), [&](const auto& h) { return name == h.name; });
  return header == headers.end() ? nullptr : header->text;
}

void append_flat(const std::string& text, std::set<std::string>& seen, std::string& out) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    if (line == "#pragma once") continue;
    const std::string name = included(line);
    if (name.empty()) {
      out += line + "\n";
      continue;
    }
    if (!seen.insert(name).second) continue;
    const char* header = text_of(name, embedded_headers());
    if (!header) fail(ErrorCode::kInternal, "flatten: there is no kernel header {}", name);
    append_flat(header, seen, out);
  }
}

void collect(const std::string& text, const std::vector<EmbeddedHeader>& headers, std::set<std::string>& names) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const std::string name = included(line);
    if (name.empty() || !names.insert(name).second) continue;
    if (const char* header = text_of(name, headers)) collect(header, headers, names);
  }
}

}  // namespace

std::string flatten(const Source& source) {
  std::set<std::string> seen;
  std::string out;
  append_flat(source.text, seen, out);
  return out;
}

std::string included_digest(const std::string& text, const std::vector<EmbeddedHeader>& headers) {
  std::set<std::string> names;
  collect(text, headers, names);
  cache::Sha256 sha;
  sha.field("included headers 1");
  for (const auto& name : names) {
    const char* header = text_of(name, headers);
    sha.field(name).field(header ? header : "");
  }
  return sha.hex();
}

std::string headers_digest(const std::string& source_text) {
  std::string includes;  // sources differ in their Configs, and few of them in what they include
  std::istringstream lines(source_text);
  for (std::string line; std::getline(lines, line);)
    if (const auto name = included(line); !name.empty()) includes += line + "\n";
  static std::mutex mutex;
  static std::map<std::string, std::string> known;
  const std::lock_guard lock(mutex);
  auto& digest = known[includes];
  if (digest.empty()) digest = included_digest(includes, embedded_headers());
  return digest;
}

std::string header_digest(const std::string& header) { return headers_digest(kInclude + header + "\"\n"); }

}  // namespace q4::jit
