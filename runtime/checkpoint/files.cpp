// Which safetensors files a path means: single files, folders, shards with an index.
#include "runtime/checkpoint/files.hpp"

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <map>
#include <regex>

#include "runtime/base/check.hpp"
#include "runtime/checkpoint/file_bytes.hpp"
#include "runtime/checkpoint/json.hpp"
#include "runtime/checkpoint/names.hpp"

namespace q4::checkpoint {

namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxIndex = 100'000'000;
constexpr std::string_view kTensors = ".safetensors";
constexpr std::string_view kIndex = ".index.json";
constexpr std::string_view kTensorIndex = ".safetensors.index.json";
constexpr std::string_view kPickles[] = {".bin", ".pt", ".pth", ".ckpt"};

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

/// Names in `folder`, sorted.
std::vector<std::string> list(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator at(folder, error), last; !error && at != last; at.increment(error)) {
    const std::string name = at->path().filename().string();
    if (name[0] != '.') names.push_back(name);  // "._model.safetensors" is what another system keeps beside a file
  }
  if (error) fail(ErrorCode::kIo, "Checkpoint::open: {}: listing the folder: {}", folder.string(), error.message());
  std::sort(names.begin(), names.end(), natural_less);
  return names;
}

std::vector<std::string> ending(const std::vector<std::string>& names, std::string_view end) {
  std::vector<std::string> found;
  std::copy_if(names.begin(), names.end(), std::back_inserter(found),
               [&](const std::string& name) { return ends_with(name, end); });
  return found;
}

bool is_pickle(std::string_view name) {
  return std::any_of(std::begin(kPickles), std::end(kPickles), [&](auto end) { return ends_with(name, end); });
}

[[noreturn]] void refuse_pickle(const std::string& where, const std::string& file) {
  fail(ErrorCode::kUnsupported,
       "Checkpoint::open: {}: {} is a file of PyTorch, which can run code when it is read; q4 reads safetensors: "
       "convert it with {}",
       where, quote(file), conversion_command(file));
}

/// A file name of an index must stay in its folder: anything but a plain name is refused.
void check_file_name(const std::string& index, const std::string& name) {
  if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos ||
      name.find('\0') != std::string::npos) {
    fail(ErrorCode::kCorrupt,
         "Checkpoint::open: {}: it names the file {}, which is not a plain file name in its folder; fetch it again",
         index, quote(name));
  }
}

/// An index: which file each tensor is in, and the first tensor of each file.
struct Index {
  std::string path;
  Json json;
  const Json* map = nullptr;
  std::map<std::string, std::string> files;
  bool quantized = false;  ///< it names tensors of quantized matrices
};

Index read_index(const std::string& path) {
  Index index{path, parse_json(read_text(path, kMaxIndex), path), nullptr, {}, false};
  const auto map = index.json.is_object() ? index.json.find("weight_map") : index.json.end();
  if (map == index.json.end() || !map->is_object()) {
    fail(ErrorCode::kCorrupt, "Checkpoint::open: {}: weight_map is missing or not an object; fetch the index again",
         path);
  }
  index.map = &*map;
  for (const auto& [tensor, file] : map->items()) {
    if (!file.is_string()) {
      fail(ErrorCode::kCorrupt, "Checkpoint::open: {}: weight_map: {} is {}, not a file name; fetch the index again",
           path, quote(tensor), shown(file));
    }
    const auto& name = file.get_ref<const std::string&>();
    index.quantized |= ends_with(tensor, ".qweight") || ends_with(tensor, ".weight_packed");
    if (index.files.count(name) == 0) {
      check_file_name(path, name);
      if (is_pickle(name)) refuse_pickle(path, name);
      index.files.emplace(name, tensor);
    }
  }
  return index;
}

void open_index(const Index& index, FileSet& set) {
  std::map<std::string, const SafetensorsFile*> opened;
  for (const auto& [name, tensor] : index.files) {
    const fs::path path = fs::path(set.folder) / name;
    std::error_code ignored;
    if (fs::symlink_status(path, ignored).type() == fs::file_type::not_found) {
      fail(ErrorCode::kNotFound,
           "Checkpoint::open: {}: weight_map puts tensor {} into {}, which is not in the folder; fetch that file",
           index.path, quote(tensor), quote(name));
    }
    opened[name] = set.files.emplace_back(std::make_unique<SafetensorsFile>(path.string())).get();
  }
  for (const auto& [tensor, file] : index.map->items()) {
    const SafetensorsFile* const shard = opened.at(file.get_ref<const std::string&>());
    const auto at = shard->tensors().find(tensor);
    if (at == shard->tensors().end()) {
      fail(ErrorCode::kCorrupt,
           "Checkpoint::open: {}: weight_map puts tensor {} into {}, which does not hold it; fetch both again",
           index.path, quote(tensor), file.dump());
    }
    set.tensors.emplace(tensor, Located{shard, &at->second});
  }
}

/// Every tensor of one file.
void open_file(const std::string& path, FileSet& set) {
  const auto& file = set.files.emplace_back(std::make_unique<SafetensorsFile>(path));
  for (const auto& [name, tensor] : file->tensors()) {
    const auto [at, added] = set.tensors.emplace(name, Located{file.get(), &tensor});
    if (!added) {
      fail(ErrorCode::kCorrupt, "Checkpoint::open: {}: tensor {} is in {} as well; remove the file that is left over",
           path, quote(name), at->second.file->path());
    }
  }
}

/// The number of files in the set that these are of: STEM-00001-of-00003.safetensors and so on. 0: of none, or of several.
std::size_t set_size(const std::vector<std::string>& names, std::vector<std::string>& missing) {
  static const std::regex pattern(R"((.*-)(0*)(\d+)-of-(0*\d+)\.safetensors)");
  constexpr std::size_t kMost = 100'000;
  std::smatch match;
  std::string stem, count;
  std::size_t width = 0;
  for (const std::string& name : names) {
    if (name.size() > 255 || !std::regex_match(name, match, pattern)) return 0;
    if (stem.empty()) stem = match[1], count = match[4], width = match[2].str().size() + match[3].str().size();
    if (match[1] != stem || match[4] != count || match[3].str().size() > 6) return 0;
  }
  if (count.empty() || count.size() > 9 || std::stoul(count) > kMost) return 0;
  const std::size_t size = std::stoul(count);
  for (std::size_t i = 1; i <= size; ++i) {
    const std::string name = fmt::format("{}{:0{}}-of-{}{}", stem, i, width, count, kTensors);
    if (std::find(names.begin(), names.end(), name) == names.end()) missing.push_back(name);
  }
  return size;
}

/// All files of the folder, which has no index: one, or the shards of one set.
bool open_all(const fs::path& folder, const std::vector<std::string>& names, FileSet& set) {
  std::vector<std::string> missing;
  const std::size_t size = set_size(names, missing);
  if (!missing.empty() && names.size() + missing.size() == size) {
    fail(ErrorCode::kNotFound,
         "Checkpoint::open: {}: {} of the {} files of its set are missing: {}{}; fetch them and the index of the "
         "shards, or name the file that is here",
         set.folder, missing.size(), size, quote(missing[0]), missing.size() > 1 ? ", ..." : "");
  }
  if (names.size() != 1 && names.size() != size) return false;
  for (const std::string& name : names) open_file((folder / name).string(), set);
  return true;
}

/// Whether it is the index of the model before it was quantized, and none of its files is there.
bool left_over(const Index& index, const std::string& folder) {
  if (index.quantized) return false;
  return std::none_of(index.files.begin(), index.files.end(), [&](const auto& file) {
    std::error_code ignored;
    return fs::symlink_status(fs::path(folder) / file.first, ignored).type() != fs::file_type::not_found;
  });
}

/// The snapshot that is in use of a model in a Hugging Face cache (models--ORG--NAME), else the folder itself.
std::string snapshot_of(const std::string& folder) {
  const fs::path snapshots = fs::path(folder) / "snapshots", ref = fs::path(folder) / "refs" / "main";
  std::error_code ignored;
  if (!fs::is_directory(snapshots, ignored)) return folder;
  if (fs::is_regular_file(ref, ignored)) {
    std::string name = read_text(ref.string(), 256);
    name.erase(std::min(name.find_last_not_of(" \n\r") + 1, name.size()));
    check_file_name(ref.string(), name);
    if (fs::is_directory(snapshots / name, ignored)) return (snapshots / name).string();
  }
  const std::vector<std::string> names = list(snapshots);
  return names.size() == 1 ? (snapshots / names[0]).string() : folder;
}

/// The checkpoint of a folder: see open_files.
void open_folder(FileSet& set) {
  const fs::path folder(set.folder);
  const std::vector<std::string> names = list(folder), tensors = ending(names, kTensors);
  const auto holds = [&](const char* name) { return std::find(names.begin(), names.end(), name) != names.end(); };
  if (holds("model.safetensors")) return open_file((folder / "model.safetensors").string(), set);
  std::vector<Index> indices;
  for (const std::string& name : ending(names, kTensorIndex)) {
    Index index = read_index((folder / name).string());
    if (!tensors.empty() && left_over(index, set.folder)) continue;
    indices.push_back(std::move(index));
    if (name == "model.safetensors.index.json") {
      indices.erase(indices.begin(), indices.end() - 1);
      break;
    }
  }
  if (indices.size() == 1) return open_index(indices[0], set);
  if (indices.empty() && !tensors.empty() && open_all(folder, tensors, set)) return;
  const auto& several = indices.empty() ? tensors : ending(names, kTensorIndex);
  if (several.size() > 1) {
    fail(ErrorCode::kNotFound,
         "Checkpoint::open: {}: {} files end in {} ({}, {}{}) and none is model.safetensors or its index; name one of "
         "the files, or fetch the index of the shards",
         set.folder, several.size(), indices.empty() ? kTensors : kTensorIndex, several[0], several[1],
         several.size() > 2 ? ", ..." : "");
  }
  for (const std::string& name : names) {
    if (is_pickle(name)) refuse_pickle(set.folder, name);
  }
  fail(ErrorCode::kNotFound,
       "Checkpoint::open: {}: no *.safetensors file in the folder{}; name the folder of a model in safetensors",
       set.folder, ending(names, ".gguf").empty() ? "" : ", but one of GGUF, which q4 does not read");
}

}  // namespace

FileSet open_files(const std::string& path) {
  const fs::path chosen(path);
  std::error_code error;
  const fs::file_status status = fs::status(chosen, error);
  if (!fs::exists(status)) {
    fail(status.type() == fs::file_type::not_found ? ErrorCode::kNotFound : ErrorCode::kIo,
         "Checkpoint::open: {}: {}; name a .safetensors file or the folder of a model", path,
         error ? error.message() : "no such file or folder");
  }
  FileSet set;
  if (fs::is_directory(status)) {
    set.folder = snapshot_of(path);
    open_folder(set);
    return set;
  }
  set.folder = chosen.has_parent_path() ? chosen.parent_path().string() : ".";
  if (ends_with(path, kIndex)) {
    open_index(read_index(path), set);
  } else {
    if (ends_with(path, ".json")) {
      fail(ErrorCode::kInvalidArgument,
           "Checkpoint::open: {}: neither a .safetensors file nor an index of such; name its folder", path);
    }
    if (is_pickle(path)) refuse_pickle(set.folder, chosen.filename().string());
    open_file(path, set);
  }
  return set;
}

}  // namespace q4::checkpoint
