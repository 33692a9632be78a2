// HIP on an NVIDIA GPU, for tests: the functions of libamdhip64, hipRTC and rocBLAS that q4's HIP backend opens, over
// the CUDA driver, NVRTC and cuBLAS. The backend's host code then runs the whole suite on real hardware:
//   L=lib/libq4-hip-on-nvidia.so; Q4_CUDA_DRIVER=none Q4_HIP_RUNTIME=$L Q4_HIPRTC=$L Q4_ROCBLAS=$L bin/q4-tests
// Q4_CUDA_DRIVER=none keeps the CUDA backend out of it; this library looks past it.
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>

#include "runtime/backends/cuda/api.hpp"
#include "runtime/backends/cuda/nvrtc.hpp"
#include "runtime/base/check.hpp"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace q4::cuda {
namespace {

constexpr int kInvalidValue = 1, kNoDevice = 100;
constexpr int kUnits = 16, kMajor = 75, kMinor = 76, kL2 = 38, kSharedOptIn = 97, kWarp = 10, kRegisters = 82;
constexpr int kDynamicShared = 8;

thread_local int current_device = 0;

/// The driver and each device's primary context, the one that the CUDA backend uses too. Never released.
struct Driver {
  std::shared_ptr<const Api> api;
  Library library{"Q4_NVIDIA_DRIVER", {"libcuda.so.1"}, {}};
  int (*fill16_async)(DevicePointer, unsigned short, std::size_t, StreamHandle) = nullptr;
  std::mutex mutex;
  std::map<int, Context> contexts;

  Driver() {
    const char* variable = "Q4_CUDA_DRIVER";
    const char* given = std::getenv(variable);
    const std::string before = given ? given : "";
    ::unsetenv(variable);
    if (auto opened = Api::open()) api = *std::move(opened);
    if (given) ::setenv(variable, before.c_str(), 1);
    library.bind(fill16_async, "cuMemsetD16Async");
  }
  Context context() {
    const std::lock_guard lock(mutex);
    auto& context = contexts[current_device];
    DeviceHandle device = 0;
    if (!context && api->device_get(&device, current_device) == 0) api->context_retain(&context, device);
    return context;
  }
  int attribute(int device, int id) const {
    DeviceHandle handle = 0;
    int value = 0;
    api->device_get(&handle, device);
    api->device_attribute(&value, id, handle);
    return value;
  }
};
Driver& driver() {
  static Driver one;
  return one;
}

/// `call` with the current device's context.
template <class Call>
int with_context(const Call& call) {
  try {
    const Current current(*driver().api, driver().context());
    return call(*driver().api);
  } catch (const Error&) { return kInvalidValue; }
}
DevicePointer address(const void* p) { return reinterpret_cast<DevicePointer>(p); }

template <class T>
void put(char* properties, std::size_t offset, T value) {
  std::memcpy(properties + offset, &value, sizeof value);
}

}  // namespace

EXPORT int hipInit(unsigned) { return driver().api ? 0 : kNoDevice; }
EXPORT int hipRuntimeGetVersion(int* version) { return *version = 50200000, 0; }
EXPORT int hipGetDeviceCount(int* count) { return driver().api->device_count(count); }
EXPORT int hipGetDevice(int* device) { return *device = current_device, 0; }
EXPORT int hipSetDevice(int device) { return current_device = device, 0; }
EXPORT int hipDeviceSynchronize() {
  return with_context([](const Api& api) { return api.context_synchronize(); });
}
EXPORT const char* hipGetErrorName(int error) {
  const char* name = nullptr;
  driver().api->error_name(error, &name);
  return name;
}
EXPORT const char* hipGetErrorString(int error) {
  const char* text = nullptr;
  driver().api->error_text(error, &text);
  return text;
}

/// hipDeviceProp_t of 5.x: the offsets of its fields that q4 reads.
EXPORT int hipGetDeviceProperties(char* properties, int device) {
  const Driver& d = driver();
  DeviceHandle handle = 0;
  std::size_t memory = 0;
  d.api->device_get(&handle, device), d.api->device_memory(&memory, handle);
  std::memset(properties, 0, 792);
  d.api->device_name(properties, 256, handle);
  const int major = d.attribute(device, kMajor);
  std::snprintf(properties + 396, 256, "sm_%d%d%s", major, d.attribute(device, kMinor), major >= 9 ? "a" : "");
  put(properties, 256, memory), put(properties, 264, static_cast<std::size_t>(d.attribute(device, kSharedOptIn)));
  put(properties, 272, d.attribute(device, kRegisters)), put(properties, 276, d.attribute(device, kWarp));
  put(properties, 336, d.attribute(device, kUnits)), put(properties, 340, d.attribute(device, kL2));
  return 0;
}

EXPORT int hipMalloc(void** memory, std::size_t bytes) {
  return with_context([&](const Api& api) {
    DevicePointer pointer = 0;
    const int result = api.allocate(&pointer, bytes);
    *memory = reinterpret_cast<void*>(pointer);
    return result;
  });
}
EXPORT int hipFree(void* memory) {
  return with_context([&](const Api& api) { return api.release(address(memory)); });
}
EXPORT int hipMemcpy(void* to, const void* from, std::size_t bytes, int kind) {
  return with_context([&](const Api& api) {
    return kind == 1   ? api.copy_to_device(address(to), from, bytes)
           : kind == 2 ? api.copy_to_host(to, address(from), bytes)
                       : api.copy_on_device(address(to), address(from), bytes);
  });
}
EXPORT int hipMemset(void* memory, int byte, std::size_t bytes) {
  return with_context(
      [&](const Api& api) { return api.fill(address(memory), static_cast<unsigned char>(byte), bytes); });
}
EXPORT int hipMemsetD16Async(void* memory, unsigned short value, std::size_t count, StreamHandle stream) {
  return with_context([&](const Api&) { return driver().fill16_async(address(memory), value, count, stream); });
}
EXPORT int hipPointerGetAttribute(void* value, int attribute, const void* memory) {
  return driver().api->pointer_attribute(value, attribute, address(memory));
}

EXPORT int hipModuleLoadData(Module* module, const void* image) {
  return with_context([&](const Api& api) { return api.module_load(module, image); });
}
EXPORT int hipModuleUnload(Module module) {
  return with_context([&](const Api& api) { return api.module_unload(module); });
}
EXPORT int hipModuleGetFunction(FunctionHandle* function, Module module, const char* name) {
  return with_context([&](const Api& api) {
    const int result = api.module_function(function, module, name);
    if (result != 0) return result;
    return api.function_set(*function, kDynamicShared, driver().attribute(current_device, kSharedOptIn));
  });
}
EXPORT int hipModuleLaunchKernel(FunctionHandle function, unsigned blocks, unsigned, unsigned, unsigned threads,
                                 unsigned, unsigned, unsigned shared, StreamHandle stream, void** parameters, void**) {
  return with_context([&](const Api& api) {
    const LaunchConfig config{blocks, 1, 1, threads, 1, 1, shared, stream, nullptr, 0};
    return api.launch(&config, function, parameters, nullptr);
  });
}

EXPORT int hipStreamCreateWithFlags(StreamHandle* stream, unsigned flags) {
  return with_context([&](const Api& api) { return api.stream_create(stream, flags); });
}
EXPORT int hipStreamDestroy(StreamHandle stream) {
  return with_context([&](const Api& api) { return api.stream_destroy(stream); });
}
EXPORT int hipStreamSynchronize(StreamHandle stream) {
  return with_context([&](const Api& api) { return api.stream_synchronize(stream); });
}
EXPORT int hipStreamBeginCapture(StreamHandle stream, int mode) {
  return with_context([&](const Api& api) { return api.capture_begin(stream, mode); });
}
EXPORT int hipStreamEndCapture(StreamHandle stream, Graph* graph) {
  return with_context([&](const Api& api) { return api.capture_end(stream, graph); });
}
EXPORT int hipGraphInstantiate(GraphExec* exec, Graph graph, void*, char*, std::size_t) {
  return with_context([&](const Api& api) { return api.graph_instantiate(exec, graph, 0); });
}
EXPORT int hipGraphLaunch(GraphExec exec, StreamHandle stream) {
  return with_context([&](const Api& api) { return api.graph_launch(exec, stream); });
}
EXPORT int hipGraphExecDestroy(GraphExec exec) { return driver().api->graph_exec_destroy(exec); }
EXPORT int hipGraphDestroy(Graph graph) { return driver().api->graph_destroy(graph); }
EXPORT int hipEventCreate(EventHandle* event) {
  return with_context([&](const Api& api) { return api.event_create(event, 0); });
}
EXPORT int hipEventDestroy(EventHandle event) { return driver().api->event_destroy(event); }
EXPORT int hipEventRecord(EventHandle event, StreamHandle stream) {
  return with_context([&](const Api& api) { return api.event_record(event, stream); });
}
EXPORT int hipEventSynchronize(EventHandle event) { return driver().api->event_synchronize(event); }
EXPORT int hipEventElapsedTime(float* milliseconds, EventHandle from, EventHandle to) {
  return driver().api->event_elapsed(milliseconds, from, to);
}

// ---- hipRTC over NVRTC ----------------------------------------------------------------------------------------------
namespace {

struct Program {
  std::string text, log;
  std::vector<char> code;
};

}  // namespace

EXPORT const char* hiprtcGetErrorString(int error) { return error ? "NVRTC failed" : "success"; }
EXPORT int hiprtcCreateProgram(Program** program, const char* text, const char*, int, const char**, const char**) {
  return *program = new Program{text, "", {}}, 0;
}
EXPORT int hiprtcDestroyProgram(Program** program) { return delete *program, 0; }
EXPORT int hiprtcCompileProgram(Program* program, int count, const char** options) {
  static const Nvrtc nvrtc;
  const std::string architecture = "--gpu-architecture=";
  std::string arch;
  std::vector<std::string> kept;
  for (const std::string& option : std::vector<std::string>(options, options + count)) {
    if (option.starts_with(architecture))
      arch = option.substr(architecture.size());
    else if (option != "-O3")  // NVRTC has no such option and needs none
      kept.push_back(option);
  }
  try {
    program->code = nvrtc.compile({"HIP on NVIDIA", program->text}, arch, kept, &program->log);
    return 0;
  } catch (const Error& error) { return program->log = error.what(), 6; }
}
EXPORT int hiprtcGetProgramLogSize(const Program* program, std::size_t* size) { return *size = program->log.size(), 0; }
EXPORT int hiprtcGetProgramLog(const Program* program, char* log) {
  return std::memcpy(log, program->log.data(), program->log.size()), 0;
}
EXPORT int hiprtcGetCodeSize(const Program* program, std::size_t* size) { return *size = program->code.size(), 0; }
EXPORT int hiprtcGetCode(const Program* program, char* code) {
  return std::memcpy(code, program->code.data(), program->code.size()), 0;
}

// ---- rocBLAS over cuBLAS --------------------------------------------------------------------------------------------
namespace {

struct Cublas {
  Library library{"Q4_CUBLAS", {"libcublas.so.13", "libcublas.so.12"}, {"/usr/local/cuda/lib64"}};
  int (*create)(void**) = nullptr;
  int (*destroy)(void*) = nullptr;
  int (*stream)(void*, void*) = nullptr;
  int (*gemm)(void*, int, int, int, int, int, const void*, const void*, int, int, const void*, int, int, const void*,
              void*, int, int, int, int) = nullptr;
  bool usable = library.bind(create, "cublasCreate_v2") && library.bind(destroy, "cublasDestroy_v2") &&
                library.bind(stream, "cublasSetStream_v2") && library.bind(gemm, "cublasGemmEx");
};
Cublas& cublas() {
  static Cublas one;
  return one;
}

}  // namespace

EXPORT int rocblas_create_handle(void** handle) {
  if (!cublas().usable) return 1;
  return with_context([&](const Api&) { return cublas().create(handle); });
}
EXPORT int rocblas_destroy_handle(void* handle) { return cublas().destroy(handle); }
EXPORT int rocblas_set_stream(void* handle, void* stream) { return cublas().stream(handle, stream); }
EXPORT int rocblas_gemm_ex(void* handle, int, int, int m, int n, int k, const void* alpha, const void* a, int type,
                           int lda, const void* b, int, int ldb, const void* beta, const void* c, int, int, void* d,
                           int, int ldd, int, int, int, unsigned) {
  constexpr int kBfloatOfRocblas = 168, kHalf = 2, kBfloat = 14, kCompute32F = 68, kDefaultAlgorithm = -1;
  if (c != d) return kInvalidValue;
  const int cuda_type = type == kBfloatOfRocblas ? kBfloat : kHalf;
  return with_context([&](const Api&) {
    return cublas().gemm(handle, 0, 0, m, n, k, alpha, a, cuda_type, lda, b, cuda_type, ldb, beta, d, cuda_type, ldd,
                         kCompute32F, kDefaultAlgorithm);
  });
}

}  // namespace q4::cuda
