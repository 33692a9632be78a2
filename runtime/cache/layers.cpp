// Where the cache looks: options and environment, what lies beside the library, folders and packs in order.
#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "runtime/base/check.hpp"
#include "runtime/base/settings.hpp"
#include "runtime/cache/kernel_cache.hpp"
#include "runtime/cache/trust.hpp"

namespace q4::cache {
namespace {

/// What the program asks for, else what the environment does: an operator tries require-prebuilt without a new program.
CacheMode mode_of(const RuntimeOptions& options) {
  const std::string text = setting("Q4_CACHE_MODE");
  if (options.cache_mode != CacheMode::kReadWrite || text.empty()) return options.cache_mode;
  constexpr std::pair<const char*, CacheMode> kModes[] = {{"read-write", CacheMode::kReadWrite},
                                                          {"read-only", CacheMode::kReadOnly},
                                                          {"off", CacheMode::kOff},
                                                          {"require-prebuilt", CacheMode::kRequirePrebuilt}};
  for (const auto& [name, mode] : kModes)
    if (text == name) return mode;
  fail(ErrorCode::kInvalidArgument, "Q4_CACHE_MODE = {}: it must be read-write, read-only, off or require-prebuilt",
       text);
}

}  // namespace

std::string default_folder(const std::string& explicit_folder) {
  if (!explicit_folder.empty()) return explicit_folder;
  if (const auto own = setting("Q4_CACHE_DIR"); !own.empty()) return own;
  if (const auto base = setting("XDG_CACHE_HOME"); !base.empty()) return base + "/q4";
  if (const auto home = setting("HOME"); !home.empty()) return home + "/.cache/q4";
  return {};
}

std::string own_object() {
  Dl_info info;
  if (::dladdr(reinterpret_cast<const void*>(&own_object), &info) == 0 || !info.dli_fname) return {};
  std::error_code error;
  // A program's own name may be relative, or found on PATH; what the kernel runs is neither.
  auto path = std::filesystem::path(info.dli_fname);
  if (path.has_filename() && !path.is_absolute()) path = std::filesystem::read_symlink("/proc/self/exe", error);
  path = std::filesystem::canonical(path, error);
  return error ? std::string() : path.string();
}

std::vector<std::string> beside(const std::string& object) {
  if (object.empty()) return {};
  const auto folder = std::filesystem::path(object).parent_path();
  return {(folder / "q4-kernels").string(), (folder.parent_path() / "share" / "q4").string()};
}

CacheOptions cache_options(const RuntimeOptions& options) {
  CacheOptions result;
  result.folder = default_folder(options.cache_dir);
  result.mode = mode_of(options);
  trust_of_environment();  // said now if it is not a valid value
  result.folders = options.cache_folders, result.packs = options.packs;
  result.beside = beside(own_object());
  result.public_key = options.pack_public_key.empty() ? setting("Q4_PACK_PUBLIC_KEY") : options.pack_public_key;
  result.dump_dir = options.dump_dir.empty() ? setting("Q4_DUMP_DIR") : options.dump_dir;
  result.max_bytes = options.cache_max_bytes;
  result.event = options.cache_event;
  for (auto& folder : setting_list("Q4_CACHE_PATH")) result.folders.push_back(std::move(folder));
  return result;
}

/// A folder of entries, whose packs are searched after all folders.
void KernelCache::add_folder(CacheLayer kind, const std::string& path) {
  const bool may_be_absent = kind == CacheLayer::kBesideLibrary;
  Layer layer{kind, (may_be_absent ? "beside the library " : "folder ") + path, "", nullptr, nullptr};
  std::error_code error;
  if (std::filesystem::is_directory(path, error))
    layer.folder = std::make_shared<Folder>(path, false);
  else
    layer.problem = error ? error.message() : "not a folder", layer.absent = may_be_absent;
  layers_.push_back(std::move(layer));
  std::vector<std::string> found;
  for (std::filesystem::directory_iterator it(path, error), end; !error && it != end; it.increment(error))
    if (it->path().extension() == kPackExtension) found.push_back(it->path().string());
  std::sort(found.begin(), found.end());
  found_packs_.insert(found_packs_.end(), found.begin(), found.end());
}

void KernelCache::add_pack(const std::string& path) {
  Layer layer{CacheLayer::kPack, "pack " + path, "", nullptr, nullptr};
  auto pack = Pack::open(path, options_.public_key);
  if (pack)
    layer.pack = *std::move(pack);
  else
    layer.problem = pack.reason();
  layers_.push_back(std::move(layer));
}

void KernelCache::open_layers(std::vector<std::string>& problems) {
  if (options_.mode == CacheMode::kOff) return;
  if (!options_.folder.empty())
    layers_.push_back({CacheLayer::kUserFolder, "user folder " + options_.folder, "",
                       std::make_shared<Folder>(options_.folder, options_.mode == CacheMode::kReadWrite), nullptr});
  for (const auto& folder : options_.folders) {
    if (folder.ends_with(kPackExtension))
      found_packs_.push_back(folder);
    else
      add_folder(CacheLayer::kFolder, folder);
  }
  for (const auto& folder : options_.beside) add_folder(CacheLayer::kBesideLibrary, folder);
  for (const auto& pack : options_.packs) add_pack(pack);
  for (const auto& pack : found_packs_) add_pack(pack);
  for (const auto& layer : layers_)
    if (!layer.problem.empty() && !layer.absent) problems.push_back(fmt::format("{}: {}", layer.name, layer.problem));
}

const std::vector<KernelCache::Layer>& KernelCache::layers() {
  std::vector<std::string> problems;
  std::call_once(opened_, [&] { open_layers(problems); });
  for (const auto& problem : problems) warn(problem);
  return layers_;
}

bool KernelCache::holds(const std::string& target, const std::vector<std::string>& headers) {
  for (const auto& layer : layers()) {
    if (layer.pack && layer.pack->holds(target, headers)) return true;
    if (!layer.folder) continue;
    const auto files = stored_files(layer.folder->path());
    for (auto file = files.rbegin(); file != files.rend(); ++file)  // the last used is the likeliest
      if (const auto entry = read_entry(file->path).entry;
          entry && entry->key.target == target &&
          std::find(headers.begin(), headers.end(), entry->key.headers) != headers.end())
        return true;
  }
  return false;
}

std::vector<std::shared_ptr<const Pack>> KernelCache::packs() {
  std::vector<std::shared_ptr<const Pack>> sound;
  for (const auto& layer : layers())
    if (layer.pack) sound.push_back(layer.pack);
  return sound;
}

}  // namespace q4::cache
