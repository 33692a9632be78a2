// Stands in for libnvidia-ml.so.1: one GPU, as busy as $FAKE_NVML_BUSY says, used by the process $FAKE_NVML_PID.
#include <stdlib.h>
#include <string.h>

static int number(const char* name) {
  const char* text = getenv(name);
  return text ? atoi(text) : 0;
}

int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char* address, void** device) {
  static int gpu;
  *device = &gpu;
  return strcmp(address, "0000:1b:00.0") == 0 ? 0 : 6;  // NVML_ERROR_NOT_FOUND
}
int nvmlDeviceGetUtilizationRates(void* device, unsigned* rates) {
  (void)device;
  rates[0] = (unsigned)number("FAKE_NVML_BUSY"), rates[1] = 0;
  return 0;
}

struct process {
  unsigned pid;
  unsigned long long bytes;
  unsigned gpu_instance, compute_instance;
};
int nvmlDeviceGetComputeRunningProcesses_v3(void* device, unsigned* count, struct process* all) {
  (void)device;
  const struct process one = {(unsigned)number("FAKE_NVML_PID"), 1500000000ull, ~0u, ~0u};
  if (*count < 1) return 7;  // NVML_ERROR_INSUFFICIENT_SIZE
  all[0] = one, *count = 1;
  return 0;
}
