// The part of the HIP runtime that q4 uses, declared here so that no ROCm is needed to build, and opened at first need
// so that none is needed to run. Types and values are those of hip_runtime_api.h from 5.0 to 7.x.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "runtime/base/fork.hpp"
#include "runtime/base/library.hpp"
#include "runtime/base/result.hpp"

namespace q4::hip {

using Result = int;
using Module = struct ihipModule_t*;
using FunctionHandle = struct ihipModuleSymbol_t*;
using StreamHandle = struct ihipStream_t*;
using EventHandle = struct ihipEvent_t*;
using Graph = struct ihipGraph*;
using GraphExec = struct hipGraphExec*;

/// What q4 reads of hipDeviceProp_t.
struct Properties {
  std::string name, arch;  ///< "AMD Instinct MI250X", "gfx90a:sramecc+:xnack-"
  std::size_t memory_bytes = 0, shared_bytes = 0, l2_bytes = 0;
  int registers = 0, wave = 0, units = 0;
};

// X(member, symbol, parameters)
#define Q4_HIP_FUNCTIONS(X)                                                                                      \
  X(init, "hipInit", (unsigned))                                                                                 \
  X(runtime_version, "hipRuntimeGetVersion", (int*))                                                             \
  X(device_count, "hipGetDeviceCount", (int*))                                                                   \
  X(device_current, "hipGetDevice", (int*))                                                                      \
  X(device_use, "hipSetDevice", (int))                                                                           \
  X(device_synchronize, "hipDeviceSynchronize", ())                                                              \
  X(allocate, "hipMalloc", (void**, std::size_t))                                                                \
  X(release, "hipFree", (void*))                                                                                 \
  X(copy, "hipMemcpy", (void*, const void*, std::size_t, int))                                                   \
  X(fill, "hipMemset", (void*, int, std::size_t))                                                                \
  X(fill16_async, "hipMemsetD16Async", (void*, unsigned short, std::size_t, StreamHandle))                       \
  X(pointer_attribute, "hipPointerGetAttribute", (void*, int, void*))                                            \
  X(module_load, "hipModuleLoadData", (Module*, const void*))                                                    \
  X(module_unload, "hipModuleUnload", (Module))                                                                  \
  X(module_function, "hipModuleGetFunction", (FunctionHandle*, Module, const char*))                             \
  X(launch, "hipModuleLaunchKernel",                                                                             \
    (FunctionHandle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, StreamHandle, void**, \
     void**))                                                                                                    \
  X(stream_create, "hipStreamCreateWithFlags", (StreamHandle*, unsigned))                                        \
  X(stream_destroy, "hipStreamDestroy", (StreamHandle))                                                          \
  X(stream_synchronize, "hipStreamSynchronize", (StreamHandle))                                                  \
  X(capture_begin, "hipStreamBeginCapture", (StreamHandle, int))                                                 \
  X(capture_end, "hipStreamEndCapture", (StreamHandle, Graph*))                                                  \
  X(graph_instantiate, "hipGraphInstantiate", (GraphExec*, Graph, void*, char*, std::size_t))                    \
  X(graph_launch, "hipGraphLaunch", (GraphExec, StreamHandle))                                                   \
  X(graph_exec_destroy, "hipGraphExecDestroy", (GraphExec))                                                      \
  X(graph_destroy, "hipGraphDestroy", (Graph))                                                                   \
  X(event_create, "hipEventCreate", (EventHandle*))                                                              \
  X(event_destroy, "hipEventDestroy", (EventHandle))                                                             \
  X(event_record, "hipEventRecord", (EventHandle, StreamHandle))                                                 \
  X(event_synchronize, "hipEventSynchronize", (EventHandle))                                                     \
  X(event_elapsed, "hipEventElapsedTime", (float*, EventHandle, EventHandle))

/// The runtime's functions. A Runtime of q4 owns its own.
struct Api {
#define Q4_DECLARE(member, symbol, parameters) Result(*member) parameters = nullptr;
  Q4_HIP_FUNCTIONS(Q4_DECLARE)
#undef Q4_DECLARE
  const char* (*error_name)(Result) = nullptr;
  const char* (*error_text)(Result) = nullptr;

  /// Opens libamdhip64.so.7, .6 or .5 ($Q4_HIP_RUNTIME). Null, and the reason, if there is no usable one.
  static q4::Result<std::shared_ptr<const Api>> open();

  Properties properties(int ordinal) const;
  /// "6.2.41133"
  std::string version() const;
  /// Throws Error(kDevice or kOutOfMemory): "<call>: hipErrorX: text. remedy".
  void check(Result result, const char* call) const;
  std::string describe(Result result) const;

  std::string path;     ///< of the library
  HomeProcess process;  ///< outside of it none of the runtime's functions may be called

 private:
  Result (*properties_)(void*, int) = nullptr;
  bool properties_of_6_ = false;
  template <class F>
  static bool bind_all(Library& library, F& api);
};

template <class F>
bool Api::bind_all(Library& library, F& api) {
#define Q4_BIND(member, symbol, parameters) \
  if (!library.bind(api.member, symbol)) return false;
  Q4_HIP_FUNCTIONS(Q4_BIND)
#undef Q4_BIND
  return library.bind(api.error_name, "hipGetErrorName") && library.bind(api.error_text, "hipGetErrorString");
}
#undef Q4_HIP_FUNCTIONS

/// Makes a device current for this thread and a scope.
class Current {
 public:
  Current(const Api& api, int ordinal);
  ~Current();
  Current(const Current&) = delete;

 private:
  const Api& api_;
  int before_ = -1;
};

}  // namespace q4::hip
