/* A CUDA driver with one GPU that computes nothing: what a process opens, loads and does after fork() can be tested
 * without one. $Q4_CUDA_DRIVER points here. Memory is the host's, launches are ignored, modules must be ELF. As the
 * real driver, it refuses every call in a child of the process that initialized it. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))
enum { kSuccess = 0, kInvalid = 1, kNotInitialized = 3, kNoImage = 200 };

static pid_t owner;
static __thread void* current;
static int context;

static int usable(void) { return owner == getpid() ? kSuccess : kNotInitialized; }

EXPORT int cuInit(unsigned flags) {
  (void)flags;
  if (!owner) owner = getpid();
  return usable();
}
EXPORT int cuDriverGetVersion(int* version) { return *version = 13000, kSuccess; }
EXPORT int cuGetErrorName(int code, const char** name) {
  *name = code == kNotInitialized ? "CUDA_ERROR_NOT_INITIALIZED"
          : code == kNoImage      ? "CUDA_ERROR_INVALID_IMAGE"
                                  : "CUDA_ERROR";
  return kSuccess;
}
EXPORT int cuGetErrorString(int code, const char** text) { return (void)code, *text = "of the fake driver", kSuccess; }
EXPORT int cuDeviceGetCount(int* count) { return *count = 1, usable(); }
EXPORT int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, usable(); }
EXPORT int cuDeviceGetName(char* name, int size, int device) {
  (void)device;
  strncpy(name, "Fake H200", (size_t)size);
  return usable();
}
EXPORT int cuDeviceTotalMem_v2(size_t* bytes, int device) { return (void)device, *bytes = (size_t)141 << 30, usable(); }
EXPORT int cuDeviceGetAttribute(int* value, int attribute, int device) {
  static const int known[][2] = {{16, 132}, {75, 9}, {76, 0}, {38, 60 << 20}, {97, 232448}, {10, 32}, {82, 65536}};
  (void)device;
  for (size_t i = 0; i < sizeof known / sizeof *known; ++i)
    if (known[i][0] == attribute) return *value = known[i][1], usable();
  return kInvalid;
}
EXPORT int cuDevicePrimaryCtxRetain(void** made, int device) { return (void)device, *made = &context, usable(); }
EXPORT int cuDevicePrimaryCtxRelease_v2(int device) { return (void)device, usable(); }
EXPORT int cuCtxGetCurrent(void** now) { return *now = current, usable(); }
EXPORT int cuCtxPushCurrent_v2(void* now) { return current = now, usable(); }
EXPORT int cuCtxPopCurrent_v2(void** was) { return *was = current, current = NULL, usable(); }
EXPORT int cuCtxSynchronize(void) { return usable(); }
EXPORT int cuMemAlloc_v2(unsigned long long* memory, size_t bytes) {
  void* block = NULL;
  if (posix_memalign(&block, 256, bytes)) return 2;
  return *memory = (unsigned long long)(uintptr_t)block, usable();
}
EXPORT int cuMemFree_v2(unsigned long long memory) { return free((void*)(uintptr_t)memory), usable(); }
EXPORT int cuMemHostAlloc(void** memory, size_t bytes, unsigned flags) {
  (void)flags;
  return *memory = malloc(bytes), usable();
}
EXPORT int cuMemFreeHost(void* memory) { return free(memory), usable(); }
EXPORT int cuMemcpyHtoDAsync_v2(unsigned long long to, const void* from, size_t bytes, void* stream) {
  (void)stream;
  return memcpy((void*)(uintptr_t)to, from, bytes), usable();
}
EXPORT int cuMemcpyHtoD_v2(unsigned long long to, const void* from, size_t bytes) {
  return memcpy((void*)(uintptr_t)to, from, bytes), usable();
}
EXPORT int cuMemcpyDtoH_v2(void* to, unsigned long long from, size_t bytes) {
  return memcpy(to, (void*)(uintptr_t)from, bytes), usable();
}
EXPORT int cuMemcpyDtoD_v2(unsigned long long to, unsigned long long from, size_t bytes) {
  return memcpy((void*)(uintptr_t)to, (void*)(uintptr_t)from, bytes), usable();
}
EXPORT int cuMemsetD8_v2(unsigned long long to, unsigned char byte, size_t bytes) {
  return memset((void*)(uintptr_t)to, byte, bytes), usable();
}
EXPORT int cuPointerGetAttribute(void* value, int attribute, unsigned long long memory) {
  (void)memory;
  *(int*)value = attribute == 2 ? 2 : 0; /* device memory of ordinal 0, not managed */
  return usable();
}
EXPORT int cuModuleLoadData(void** module, const void* image) {
  if (memcmp(image, "\177ELF", 4) != 0) return kNoImage;
  return *module = &context, usable();
}
EXPORT int cuModuleUnload(void* module) { return (void)module, usable(); }
EXPORT int cuModuleGetFunction(void** function, void* module, const char* name) {
  return (void)module, (void)name, *function = &context, usable();
}
EXPORT int cuFuncSetAttribute(void* function, int attribute, int value) {
  return (void)function, (void)attribute, (void)value, usable();
}
EXPORT int cuLaunchKernelEx(const void* config, void* function, void** parameters, void** extra) {
  return (void)config, (void)function, (void)parameters, (void)extra, usable();
}
EXPORT int cuTensorMapEncodeTiled(void* map) { return memset(map, 0, 128), usable(); }
EXPORT int cuStreamCreate(void** stream, unsigned flags) { return (void)flags, *stream = &context, usable(); }
EXPORT int cuStreamDestroy_v2(void* stream) { return (void)stream, usable(); }
EXPORT int cuStreamSynchronize(void* stream) { return (void)stream, usable(); }
EXPORT int cuStreamWaitEvent(void* stream, void* event, unsigned flags) {
  return (void)stream, (void)event, (void)flags, usable();
}
EXPORT int cuEventCreate(void** event, unsigned flags) { return (void)flags, *event = &context, usable(); }
EXPORT int cuEventDestroy_v2(void* event) { return (void)event, usable(); }
EXPORT int cuEventRecord(void* event, void* stream) { return (void)event, (void)stream, usable(); }
EXPORT int cuEventSynchronize(void* event) { return (void)event, usable(); }

/* What measuring needs: this GPU has no clock. */
#define ABSENT(name) \
  EXPORT int name(void) { return kInvalid; }
ABSENT(cuStreamBeginCapture_v2)
ABSENT(cuStreamEndCapture)
ABSENT(cuGraphInstantiateWithFlags)
ABSENT(cuGraphLaunch)
ABSENT(cuGraphExecDestroy)
ABSENT(cuGraphDestroy)
ABSENT(cuEventElapsedTime)
