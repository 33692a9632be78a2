// A CUDA driver in front of another one: passes every call on to $Q4_FAULTY_DRIVER (fake_cuda.c, or a real libcuda.so.1), fails
// those that it is told to, and counts what was made and not given back. libraries.c tells it of its calls too.
#include <dlfcn.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "runtime/backends/cuda/api.hpp"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using Word = long;
using Function = Word (*)(Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word, Word);

struct Faults {
  std::mutex mutex;
  long seen = 0, fail_at = 0;  ///< calls since faults_arm(); 0: none fails
  int code = 0;
  bool all_after = false;
  std::string failed;
  std::map<std::string, long> kept;
};
Faults& faults() {
  static auto* all = new Faults;  // threads may end after statics
  return *all;
}

struct Pair {
  const char *makes, *gives_back;
};
constexpr Pair kPairs[] = {{"cuMemAlloc_v2", "cuMemFree_v2"},
                           {"cuMemHostAlloc", "cuMemFreeHost"},
                           {"cuModuleLoadData", "cuModuleUnload"},
                           {"cuStreamCreate", "cuStreamDestroy_v2"},
                           {"cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease_v2"},
                           {"cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2"},
                           {"cuEventCreate", "cuEventDestroy_v2"},
                           {"cuGraphInstantiateWithFlags", "cuGraphExecDestroy"},
                           {"nvrtcCreateProgram", "nvrtcDestroyProgram"},
                           {"cublasLtCreate", "cublasLtDestroy"},
                           {"cublasLtMatmulPreferenceCreate", "cublasLtMatmulPreferenceDestroy"}};

bool gives_back(const char* name) {
  for (const Pair& pair : kPairs)
    if (std::strcmp(name, pair.gives_back) == 0) return true;
  return false;
}

Function real(const char* name) {
  static void* const library = ::dlopen(std::getenv("Q4_FAULTY_DRIVER"), RTLD_NOW | RTLD_LOCAL);
  return library ? reinterpret_cast<Function>(::dlsym(library, name)) : nullptr;
}

}  // namespace

/// The nth call from now on gives `code`, and with `all_after` each one behind it; 0: none. Nothing that was kept is forgotten.
EXPORT void faults_arm(long nth, int code, int all_after) {
  const std::lock_guard lock(faults().mutex);
  faults().seen = 0, faults().fail_at = nth, faults().code = code, faults().all_after = all_after;
  faults().failed.clear();
}
EXPORT long faults_seen() { return faults().seen; }
/// The first call that was failed; empty: none.
EXPORT const char* faults_failed() { return faults().failed.c_str(); }
/// "2 of cuMemAlloc_v2, ": what was made and not given back.
EXPORT const char* faults_kept() {
  static thread_local std::string text;
  const std::lock_guard lock(faults().mutex);
  text.clear();
  for (const auto& [name, count] : faults().kept)
    if (count != 0) text += std::to_string(count) + " of " + name + ", ";
  return text.c_str();
}

/// What a call of this name has to give instead of doing anything; 0: it goes on. Giving back counts even where it fails.
EXPORT int faults_before(const char* name) {
  Faults& all = faults();
  const std::lock_guard lock(all.mutex);
  for (const Pair& pair : kPairs)
    if (std::strcmp(name, pair.gives_back) == 0) --all.kept[pair.makes];
  ++all.seen;
  const bool fails = all.fail_at > 0 && (all.all_after ? all.seen >= all.fail_at : all.seen == all.fail_at);
  if (!fails) return 0;
  if (all.failed.empty()) all.failed = name;
  return all.code;
}
EXPORT void faults_after(const char* name, int result) {
  if (result != 0) return;
  const std::lock_guard lock(faults().mutex);
  for (const Pair& pair : kPairs)
    if (std::strcmp(name, pair.makes) == 0) ++faults().kept[name];
}

// Every argument is a word, and there are at most twelve: what a call does not have is passed on as it is found. What gives
// back is done even where it is to fail, as there is nobody else who could.
#define Q4_WRAP(member, symbol, parameters)                                                                           \
  EXPORT Word faulty_##member(Word a, Word b, Word c, Word d, Word e, Word f, Word g, Word h, Word i, Word j, Word k, \
                              Word l) __asm__(symbol);                                                                \
  Word faulty_##member(Word a, Word b, Word c, Word d, Word e, Word f, Word g, Word h, Word i, Word j, Word k,        \
                       Word l) {                                                                                      \
    static const Function next = real(symbol);                                                                        \
    if (!next) return 1;                                                                                              \
    if (std::strncmp(symbol, "cuGetError", 10) == 0) return next(a, b, c, d, e, f, g, h, i, j, k, l);                 \
    const int fault = faults_before(symbol);                                                                          \
    if (fault != 0 && !gives_back(symbol)) return fault;                                                              \
    const Word result = next(a, b, c, d, e, f, g, h, i, j, k, l);                                                     \
    faults_after(symbol, static_cast<int>(result));                                                                   \
    return fault ? fault : result;                                                                                    \
  }
Q4_CUDA_FUNCTIONS(Q4_WRAP)
Q4_WRAP(tensor_map_encode, "cuTensorMapEncodeTiled", ())
