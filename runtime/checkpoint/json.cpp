// JSON as checkpoints hold it; nlohmann-json does the work, what it lets pass is checked here.
#include "runtime/checkpoint/json.hpp"

#include <fstream>
#include <unordered_set>
#include <vector>

#include "runtime/base/check.hpp"
#include "runtime/checkpoint/names.hpp"
#include "runtime/checkpoint/safetensors.hpp"

namespace q4::checkpoint {

constexpr std::size_t kMaxDepth = 64;

std::string read_text(const std::string& path, std::size_t limit) {
  const std::size_t size = regular_file_size(path);
  if (size > limit) {
    fail(ErrorCode::kCorrupt, "Checkpoint::open: {}: {} bytes, at most {} are read; this is no checkpoint's JSON file",
         path, size, limit);
  }
  std::ifstream file(path, std::ios::binary);
  std::string text(size, '\0');
  file.read(text.data(), static_cast<std::streamsize>(size));
  if (!file)
    fail(ErrorCode::kIo, "Checkpoint::open: {}: reading {} bytes failed; check the file and its disk", path, size);
  return text;
}

Json parse_json(std::string_view text, const std::string& path) {
  // nlohmann takes a NUL byte for the end of the text, so whatever follows it would go unseen.
  if (const std::size_t at = text.find('\0'); at != std::string_view::npos) {
    fail(ErrorCode::kCorrupt, "Checkpoint::open: {}: JSON has a NUL at byte {}; fetch the file again", path, at);
  }
  std::vector<std::unordered_set<std::string>> keys;  // by depth
  const auto strict = [&](int depth, Json::parse_event_t event, Json& value) {
    const auto level = static_cast<std::size_t>(depth);
    if (level > kMaxDepth) {
      fail(ErrorCode::kCorrupt, "Checkpoint::open: {}: JSON nests more than {} levels; fetch the file again", path,
           kMaxDepth);
    }
    if (event == Json::parse_event_t::object_start) {
      if (keys.size() < level + 2) keys.resize(level + 2);
      keys[level + 1].clear();
    } else if (event == Json::parse_event_t::key) {
      const auto& key = value.get_ref<const std::string&>();
      if (!keys.at(level).insert(key).second) {
        fail(ErrorCode::kCorrupt, "Checkpoint::open: {}: JSON has the key {} twice in one object; fetch the file again",
             path, quote(key));
      }
    }
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), strict);
  } catch (const Json::exception& error) {
    fail(ErrorCode::kCorrupt, "Checkpoint::open: {}: not valid JSON: {}; fetch the file again", path, error.what());
  }
}

std::string without_nonfinite(std::string_view text) {
  std::string result;
  bool in_string = false;
  for (std::size_t at = 0; at < text.size();) {
    if (in_string && text[at] == '\\') {
      result += text.substr(at, 2);
      at += 2;
      continue;
    }
    if (text[at] == '"') in_string = !in_string;
    std::size_t skip = 0;
    if (!in_string) {
      for (const std::string_view word : {"NaN", "Infinity", "-Infinity"}) {
        if (text.substr(at, word.size()) == word) skip = word.size();
      }
    }
    if (skip != 0) {
      result += "null";
      at += skip;
    } else {
      result += text[at++];
    }
  }
  return result;
}

}  // namespace q4::checkpoint
