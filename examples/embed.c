/* The same through the C ABI: two rows of activations times a 4-bit GPTQ matrix on the CPU. */
#include <q4/q4.h>
#include <stdio.h>
#include <stdlib.h>

enum { kK = 256, kN = 64, kGroups = 2, kM = 2 };

static void check(q4_status status) {
  if (status == Q4_OK) return;
  fprintf(stderr, "%s: %s\n", q4_status_name(status), q4_last_error());
  exit(1);
}

int main(void) {
  static uint32_t qweight[kK / 8 * kN], qzeros[kGroups * kN / 8]; /* every stored zero is 0, which means 1 */
  static uint16_t scales[kGroups * kN];
  for (int i = 0; i < kK / 8 * kN; ++i) qweight[i] = 0x76543210; /* in each column the codes 0, 1, ... 7, 0, 1, ... */
  for (int i = 0; i < kGroups * kN; ++i) scales[i] = 0x3800;     /* fp16 0.5 */
  q4_tensors tensors = {.size = sizeof tensors};
  tensors.qweight = (q4_tensor){.data = qweight, .dtype = Q4_I32, .rows = kK / 8, .cols = kN};
  tensors.qzeros = (q4_tensor){.data = qzeros, .dtype = Q4_I32, .rows = kGroups, .cols = kN / 8};
  tensors.scales = (q4_tensor){.data = scales, .dtype = Q4_F16, .rows = kGroups, .cols = kN};

  q4_runtime* runtime;
  q4_device cpu;
  q4_matrix matrix;
  check(q4_runtime_create(NULL, &runtime));
  check(q4_device_parse("cpu", &cpu));
  check(q4_matrix_from_gptq(runtime, cpu, &tensors, &matrix));

  q4_plan plan;
  q4_plan_options options = {.size = sizeof options};
  options.max_m = kM;
  options.activation = Q4_F32;
  check(q4_plan_create(runtime, matrix, &options, &plan));

  /* 16-byte aligned, as x and out must be */
  float* x = malloc(sizeof(float[kM][kK]));
  float* out = malloc(sizeof(float[kM][kN]));
  if (!x || !out) return 1;
  for (int i = 0; i < kM * kK; ++i) x[i] = 1;
  check(q4_plan_run(runtime, plan, NULL, x, 0, out, 0, kM));

  char tactic[128];
  check(q4_plan_tactic(runtime, plan, kM, tactic, sizeof tactic, NULL));
  printf("q4 %s, %s: out[0][0] = %g\n", q4_version(), tactic, out[0]);
  const int ok = out[0] == 32 * 0.5f * (0 + 1 + 2 + 3 + 4 + 5 + 6 + 7 - 8 * 1);
  free(x);
  free(out);
  q4_runtime_destroy(runtime); /* and with it the plan and the matrix */
  return ok ? 0 : 1;
}
