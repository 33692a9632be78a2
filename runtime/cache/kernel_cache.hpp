// Compiled kernels by content: in memory, then in layers of folders and packs, then the compiler.
#pragma once

#include <cstdint>
#include <functional>
#include <future>
#include <map>
#include <mutex>
#include <q4/runtime.hpp>
#include <string>
#include <vector>

#include "runtime/cache/folder.hpp"
#include "runtime/cache/pack.hpp"

namespace q4::cache {

/// What is compiled and how. A kernel is found by these parts, whichever compiler made it: a machine whose cache is
/// complete needs no compiler, and one that has it need not load it (README.md, "Keys").
struct KernelKey {
  std::string name;     ///< for messages only
  std::string source;   ///< generated text
  std::string headers;  ///< digest of the embedded headers
  std::string target;   ///< "sm_90a", "gfx90a"
  std::vector<std::string> options;
  /// Identity of the compiler with its build. Called only when it has just compiled: the entry keeps it.
  std::function<std::string()> compiler;

  std::string digest() const;  ///< SHA-256 over source, headers, target and options, in hex
};

using Log = std::function<void(LogLevel, const std::string&)>;

struct CacheOptions {
  std::string folder = {};  ///< the user's own; empty: none
  CacheMode mode = CacheMode::kReadWrite;
  std::vector<std::string> folders = {};  ///< only read, first wins; one that ends in .q4pack is a pack
  std::vector<std::string> packs = {};    ///< searched after all folders, before the packs in `folders`
  std::uint64_t max_bytes = 0;            ///< of `folder`; 0: unbounded
  double lock_wait_s = 120;               ///< for another process that compiles the same kernel
};
/// With the environment: default_folder(), and $Q4_CACHE_PATH after the folders of the options.
CacheOptions cache_options(const RuntimeOptions& options);

/// Thread-safe. A key is compiled once however many threads ask; a failure is delivered to those who waited and
/// forgotten. Trouble with a folder or a pack is one warning, never an error: the kernel is compiled and used from
/// memory. Folders and packs are opened by the first get().
class KernelCache {
 public:
  KernelCache(CacheOptions options, Log log);

  using Code = std::vector<char>;
  /// Throws kNotFound in mode kRequirePrebuilt where no layer holds the key; else what `compile` throws.
  Code get(const KernelKey& key, const std::function<Code()>& compile);

  const std::string& folder() const { return options_.folder; }  ///< empty: memory only

 private:
  /// A folder or a pack; neither when it could not be opened, and `problem` says why.
  struct Layer {
    std::string name, problem;
    std::shared_ptr<Folder> folder;
    std::shared_ptr<const Pack> pack;
  };
  void open_layers();
  void add_folder(const std::string& path);
  void add_pack(const std::string& path);
  std::optional<Entry> find(const KernelKey& key, const std::string& digest, std::string& searched);
  Code find_or_make(const KernelKey& key, const std::string& digest, const std::function<Code()>& compile);
  void warn_once(const std::string& text);
  void log(LogLevel level, const std::string& text) const;

  CacheOptions options_;
  Log log_;
  std::once_flag opened_;
  std::vector<Layer> layers_;  ///< in the order of the search; the user's folder first where there is one
  std::mutex mutex_;
  std::map<std::string, std::shared_future<Code>> entries_;
  bool warned_ = false;
};

/// Explicit, else $Q4_CACHE_DIR, $XDG_CACHE_HOME/q4, $HOME/.cache/q4, else empty.
std::string default_folder(const std::string& explicit_folder);

}  // namespace q4::cache
