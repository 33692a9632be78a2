// Compiled kernels by content: in memory, then in layers of folders and packs, then the compiler.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <q4/runtime.hpp>
#include <string>
#include <unordered_map>
#include <vector>

#include "runtime/base/fork.hpp"
#include "runtime/base/seal.hpp"
#include "runtime/cache/folder.hpp"
#include "runtime/cache/pack.hpp"

namespace q4::cache {

using Log = std::function<void(LogLevel, const std::string&)>;

struct CacheOptions {
  std::string folder = {};  ///< the user's own; empty: none
  CacheMode mode = CacheMode::kReadWrite;
  std::vector<std::string> folders = {};  ///< only read, first wins; one that ends in .q4pack is a pack
  std::vector<std::string> beside = {};   ///< the same after `folders`, and nothing is wrong with one that is not there
  std::vector<std::string> packs = {};    ///< searched after all folders, before the packs in folders
  std::string public_key = {};            ///< hex: packs must be signed by it
  std::uint64_t max_bytes = 0;            ///< of `folder`; 0: unbounded
  double lock_wait_s = 120;               ///< for another process that compiles the same kernel
  std::string dump_dir = {};
  std::function<void(const CacheEvent&)> event = {};
  std::shared_ptr<const Seal> seal = {};  ///< asked before a kernel is compiled and kept; null: none
};
/// With the environment: default_folder(), $Q4_CACHE_MODE, $Q4_CACHE_PATH after the folders of the options,
/// $Q4_DUMP_DIR, $Q4_PACK_PUBLIC_KEY, and what lies beside the library.
CacheOptions cache_options(const RuntimeOptions& options);

/// What compiling gave, and what made it: "nvrtc 13.0 CL-36424714".
struct Compiled {
  std::vector<char> code;
  std::string compiler, log;
};

/// Thread-safe. A key is compiled once however many threads ask; a failure is delivered to those who waited and
/// forgotten. Not more than CompileSlot::kMost kernels are compiled at a time in one process. Trouble with a folder or a pack is one warning, never an error: the kernel is compiled and used from
/// memory. Folders and packs are opened by the first get() that memory does not serve. No callback (log, event,
/// compile, use) runs under a mutex or, but for compile, under a key's lock.
class KernelCache {
 public:
  KernelCache(CacheOptions options, Log log);

  using Code = std::vector<char>;
  using Compile = std::function<Compiled()>;
  /// What is done with the code, timed as load_ms: the driver's loading. May throw.
  using Use = std::function<void(const Code&)>;
  struct Result {
    std::shared_ptr<const Code> code;
    CacheEvent event;  ///< of a hit in memory nothing but the layer
  };
  /// Throws kNotFound in mode kRequirePrebuilt where no layer holds the key; else what `compile` or `use` throws.
  Result get(const KernelKey& key, const Compile& compile, const Use& use = {});

  CacheCounters counters() const;
  /// Whether some layer has a kernel for this target that was made from one of these headers (KernelKey::headers).
  bool holds(const std::string& target, const std::vector<std::string>& headers);
  /// A kernel that its user still had.
  void count_memory_hit() { memory_hits_.fetch_add(1, std::memory_order_relaxed); }
  const std::string& folder() const { return options_.folder; }  ///< empty: memory only
  CacheMode mode() const { return options_.mode; }
  /// Sound packs in order of the search, opened if they were not yet.
  std::vector<std::shared_ptr<const Pack>> packs();

  /// A folder or a pack; neither when it could not be opened, and `problem` says why.
  struct Layer {
    CacheLayer kind;
    std::string name, problem;
    std::shared_ptr<Folder> folder;
    std::shared_ptr<const Pack> pack;
    bool absent = false;  ///< beside the library, where there need be nothing
  };
  /// In the order of the search; the user's folder first where there is one.
  const std::vector<Layer>& layers();

 private:
  using Shared = std::shared_ptr<const Code>;
  /// One get() that memory did not serve; messages wait until no lock is held.
  struct Search {
    const KernelKey& key;
    std::string digest;
    CacheEvent event;
    std::string log;
    std::vector<std::string> problems;
  };
  void open_layers(std::vector<std::string>& problems);
  void add_folder(CacheLayer kind, const std::string& path);
  void add_pack(const std::string& path);
  bool find(Search& search, Code& code);
  Shared find_or_make(Search& search, const Compile& compile);
  void tell(Search& search, const Code* code);
  void warn(const std::string& problem);
  void log(LogLevel level, const std::string& text) const;

  const CacheOptions options_;
  const Log log_;
  std::once_flag opened_;
  std::vector<Layer> layers_;
  std::vector<std::string> found_packs_;
  std::mutex mutex_;                                                     ///< of entries_
  std::unordered_map<std::string, std::shared_future<Shared>> entries_;  ///< by KernelKey::text()
  mutable ForkSafeMutex counters_mutex_;
  CacheCounters counters_;
  std::atomic<std::uint64_t> memory_hits_{0};
  std::atomic<bool> warned_{false};
};

/// Explicit, else $Q4_CACHE_DIR, $XDG_CACHE_HOME/q4, $HOME/.cache/q4, else empty.
std::string default_folder(const std::string& explicit_folder);
/// Where kernels of an installation lie: q4-kernels/ beside `object` (a library or program), and ../share/q4.
std::vector<std::string> beside(const std::string& object);
/// The library or program that holds this code; empty if the loader does not say.
std::string own_object();

/// Writes what is known of a kernel to `folder`: source, options and, where they are, code, facts and log. `stem`
/// receives the files' common path. Empty text, or what went wrong.
std::string dump(const std::string& folder, const KernelKey& key, const CacheEvent& event,
                 const std::vector<char>* code, const std::string& log, std::string& stem);

}  // namespace q4::cache
