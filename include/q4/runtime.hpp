// Runtime: the devices, caches and options that matrices and plans share. There is no other state.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <q4/cache.hpp>
#include <q4/device.hpp>
#include <q4/error.hpp>
#include <q4/memory.hpp>
#include <string>
#include <vector>

namespace q4 {

class Checkpoint;
struct PlanOptions;
class TuningDb;
struct TuningSource;
struct WarmupExperts;
struct WarmupOptions;
struct WarmupReport;
struct WarmupShape;

enum class LogLevel : std::uint8_t { kError, kWarning, kInfo, kDebug };

enum class CacheMode : std::uint8_t {
  kReadWrite,        ///< use and fill the kernel cache
  kReadOnly,         ///< use it, write nothing
  kOff,              ///< memory only
  kRequirePrebuilt,  ///< a kernel that no layer holds is an error; nothing is compiled
};

/// Calls task(0), task(1), ... task(tasks - 1), each once, from any threads, together or in turn, and returns when all
/// have returned. It may be called from several threads at once, as plans run.
using ParallelFor = std::function<void(int tasks, const std::function<void(int task)>& task)>;

struct RuntimeOptions {
  /// Folder of compiled kernels; empty: $Q4_CACHE_DIR, else $XDG_CACHE_HOME/q4, else $HOME/.cache/q4, else memory only.
  std::string cache_dir = {};
  /// kReadWrite: $Q4_CACHE_MODE (read-write, read-only, off, require-prebuilt) where it is set.
  CacheMode cache_mode = CacheMode::kReadWrite;
  /// Further folders of compiled kernels, only read, searched in this order after cache_dir and before those of
  /// $Q4_CACHE_PATH (colon-separated). A *.q4pack in one of them is a pack.
  std::vector<std::string> cache_folders = {};
  /// Pack files (q4-cache pack), searched after all folders.
  std::vector<std::string> packs = {};
  /// Ed25519 public key, 64 hex digits (q4-cache keygen); empty: $Q4_PACK_PUBLIC_KEY. With one, a pack that is not
  /// signed by it, or whose signature cannot be checked here, is not used.
  std::string pack_public_key = {};
  /// Bound of cache_dir: beyond it, the kernels that were used least recently go. 0: unbounded.
  std::uint64_t cache_max_bytes = std::uint64_t{1} << 30;
  /// Tuning files to read, later ones win. Empty: $Q4_TUNING (colon-separated), else tuning.jsonl where it exists: in
  /// the folders searched for kernels (those beside the library included), in the same order, the user's cache folder
  /// over all. A file that is named but missing or corrupt is an error; the others only warn. What packs hold is read
  /// before them: a record of a file wins.
  std::vector<std::string> tuning_files = {};
  /// File to which each problem that a plan is made for without a tuning record of this very device is appended, once a
  /// process, as a line of JSON: what `q4-autotune --shapes` reads. Empty: $Q4_RECORD_UNTUNED, else none. Never fatal.
  std::string record_untuned = {};
  /// Threads of the CPU backend, the caller of run() among them; 0: what the affinity mask and the cgroup allow. With 1
  /// everything happens in the calling thread: what a program wants that calls run() from threads of its own.
  int cpu_threads = 0;
  /// An embedder's thread pool in place of the CPU backend's own threads: it gets at most cpu_threads tasks at a time.
  /// Results have the same bits. Empty: own threads.
  ParallelFor parallel_for = {};
  /// Instruction set of the CPU backend: "avx2", "neon", ... (q4-info names those of this build). One that cannot run
  /// makes the CPU absent. Empty: $Q4_CPU_ISA, else the best one.
  std::string cpu_isa = {};
  /// Where device memory comes from; empty: the driver, and malloc for the CPU (q4/memory.hpp).
  Allocator allocator = {};
  /// Receives messages; called from any thread. Empty: warnings and errors to stderr
  /// ($Q4_LOG=debug|info|warning|error).
  std::function<void(LogLevel, const std::string&)> log = {};
  /// Receives an event for each kernel that was not in memory. Called from any thread, while the library holds no lock:
  /// it may call the library. What it throws is swallowed.
  std::function<void(const CacheEvent&)> cache_event = {};
  /// Folder that receives, for each kernel that was not in memory, its source, options, code and what is known of it
  /// (registers, spills, times), and the compiler's log; empty: $Q4_DUMP_DIR, else none. Made if it is not there.
  std::string dump_dir = {};
};

/// A cheap handle to shared, thread-safe state: copies refer to the same devices, caches and options. Everything
/// created from it keeps that state alive, so the order of destruction does not matter. Creating one opens no driver:
/// backends are opened at first need.
///
/// fork(): where no GPU was used before, everything works in the child. Where one was, every use of GPUs in the child
/// throws kDevice (CUDA and HIP do not survive fork()), and destroying is safe. The CPU computes in the child in the
/// calling thread.
class Q4_API Runtime {
 public:
  explicit Runtime(RuntimeOptions options = {});

  /// Every usable device, best first (CUDA, HIP, CPU). Never throws for a missing driver: see backends().
  std::vector<DeviceInfo> devices() const;
  /// Each backend of this build with its versions, or the reason of its absence.
  std::vector<BackendStatus> backends() const;
  /// The first of devices(): a GPU where there is one, else the CPU.
  Device best_device() const;
  /// Throws kNotFound with the list of devices that exist.
  DeviceInfo info(Device device) const;
  /// Folder that receives compiled kernels, empty when there is none.
  std::string cache_dir() const;
  /// The tuning results in use (read once, at the first plan).
  const TuningDb& tuning() const;
  /// Where they come from, in the order of reading: of two records of one key the later one is used. Read anew at each
  /// call, each line of it.
  std::vector<TuningSource> tuning_sources() const;
  CacheCounters cache_counters() const;
  /// What is held on each device that was used.
  std::vector<MemoryUse> memory() const;
  /// Frees the memory that loads keep for the next load.
  void trim() const;
  /// After warm-up: from now on compiling a kernel or taking device memory is reported or refused, for every matrix and
  /// plan of this Runtime; run() does neither anyway. kOff takes it back.
  void seal(Sealing mode) const;
  /// With the mode that $Q4_SEAL names (off, warn, error); else kError.
  void seal() const;
  /// Finds or compiles every kernel that plans of these shapes will load on a device, and keeps them loaded for the
  /// life of the Runtime (q4/warmup.hpp). A kernel that fails is in the report; throws kInvalidArgument for shapes and
  /// options that no plan accepts, and what opening the device throws.
  WarmupReport warmup(const std::vector<WarmupShape>& shapes, const WarmupOptions& options) const;
  /// For every quantized matrix of a checkpoint, and for every layer of experts where it says how many a token has
  /// (Checkpoint::experts_per_token).
  WarmupReport warmup(const Checkpoint& checkpoint, const WarmupOptions& options) const;
  /// For layers of experts: everything that QuantizedExperts and MoePlan load. The CPU has nothing to compile here either.
  WarmupReport warmup_experts(const std::vector<WarmupExperts>& layers, const WarmupOptions& options) const;
  /// 16 hex digits of everything in q4 that decides the bits of results of plans of these shapes with these options: the
  /// kind of device, the device code, the tactic of each range of m. Ranks whose ids are equal compute alike; versions of
  /// a BLAS, where W is reconstructed, and of the run-time compiler are not in it. No shapes: the device and the code.
  std::string numerics_id(Device device, const std::vector<WarmupShape>& shapes, const PlanOptions& options) const;
  std::string numerics_id(Device device, const Checkpoint& checkpoint, const PlanOptions& options) const;

  class Impl;
  Impl& impl() const { return *impl_; }  ///< internal

 private:
  std::shared_ptr<Impl> impl_;
};

}  // namespace q4
