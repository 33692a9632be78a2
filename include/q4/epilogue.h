/* The C ABI of what follows a product before it is rounded: activations, residuals and LoRA adapters. q4.h says what
 * holds for every call, and has the options of plans; q4/matmul.hpp and q4/lora.hpp say what is computed. */
#pragma once

#include <q4/q4.h>

#ifdef __cplusplus
extern "C" {
#endif

/* q4_plan_options.epilogue; ..._MUL: of gates, times their ups, of a matrix with q4_tensors.gate_up */
enum {
  Q4_ACTIVATION_NONE = 0,
  Q4_SILU = 1,
  Q4_GELU_TANH = 2,
  Q4_GELU = 3,
  Q4_RELU2 = 4,
  Q4_SILU_MUL = 5,
  Q4_GELU_TANH_MUL = 6,
  Q4_GELU_MUL = 7,
  Q4_RELU2_MUL = 8
};

typedef uint64_t q4_lora; /* a table of adapters */

typedef struct q4_run_inputs {
  size_t size;          /* sizeof(q4_run_inputs) */
  const void* residual; /* rows like out's, or out itself; for plans with one, and no other */
  int64_t residual_stride;
  void* workspace;               /* null: the plan's own */
  q4_lora adapters;              /* for plans with lora_rank, and no other */
  const int32_t* adapter_of_row; /* [m] in the plan's device memory; outside the table: none */
  const void* norm_weight;       /* [k] in the plan's type and device memory; for plans with norm, and no other */
} q4_run_inputs;

/* The same with what the plan's epilogue reads; see q4::RunInputs. `inputs` may be null. */
Q4_API q4_status q4_plan_run_inputs(q4_runtime* runtime, q4_plan plan, void* stream, const void* x, int64_t x_stride,
                                    void* out, int64_t out_stride, int64_t m, const q4_run_inputs* inputs);

typedef struct q4_lora_options {
  size_t size;      /* sizeof(q4_lora_options) */
  int64_t adapters; /* places of the table; 0: 8 */
  int64_t max_rank; /* of an adapter; 0: 64 */
  q4_dtype type;    /* as q4_plan_options.activation */
} q4_lora_options;

/* A table of adapters of one matrix, on its device; see q4::LoraAdapters. `options` may be null. */
Q4_API q4_status q4_lora_create(q4_runtime* runtime, q4_matrix matrix, const q4_lora_options* options, q4_lora* lora);
/* Adds or replaces an adapter: a [rank, k], b [n, rank], in fp16, bf16 or fp32, read during the call. */
Q4_API q4_status q4_lora_set(q4_runtime* runtime, q4_lora lora, int64_t index, const q4_tensor* a, const q4_tensor* b,
                             float scale);
Q4_API q4_status q4_lora_remove(q4_runtime* runtime, q4_lora lora, int64_t index);
/* Work that runs with it must have ended. */
Q4_API q4_status q4_lora_destroy(q4_runtime* runtime, q4_lora lora);

#ifdef __cplusplus
} /* extern "C" */
#endif
