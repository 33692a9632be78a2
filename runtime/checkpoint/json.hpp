// JSON as checkpoints hold it: bounded, strict, and every problem a kCorrupt that names the file.
#pragma once

#include <cstddef>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace q4::checkpoint {

using Json = nlohmann::json;

constexpr std::size_t kMaxConfig = 64u << 20;  ///< bytes of a config.json

/// The whole of a regular file of at most `limit` bytes. Throws kNotFound, kIo or kCorrupt.
std::string read_text(const std::string& path, std::size_t limit);

/// Parses `text`, found in the file `path`. Duplicate keys, invalid UTF-8, NUL bytes and more than 64 levels are
/// kCorrupt.
Json parse_json(std::string_view text, const std::string& path);

/// A value as messages show it: as it is written, or what is long by its type.
std::string shown(const Json& value);

/// Python's json module writes NaN and Infinity, which JSON has not: each such bare word (also "-Infinity") becomes what
/// `replacement` gives for it.
std::string replace_nonfinite(std::string_view text, const std::function<std::string(std::string_view)>& replacement);
/// The same with null for all.
std::string without_nonfinite(std::string_view text);

}  // namespace q4::checkpoint
