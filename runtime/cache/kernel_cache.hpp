// Compiled kernels by content: in memory, then one file each in a folder, then the compiler.
#pragma once

#include <functional>
#include <future>
#include <map>
#include <mutex>
#include <q4/runtime.hpp>
#include <string>
#include <vector>

namespace q4::cache {

/// Everything that decides what a compiler would emit.
struct KernelKey {
  std::string name;      ///< for messages only
  std::string source;    ///< generated text
  std::string headers;   ///< digest of the embedded headers
  std::string target;    ///< "sm_90a", "gfx90a:sramecc+:xnack-"
  std::string compiler;  ///< with its build number
  std::vector<std::string> options;

  std::string digest() const;  ///< SHA-256 over all but the name, in hex
};

using Log = std::function<void(LogLevel, const std::string&)>;

/// Thread-safe. A key is compiled once however many threads ask; a failure is delivered to those who waited and
/// forgotten. Trouble with the folder is one warning, never an error: the kernel is compiled and used from memory.
class KernelCache {
 public:
  KernelCache(std::string folder, CacheMode mode, Log log);

  using Code = std::vector<char>;
  Code get(const KernelKey& key, const std::function<Code()>& compile);

  const std::string& folder() const { return folder_; }  ///< empty: memory only

 private:
  Code find_or_make(const KernelKey& key, const std::string& digest, const std::function<Code()>& compile);
  void warn_once(const std::string& text);

  std::string folder_;
  CacheMode mode_;
  Log log_;
  std::mutex mutex_;
  std::map<std::string, std::shared_future<Code>> entries_;
  bool warned_ = false;
};

/// Explicit, else $Q4_CACHE_DIR, $XDG_CACHE_HOME/q4, $HOME/.cache/q4, else empty.
std::string default_folder(const std::string& explicit_folder);

}  // namespace q4::cache
