// Which safetensors files a path means: single files, folders, shards with an index.
#include "runtime/checkpoint/files.hpp"

#include <algorithm>
#include <filesystem>
#include <map>

#include "runtime/base/check.hpp"
#include "runtime/checkpoint/json.hpp"
#include "runtime/checkpoint/names.hpp"

namespace q4::checkpoint {

namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxIndex = 100'000'000;
constexpr std::string_view kTensors = ".safetensors";
constexpr std::string_view kIndex = ".index.json";

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

/// Names in `folder` with this ending, sorted.
std::vector<std::string> list(const fs::path& folder, std::string_view end) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator at(folder, error), last; !error && at != last; at.increment(error)) {
    const std::string name = at->path().filename().string();
    if (ends_with(name, end)) names.push_back(name);
  }
  if (error) fail(ErrorCode::kIo, "Checkpoint::open: {}: listing the folder: {}", folder.string(), error.message());
  std::sort(names.begin(), names.end(), natural_less);
  return names;
}

/// The file or index that a folder's checkpoint begins with.
fs::path choose(const fs::path& folder) {
  std::error_code ignored;
  for (const char* name : {"model.safetensors", "model.safetensors.index.json"}) {
    if (fs::exists(folder / name, ignored)) return folder / name;
  }
  for (const std::string_view end : {kIndex, kTensors}) {
    const std::vector<std::string> names = list(folder, end);
    if (names.size() == 1) return folder / names[0];
    if (names.size() > 1) {
      fail(ErrorCode::kNotFound,
           "Checkpoint::open: {}: {} files end in {} ({}, {}{}) and none is model.safetensors or its index; name one "
           "of the files, "
           "or fetch the index of the shards",
           folder.string(), names.size(), end, names[0], names[1], names.size() > 2 ? ", ..." : "");
    }
  }
  fail(ErrorCode::kNotFound,
       "Checkpoint::open: {}: no *.safetensors file in the folder; name the folder of a model, and convert .bin or .pt "
       "files "
       "to safetensors first",
       folder.string());
}

/// A file name of an index must stay in its folder: anything but a plain name is refused.
void check_file_name(const std::string& index, const std::string& name) {
  if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos ||
      name.find('\0') != std::string::npos) {
    fail(ErrorCode::kCorrupt,
         "Checkpoint::open: {}: weight_map names the file {}, which is no plain file name in the index's folder", index,
         quote(name));
  }
}

void open_index(const std::string& index, FileSet& set) {
  const Json json = parse_json(read_text(index, kMaxIndex), index);
  const auto map = json.is_object() ? json.find("weight_map") : json.end();
  if (map == json.end() || !map->is_object()) {
    fail(ErrorCode::kCorrupt, "Checkpoint::open: {}: weight_map is missing or no object; fetch the index again", index);
  }
  std::map<std::string, const SafetensorsFile*> opened;
  for (const auto& [tensor, file] : map->items()) {
    if (!file.is_string()) {
      fail(ErrorCode::kCorrupt, "Checkpoint::open: {}: weight_map: {} is {}, not a file name", index, quote(tensor),
           file.type_name());
    }
    const auto& name = file.get_ref<const std::string&>();
    check_file_name(index, name);
    const SafetensorsFile*& shard = opened[name];
    if (shard == nullptr) {
      const fs::path path = fs::path(set.folder) / name;
      std::error_code ignored;
      if (!fs::exists(path, ignored)) {
        fail(ErrorCode::kNotFound,
             "Checkpoint::open: {}: weight_map puts tensor {} into {}, which is not in the folder; fetch that file",
             index, quote(tensor), quote(name));
      }
      shard = set.files.emplace_back(std::make_unique<SafetensorsFile>(path.string())).get();
    }
    const auto at = shard->tensors().find(tensor);
    if (at == shard->tensors().end()) {
      fail(ErrorCode::kCorrupt,
           "Checkpoint::open: {}: weight_map puts tensor {} into {}, which does not hold it; fetch both again", index,
           quote(tensor), quote(name));
    }
    set.tensors.emplace(tensor, Located{shard, &at->second});
  }
}

}  // namespace

FileSet open_files(const std::string& path) {
  fs::path chosen(path);
  std::error_code error;
  const fs::file_status status = fs::status(chosen, error);
  if (!fs::exists(status)) {
    fail(status.type() == fs::file_type::not_found ? ErrorCode::kNotFound : ErrorCode::kIo,
         "Checkpoint::open: {}: {}; name a .safetensors file or the folder of a model", path,
         error ? error.message() : "no such file or folder");
  }
  if (fs::is_directory(status)) chosen = choose(chosen);

  FileSet set;
  set.folder = chosen.has_parent_path() ? chosen.parent_path().string() : ".";
  if (ends_with(chosen.string(), kIndex)) {
    open_index(chosen.string(), set);
    return set;
  }
  const auto& file = set.files.emplace_back(std::make_unique<SafetensorsFile>(chosen.string()));
  for (const auto& [name, tensor] : file->tensors()) set.tensors.emplace(name, Located{file.get(), &tensor});
  return set;
}

}  // namespace q4::checkpoint
