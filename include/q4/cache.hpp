// What the kernel cache tells about itself: one event for each kernel that was not in memory, and counters.
#pragma once

#include <cstdint>
#include <q4/export.hpp>
#include <string>

namespace q4 {

/// Where a kernel came from, in the order of the search.
enum class CacheLayer : std::uint8_t {
  kNone,           ///< nowhere: it is not prebuilt, or compiling it failed
  kMemory,         ///< this Runtime had it
  kUserFolder,     ///< RuntimeOptions::cache_dir or the default folder
  kFolder,         ///< RuntimeOptions::cache_folders, $Q4_CACHE_PATH
  kBesideLibrary,  ///< q4-kernels/ beside the library or program, or ../share/q4
  kPack,           ///< RuntimeOptions::packs, or a pack in one of the folders
  kCompiler,       ///< none of them had it: compiled
};

/// Stable lower-case name: "none", "memory", "user-folder", "folder", "beside-library", "pack", "compiler".
Q4_API const char* to_string(CacheLayer layer) noexcept;

/// One kernel that was looked for beyond memory. Times in milliseconds.
struct CacheEvent {
  std::string key;     ///< 64 hex digits: what `q4-cache explain` takes
  std::string kernel;  ///< "decode {.p={.k=4096,...": the kernel and its Config
  std::string target;  ///< "sm_90a"
  CacheLayer layer = CacheLayer::kNone;
  std::string from;       ///< that layer by name: "pack /opt/llama.q4pack", "nvrtc 13.0 CL-36424714"
  std::string missed;     ///< the layers before it, and why each did not serve; empty when the first one did
  std::string error;      ///< empty unless layer is kNone
  double lookup_ms = 0;   ///< searching, reading and checking
  double compile_ms = 0;  ///< 0 unless layer is kCompiler; with the wait for another process that compiles the same
  double load_ms = 0;     ///< handing the code to the driver
};

/// Since the Runtime was made. Sums of milliseconds run in parallel where kernels do.
struct CacheCounters {
  std::uint64_t memory = 0, user_folder = 0, folder = 0, beside_library = 0, pack = 0;  ///< hits by layer
  std::uint64_t compiled = 0;
  std::uint64_t failed = 0;    ///< errors, misses of require-prebuilt included
  std::uint64_t problems = 0;  ///< folders, packs and entries that could not be used; the first one is also logged
  double lookup_ms = 0, compile_ms = 0, load_ms = 0;
};

}  // namespace q4
