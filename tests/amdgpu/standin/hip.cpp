// A stand-in for libamdhip64 and librocblas: the functions that q4's HIP backend opens, on devices that are the
// interpreter. $Q4_HIP_RUNTIME and $Q4_ROCBLAS name this library; $Q4_AMDGPU_TARGETS lists its devices
// (gfx90a,gfx1030,gfx1100).
#include <fmt/format.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <sstream>

#include "runtime/backends/hip/target.hpp"
#include "runtime/jit/elf.hpp"
#include "tests/amdgpu/execute.hpp"
#include "tests/reference.hpp"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace q4::amdgpu {
namespace {

constexpr int kSuccess = 0, kInvalidValue = 1, kOutOfMemory = 2, kNoDevice = 100, kInvalidImage = 200, kNotFound = 500,
              kLaunchFailure = 719;
constexpr std::size_t kMemoryBytes = std::size_t{1} << 30;

struct Allocation {
  std::size_t bytes;
  int device;
};
/// A stream that captures keeps what it is given; a graph runs it.
using Work = std::vector<std::function<int()>>;
struct Stream {
  bool capturing = false;
  Work captured;
};
struct Event {
  std::chrono::steady_clock::time_point when;
};
struct Module {
  std::vector<char> code;
  std::string target;
  std::map<std::string, std::unique_ptr<Kernel>> kernels;
};

struct State {
  std::recursive_mutex mutex;
  std::map<u64, Allocation> memory;
  std::vector<std::string> targets;
  std::string problem = "no problem";  ///< of the last failure, as hipGetErrorString tells it

  State() {
    const char* given = std::getenv("Q4_AMDGPU_TARGETS");
    std::istringstream names(given ? given : "gfx90a,gfx1030,gfx1100");
    for (std::string name; std::getline(names, name, ',');) targets.push_back(name);
  }
};
State& state() {
  static State one;
  return one;
}
thread_local int current_device = 0;

int failed(int code, const std::string& what) {
  state().problem = what;
  return code;
}

/// The allocation that holds [p, p + bytes), or null.
const Allocation* find(const void* p, std::size_t bytes) {
  const auto address = reinterpret_cast<u64>(p);
  auto at = state().memory.upper_bound(address);
  if (at == state().memory.begin()) return nullptr;
  --at;
  return address + bytes <= at->first + at->second.bytes ? &at->second : nullptr;
}

/// Now, or when the graph of a capturing stream runs.
int enqueue(void* stream, std::function<int()> work) {
  auto* s = static_cast<Stream*>(stream);
  if (!s || !s->capturing) return work();
  s->captured.push_back(std::move(work));
  return kSuccess;
}

int run_kernel(const Kernel& kernel, const Launch& launch, const std::vector<char>& arguments, int device) {
  std::vector<Range> memory;
  for (const auto& [address, allocation] : state().memory)
    if (allocation.device == device) memory.push_back({address, address + allocation.bytes});
  try {
    execute(kernel, launch, arguments, std::move(memory));
    return kSuccess;
  } catch (const std::exception& error) { return failed(kLaunchFailure, error.what()); }
}

template <class T>
void put(char* properties, std::size_t offset, T value) {
  std::memcpy(properties + offset, &value, sizeof value);
}

}  // namespace

using Lock = std::lock_guard<std::recursive_mutex>;

EXPORT int hipInit(unsigned) { return state().targets.empty() ? kNoDevice : kSuccess; }
EXPORT int hipRuntimeGetVersion(int* version) { return *version = 60000000, kSuccess; }
EXPORT int hipGetDeviceCount(int* count) { return *count = static_cast<int>(state().targets.size()), kSuccess; }
EXPORT int hipGetDevice(int* device) { return *device = current_device, kSuccess; }
EXPORT int hipSetDevice(int device) { return current_device = device, kSuccess; }
EXPORT int hipDeviceSynchronize() { return kSuccess; }
EXPORT const char* hipGetErrorName(int error) { return error == kLaunchFailure ? "hipErrorLaunchFailure" : "hipError"; }
EXPORT const char* hipGetErrorString(int) { return state().problem.c_str(); }

/// hipDeviceProp_tR0600: the offsets of its fields that q4 reads.
EXPORT int hipGetDevicePropertiesR0600(char* properties, int device) {
  const std::string& name = state().targets.at(static_cast<std::size_t>(device));
  const auto* target = hip::find_target(name);
  if (!target) return failed(kInvalidValue, name + " is no target");
  std::memset(properties, 0, 1472);
  std::snprintf(properties, 256, "interpreted %s", name.c_str());
  std::snprintf(properties + 1160, 256, "%s%s", name.c_str(), target->wave == 64 ? ":sramecc+:xnack-" : "");
  put(properties, 288, kMemoryBytes), put(properties, 296, static_cast<std::size_t>(target->lds_bytes));
  put(properties, 304, 65536), put(properties, 308, target->wave), put(properties, 388, 4);
  put(properties, 616, 1 << 20);
  return kSuccess;
}

EXPORT int hipMalloc(void** memory, std::size_t bytes) {
  const Lock lock(state().mutex);
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (!*memory) return failed(kOutOfMemory, "out of memory");
  std::memset(*memory, 0xcd, bytes);
  state().memory[reinterpret_cast<u64>(*memory)] = {bytes, current_device};
  return kSuccess;
}
EXPORT int hipFree(void* memory) {
  const Lock lock(state().mutex);
  if (memory && state().memory.erase(reinterpret_cast<u64>(memory)) == 0)
    return failed(kInvalidValue, "hipFree of what hipMalloc did not give");
  std::free(memory);
  return kSuccess;
}
EXPORT int hipMemcpy(void* to, const void* from, std::size_t bytes, int kind) {
  const Lock lock(state().mutex);
  if ((kind != 2 && !find(to, bytes)) || (kind != 1 && !find(from, bytes)))
    return failed(kInvalidValue, fmt::format("hipMemcpy of {} bytes outside an allocation", bytes));
  std::memcpy(to, from, bytes);
  return kSuccess;
}
EXPORT int hipMemset(void* memory, int byte, std::size_t bytes) {
  const Lock lock(state().mutex);
  if (!find(memory, bytes)) return failed(kInvalidValue, "hipMemset outside an allocation");
  std::memset(memory, byte, bytes);
  return kSuccess;
}
EXPORT int hipMemsetD16Async(void* memory, unsigned short value, std::size_t count, void* stream) {
  const Lock lock(state().mutex);
  if (!find(memory, 2 * count)) return failed(kInvalidValue, "hipMemsetD16Async outside an allocation");
  return enqueue(stream, [=] { return std::fill_n(static_cast<unsigned short*>(memory), count, value), kSuccess; });
}
EXPORT int hipPointerGetAttribute(int* value, int attribute, const void* memory) {
  const Lock lock(state().mutex);
  const Allocation* found = find(memory, 1);
  if (!found) return failed(kInvalidValue, "not device memory");
  *value = attribute == 9 ? found->device : attribute == 2 ? 2 : 0;  // ordinal; type: device; managed: no
  return kSuccess;
}

EXPORT int hipModuleLoadData(Module** module, const char* image) {
  const Lock lock(state().mutex);
  Elf64_Ehdr header;
  std::memcpy(&header, image, sizeof header);
  if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_machine != 224)
    return failed(kInvalidImage, "no AMD code object");
  const std::size_t bytes = header.e_shoff + std::size_t{header.e_shnum} * header.e_shentsize;
  *module = new Module{{image, image + bytes}, state().targets[static_cast<std::size_t>(current_device)], {}};
  return kSuccess;
}
EXPORT int hipModuleUnload(Module* module) { return delete module, kSuccess; }
EXPORT int hipModuleGetFunction(const Kernel** function, Module* module, const char* name) {
  const Lock lock(state().mutex);
  try {
    *function = (module->kernels[name] = load_kernel(module->code, module->target, name)).get();
    return kSuccess;
  } catch (const std::exception& error) { return failed(kNotFound, error.what()); }
}
EXPORT int hipModuleLaunchKernel(const Kernel* kernel, unsigned blocks, unsigned, unsigned, unsigned threads, unsigned,
                                 unsigned, unsigned shared, void* stream, void** parameters, void**) {
  const Lock lock(state().mutex);
  std::vector<char> arguments(static_cast<std::size_t>(kernel->info.argument_bytes));
  for (std::size_t i = 0; i < kernel->info.arguments.size(); ++i)
    std::memcpy(arguments.data() + kernel->info.arguments[i].offset, parameters[i],
                static_cast<std::size_t>(kernel->info.arguments[i].size));
  const auto group = static_cast<unsigned short>(threads);
  if (const int at = kernel->info.block_count; at >= 0) std::memcpy(arguments.data() + at, &blocks, sizeof blocks);
  if (const int at = kernel->info.group_size; at >= 0) std::memcpy(arguments.data() + at, &group, sizeof group);
  const int device = current_device;
  return enqueue(stream, [=] { return run_kernel(*kernel, {blocks, threads, shared}, arguments, device); });
}

EXPORT int hipStreamCreateWithFlags(Stream** stream, unsigned) { return *stream = new Stream, kSuccess; }
EXPORT int hipStreamDestroy(Stream* stream) { return delete stream, kSuccess; }
EXPORT int hipStreamSynchronize(Stream*) { return kSuccess; }
EXPORT int hipStreamBeginCapture(Stream* stream, int) { return stream->capturing = true, kSuccess; }
EXPORT int hipStreamEndCapture(Stream* stream, Work** graph) {
  stream->capturing = false;
  return *graph = new Work(std::move(stream->captured)), kSuccess;
}
EXPORT int hipGraphInstantiate(Work** exec, const Work* graph, void*, char*, std::size_t) {
  return *exec = new Work(*graph), kSuccess;
}
EXPORT int hipGraphLaunch(const Work* exec, void*) {
  const Lock lock(state().mutex);
  for (const auto& work : *exec)
    if (const int result = work(); result != kSuccess) return result;
  return kSuccess;
}
EXPORT int hipGraphExecDestroy(Work* exec) { return delete exec, kSuccess; }
EXPORT int hipGraphDestroy(Work* graph) { return delete graph, kSuccess; }
EXPORT int hipEventCreate(Event** event) { return *event = new Event, kSuccess; }
EXPORT int hipEventDestroy(Event* event) { return delete event, kSuccess; }
EXPORT int hipEventRecord(Event* event, void*) { return event->when = std::chrono::steady_clock::now(), kSuccess; }
EXPORT int hipEventSynchronize(Event*) { return kSuccess; }
EXPORT int hipEventElapsedTime(float* milliseconds, const Event* from, const Event* to) {
  return *milliseconds = std::chrono::duration<float, std::milli>(to->when - from->when).count(), kSuccess;
}

// ---- rocBLAS --------------------------------------------------------------------------------------------------------
EXPORT int rocblas_create_handle(void*** handle) { return *handle = new void*(nullptr), 0; }
EXPORT int rocblas_destroy_handle(void** handle) { return delete handle, 0; }
EXPORT int rocblas_set_stream(void** handle, void* stream) { return *handle = stream, 0; }
/// Column-major, no transposes, 16-bit in and out, fp32 sums; rounded once.
EXPORT int rocblas_gemm_ex(void** handle, int, int, int m, int n, int k, const float* alpha, const u16* a, int type,
                           int lda, const u16* b, int, int ldb, const float* beta, const u16* c, int, int ldc, u16* d,
                           int, int ldd, int, int, int, u32) {
  const Lock lock(state().mutex);
  const bool bf16 = type == 168;
  if (lda < m || ldb < k || ldc < m || ldd < m || !find(a, 2) || !find(b, 2) || !find(c, 2) || !find(d, 2)) return 4;
  return enqueue(*handle, [=, alpha = *alpha, beta = *beta] {
    const auto value = [=](u16 bits) { return bf16 ? test::bf16_value(bits) : test::half_value(bits); };
    for (std::int64_t column = 0; column < n; ++column)
      for (std::int64_t row = 0; row < m; ++row) {
        double sum = 0;
        for (std::int64_t i = 0; i < k; ++i) sum += value(a[i * lda + row]) * value(b[column * ldb + i]);
        sum = alpha * sum + (beta == 0 ? 0 : beta * value(c[column * ldc + row]));
        d[column * ldd + row] = bf16 ? test::bf16_bits(sum) : test::half_bits(sum);
      }
    return kSuccess;
  });
}

}  // namespace q4::amdgpu
