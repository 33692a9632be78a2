// The part of the CUDA driver API that q4 uses, declared here so that no toolkit is needed to build, and opened at
// first need so that no driver is needed to run. Types, values and the _v2 names are those of cuda.h (12.0 and later).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "runtime/base/fork.hpp"
#include "runtime/base/library.hpp"
#include "runtime/base/result.hpp"

namespace q4::cuda {

using Result = int;
using DeviceHandle = int;
using DevicePointer = unsigned long long;
using Context = struct CUctx_st*;
using Module = struct CUmod_st*;
using FunctionHandle = struct CUfunc_st*;
using StreamHandle = struct CUstream_st*;
using EventHandle = struct CUevent_st*;
using Graph = struct CUgraph_st*;
using GraphExec = struct CUgraphExec_st*;

struct LaunchAttribute {
  int id;
  int pad;
  union {
    char bytes[64];
    struct {
      unsigned x, y, z;
    } cluster;
    int flag;
  } value;
};
struct LaunchConfig {
  unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
  StreamHandle stream;
  LaunchAttribute* attributes;
  unsigned attribute_count;
};
static_assert(sizeof(LaunchAttribute) == 72 && sizeof(LaunchConfig) == 56);

// X(member, symbol, parameters)
#define Q4_CUDA_FUNCTIONS(X)                                                                     \
  X(init, "cuInit", (unsigned))                                                                  \
  X(driver_version, "cuDriverGetVersion", (int*))                                                \
  X(error_name, "cuGetErrorName", (Result, const char**))                                        \
  X(error_text, "cuGetErrorString", (Result, const char**))                                      \
  X(device_count, "cuDeviceGetCount", (int*))                                                    \
  X(device_get, "cuDeviceGet", (DeviceHandle*, int))                                             \
  X(device_name, "cuDeviceGetName", (char*, int, DeviceHandle))                                  \
  X(device_memory, "cuDeviceTotalMem_v2", (std::size_t*, DeviceHandle))                          \
  X(device_attribute, "cuDeviceGetAttribute", (int*, int, DeviceHandle))                         \
  X(context_retain, "cuDevicePrimaryCtxRetain", (Context*, DeviceHandle))                        \
  X(context_release, "cuDevicePrimaryCtxRelease_v2", (DeviceHandle))                             \
  X(context_current, "cuCtxGetCurrent", (Context*))                                              \
  X(context_push, "cuCtxPushCurrent_v2", (Context))                                              \
  X(context_pop, "cuCtxPopCurrent_v2", (Context*))                                               \
  X(context_synchronize, "cuCtxSynchronize", ())                                                 \
  X(allocate, "cuMemAlloc_v2", (DevicePointer*, std::size_t))                                    \
  X(release, "cuMemFree_v2", (DevicePointer))                                                    \
  X(allocate_pinned, "cuMemHostAlloc", (void**, std::size_t, unsigned))                          \
  X(release_pinned, "cuMemFreeHost", (void*))                                                    \
  X(copy_begin, "cuMemcpyHtoDAsync_v2", (DevicePointer, const void*, std::size_t, StreamHandle)) \
  X(copy_to_device, "cuMemcpyHtoD_v2", (DevicePointer, const void*, std::size_t))                \
  X(copy_to_host, "cuMemcpyDtoH_v2", (void*, DevicePointer, std::size_t))                        \
  X(copy_on_device, "cuMemcpyDtoD_v2", (DevicePointer, DevicePointer, std::size_t))              \
  X(fill, "cuMemsetD8_v2", (DevicePointer, unsigned char, std::size_t))                          \
  X(pointer_attribute, "cuPointerGetAttribute", (void*, int, DevicePointer))                     \
  X(module_load, "cuModuleLoadData", (Module*, const void*))                                     \
  X(module_unload, "cuModuleUnload", (Module))                                                   \
  X(module_function, "cuModuleGetFunction", (FunctionHandle*, Module, const char*))              \
  X(function_set, "cuFuncSetAttribute", (FunctionHandle, int, int))                              \
  X(launch, "cuLaunchKernelEx", (const LaunchConfig*, FunctionHandle, void**, void**))           \
  X(stream_create, "cuStreamCreate", (StreamHandle*, unsigned))                                  \
  X(stream_destroy, "cuStreamDestroy_v2", (StreamHandle))                                        \
  X(stream_synchronize, "cuStreamSynchronize", (StreamHandle))                                   \
  X(stream_wait, "cuStreamWaitEvent", (StreamHandle, EventHandle, unsigned))                     \
  X(capture_begin, "cuStreamBeginCapture_v2", (StreamHandle, int))                               \
  X(capture_end, "cuStreamEndCapture", (StreamHandle, Graph*))                                   \
  X(graph_instantiate, "cuGraphInstantiateWithFlags", (GraphExec*, Graph, unsigned long long))   \
  X(graph_launch, "cuGraphLaunch", (GraphExec, StreamHandle))                                    \
  X(graph_exec_destroy, "cuGraphExecDestroy", (GraphExec))                                       \
  X(graph_destroy, "cuGraphDestroy", (Graph))                                                    \
  X(event_create, "cuEventCreate", (EventHandle*, unsigned))                                     \
  X(event_destroy, "cuEventDestroy_v2", (EventHandle))                                           \
  X(event_record, "cuEventRecord", (EventHandle, StreamHandle))                                  \
  X(event_synchronize, "cuEventSynchronize", (EventHandle))                                      \
  X(event_elapsed, "cuEventElapsedTime", (float*, EventHandle, EventHandle))

/// The driver's functions. One a process is enough, but nothing is global: a Runtime owns its own.
struct Api {
#define Q4_DECLARE(member, symbol, parameters) Result(*member) parameters = nullptr;
  Q4_CUDA_FUNCTIONS(Q4_DECLARE)
#undef Q4_DECLARE
  /// Only on drivers that know tensor copies; null otherwise.
  Result (*tensor_map_encode)(void*, int, unsigned, void*, const std::uint64_t*, const std::uint64_t*, const unsigned*,
                              const unsigned*, int, int, int, int) = nullptr;

  /// Opens libcuda.so.1 ($Q4_CUDA_DRIVER) and initializes it. Null, and the reason, if there is no usable driver.
  static q4::Result<std::shared_ptr<const Api>> open();

  /// Throws Error(kDevice or kOutOfMemory): "<call>: CUDA_ERROR_X: text. remedy".
  void check(Result result, const char* call) const;
  std::string describe(Result result) const;
  HomeProcess process;  ///< outside of it none of the driver's functions may be called
};

/// Makes a context current for a scope, at no cost if it already is.
class Current {
 public:
  Current(const Api& api, Context context);
  ~Current();
  Current(const Current&) = delete;

 private:
  const Api& api_;
  bool pushed_ = false;
};

/// For giving back, where nothing can be done about an error: the driver finds memory, modules and streams by themselves,
/// so they are given back even where their context cannot be made current.
class Pushed {
 public:
  Pushed(const Api& api, Context context) : api_(api), pushed_(api.context_push(context) == 0) {}
  ~Pushed() {
    Context ignored;
    if (pushed_) api_.context_pop(&ignored);
  }
  Pushed(const Pushed&) = delete;

 private:
  const Api& api_;
  bool pushed_;
};

}  // namespace q4::cuda
