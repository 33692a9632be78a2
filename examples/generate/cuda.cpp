// Opens libcuda.so.1 and libnvrtc.so, and calls them by name.
#include "cuda.hpp"

#include <dlfcn.h>

#include <cstdlib>
#include <initializer_list>
#include <stdexcept>
#include <utility>

namespace generate {
namespace {

void* open(const std::vector<std::string>& names) {
  for (const std::string& name : names)
    if (void* library = name.empty() ? nullptr : dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
  return nullptr;
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

void* driver() {
  static void* const library = open({environment("Q4_CUDA_DRIVER"), "libcuda.so.1"});
  return library;
}

void* nvrtc() {
  std::vector<std::string> names = {environment("Q4_NVRTC"), "libnvrtc.so.13", "libnvrtc.so.12"};
  for (const std::string& home : {environment("CUDA_HOME"), std::string("/usr/local/cuda")})
    if (!home.empty()) names.push_back(home + "/lib64/libnvrtc.so");
  static void* const library = open(names);
  return library;
}

/// Calls a function of a library whose result is 0 when all is well. The arguments have the types of its parameters.
template <class... Arguments>
int call_unchecked(void* library, const char* name, Arguments... arguments) {
  void* const symbol = library ? dlsym(library, name) : nullptr;
  if (!symbol) throw std::runtime_error(std::string(name) + ": not found; the library is absent or too old");
  return reinterpret_cast<int (*)(Arguments...)>(symbol)(arguments...);
}

template <class... Arguments>
void call(const char* name, Arguments... arguments) {
  const int result = call_unchecked(driver(), name, arguments...);
  const char* text = "unknown error";
  if (result != 0) call_unchecked(driver(), "cuGetErrorString", result, &text);
  if (result != 0) throw std::runtime_error(std::string(name) + ": " + text);
}

using Address = std::uint64_t;  // CUdeviceptr
Address address(void* device) { return reinterpret_cast<Address>(device); }

// CUlaunchAttribute and CUlaunchConfig of cuda.h.
struct LaunchAttribute {
  int id, pad;
  union {
    char bytes[64];
    int flag;
  };
};
struct LaunchConfig {
  unsigned grid[3], block[3], shared_bytes;
  void* stream;
  LaunchAttribute* attributes;
  unsigned attribute_count;
};
constexpr int kMajor = 75, kMinor = 76;        // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
constexpr int kProgrammaticSerialization = 6;  // CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION

}  // namespace

Cuda::Cuda(int ordinal) {
  int device = 0, major = 0, minor = 0;
  void* context = nullptr;
  call("cuInit", 0u);
  call("cuDeviceGet", &device, ordinal);
  call("cuDeviceGetAttribute", &major, kMajor, device);
  call("cuDeviceGetAttribute", &minor, kMinor, device);
  call("cuDevicePrimaryCtxRetain", &context, device);
  call("cuCtxSetCurrent", context);
  call("cuStreamCreate", &stream_, 1u);  // not serialized with the default stream
  capability_ = 10 * major + minor;
}

void* Cuda::allocate(std::size_t bytes) const {
  void* memory = nullptr;
  call("cuMemAlloc_v2", &memory, bytes);
  call("cuMemsetD8_v2", address(memory), static_cast<unsigned char>(0), bytes);
  return memory;
}

std::pair<void*, void*> Cuda::allocate_shared(std::size_t bytes) const {
  void *host = nullptr, *device = nullptr;
  call("cuMemHostAlloc", &host, bytes, 2u);  // CU_MEMHOSTALLOC_DEVICEMAP
  call("cuMemHostGetDevicePointer_v2", &device, host, 0u);
  return {host, device};
}

void Cuda::upload(void* device, const void* host, std::size_t bytes) const {
  call("cuMemcpyHtoDAsync_v2", address(device), host, bytes, stream_);
  call("cuStreamSynchronize", stream_);
}

void Cuda::load(const std::vector<char>& code) {
  call("cuModuleLoadData", &module_, static_cast<const void*>(code.data()));
}

void* Cuda::function(const std::string& name) const {
  void* function = nullptr;
  call("cuModuleGetFunction", &function, module_, name.c_str());
  return function;
}

void Cuda::launch(void* function, unsigned x, unsigned y, unsigned z, unsigned threads, std::vector<void*> arguments,
                  bool overlap) const {
  LaunchAttribute attribute = {kProgrammaticSerialization, 0, {}};
  attribute.flag = 1;
  const LaunchConfig config = {{x, y, z}, {threads, 1, 1}, 0,
                               stream_,   &attribute,      overlap && capability_ >= 90 ? 1u : 0u};
  call("cuLaunchKernelEx", &config, function, arguments.data(), static_cast<void**>(nullptr));
}

void Cuda::begin_capture() const { call("cuStreamBeginCapture_v2", stream_, 1); }  // this thread's calls are checked

void* Cuda::end_capture() const {
  void *graph = nullptr, *executable = nullptr;
  call("cuStreamEndCapture", stream_, &graph);
  call("cuGraphInstantiateWithFlags", &executable, graph, 0ull);
  call("cuGraphDestroy", graph);
  return executable;
}

void Cuda::launch_graph(void* graph) const { call("cuGraphLaunch", graph, stream_); }

void* Cuda::event() const {
  void* event = nullptr;
  call("cuEventCreate", &event, 2u);  // without a time
  return event;
}

void Cuda::record(void* event) const { call("cuEventRecord", event, stream_); }
void Cuda::wait(void* event) const { call("cuEventSynchronize", event); }

bool can_compile() { return nvrtc() != nullptr; }

std::vector<char> compile(const std::string& source, int capability, const std::vector<std::string>& options) {
  if (!can_compile())
    throw std::runtime_error("NVRTC was not found: install CUDA's, or pip install nvidia-cuda-nvrtc and set Q4_NVRTC");
  void* program = nullptr;
  const auto check = [&](const char* name, int result) {
    if (result == 0) return;
    std::size_t size = 0;
    std::string log;
    if (program && call_unchecked(nvrtc(), "nvrtcGetProgramLogSize", program, &size) == 0) {
      log.resize(size);
      call_unchecked(nvrtc(), "nvrtcGetProgramLog", program, log.data());
    }
    throw std::runtime_error(std::string(name) + ": error " + std::to_string(result) + "\n" + log);
  };
  const char* const* const none = nullptr;
  check("nvrtcCreateProgram",
        call_unchecked(nvrtc(), "nvrtcCreateProgram", &program, source.c_str(), "generate.cu", 0, none, none));
  std::vector<std::string> all = options;
  all.push_back("--gpu-architecture=sm_" + std::to_string(capability));
  std::vector<const char*> words;
  for (const std::string& option : all) words.push_back(option.c_str());
  check("nvrtcCompileProgram", call_unchecked(nvrtc(), "nvrtcCompileProgram", program, static_cast<int>(words.size()),
                                              static_cast<const char* const*>(words.data())));
  std::size_t size = 0;
  check("nvrtcGetCUBINSize", call_unchecked(nvrtc(), "nvrtcGetCUBINSize", program, &size));
  std::vector<char> code(size);
  check("nvrtcGetCUBIN", call_unchecked(nvrtc(), "nvrtcGetCUBIN", program, code.data()));
  call_unchecked(nvrtc(), "nvrtcDestroyProgram", &program);
  return code;
}

}  // namespace generate
