/* The C ABI of mixtures of experts; q4.h says what holds for every call, and q4/moe.hpp what each one computes. */
#pragma once

#include <q4/q4.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef uint64_t q4_experts;
typedef uint64_t q4_moe_plan;
typedef uint64_t q4_grouped_plan;

typedef int32_t q4_moe_activation; /* see q4::MoeActivation */
enum { Q4_MOE_NONE = 0, Q4_MOE_SILU_MUL = 1, Q4_MOE_GELU_MUL = 2, Q4_MOE_GELU_TANH_MUL = 3, Q4_MOE_SWIGLU_CLAMP = 4 };

typedef struct q4_experts_options {
  size_t size;      /* sizeof(q4_experts_options) */
  int32_t gate_up;  /* not 0: columns are gate (n / 2), then up, for a plan that multiplies them */
  int32_t reserved; /* 0 */
} q4_experts_options;

/* `count` matrices of one shape as one allocation; `options` may be null. `tensors[i]` as for q4_matrix_from_gptq()
 * and q4_matrix_from_awq(), with own storage. Copied before the call returns. */
Q4_API q4_status q4_experts_from_gptq(q4_runtime* runtime, q4_device device, const q4_tensors* const* tensors,
                                      size_t count, const q4_experts_options* options, q4_experts* experts);
Q4_API q4_status q4_experts_from_awq(q4_runtime* runtime, q4_device device, const q4_tensors* const* tensors,
                                     size_t count, const q4_experts_options* options, q4_experts* experts);
/* From GPTQ tensors [count, ...], the first two dimensions as rows; g_idx [count, k], bias [count, n]. */
Q4_API q4_status q4_experts_from_stacked(q4_runtime* runtime, q4_device device, int64_t count,
                                         const q4_tensors* tensors, const q4_experts_options* options,
                                         q4_experts* experts);
/* The matrices of a checkpoint whose names are the patterns with "{}" replaced by first, first + 1, ...: one pattern,
 * or two for gate and up, which are joined (gate_up). count -1: every one that follows. */
Q4_API q4_status q4_experts_from_checkpoint(q4_runtime* runtime, q4_device device, q4_checkpoint checkpoint,
                                            const char* const* patterns, size_t pattern_count, int64_t first,
                                            int64_t count, const q4_experts_options* options, q4_experts* experts);

typedef struct q4_experts_info {
  size_t size; /* sizeof(q4_experts_info), set by the caller */
  int64_t experts, k, n, group_size, groups;
  int32_t act_order, has_bias, gate_up, awq; /* 0 or 1; act_order: of one at least */
  q4_device device;
  uint64_t bytes; /* device memory held */
} q4_experts_info;

Q4_API q4_status q4_experts_get(q4_runtime* runtime, q4_experts experts, q4_experts_info* info);
/* Other weights for one expert in the same memory, as q4_matrix_update(). */
Q4_API q4_status q4_experts_update(q4_runtime* runtime, q4_experts experts, int64_t expert, const q4_tensors* tensors,
                                   void* stream);
/* The tensors of one expert again, as q4_matrix_unpack(). */
Q4_API q4_status q4_experts_unpack(q4_runtime* runtime, q4_experts experts, int64_t expert, const q4_unpacked* to);
/* Plans made from them keep the weights alive. */
Q4_API q4_status q4_experts_destroy(q4_runtime* runtime, q4_experts experts);

/* Of both kinds of plans. */
typedef struct q4_moe_options {
  size_t size;      /* sizeof(q4_moe_options) */
  int64_t max_rows; /* largest number of tokens (MoE) or rows (grouped) that run accepts; 0: 1 */
  int64_t topk;     /* slots of a token; 0: 1. Grouped: 0 */
  q4_dtype dtype;   /* of x and out: Q4_F16, Q4_BF16, and on the CPU Q4_F32 */
  q4_moe_activation activation;
  float alpha, limit;        /* of Q4_MOE_SWIGLU_CLAMP; both 0: 1.702 and 7 */
  const int32_t* expert_map; /* [expert_map_count] place of each of the model's experts, or -1. Grouped: null */
  size_t expert_map_count;   /* 0: ids are places */
  int32_t batch_invariant;   /* not 0: a row's bits do not depend on other rows */
  int32_t overlap_previous;  /* not 0: programmatic dependent launch, where the GPU has it */
  const char* tactic;        /* null: chosen */
  int32_t caller_workspace;  /* not 0: the plan allocates none, and run needs one */
  int32_t reserved;          /* 0 */
} q4_moe_options;

/* The plan of a layer: w13 [K, 2 I] gate then up (or [K, I] with Q4_MOE_NONE), w2 [I, n]. */
Q4_API q4_status q4_moe_plan_create(q4_runtime* runtime, q4_experts w13, q4_experts w2, const q4_moe_options* options,
                                    q4_moe_plan* plan);
/* out[tokens, n] of x[tokens, K], topk_ids int32 and topk_weights fp32 [tokens, topk], contiguous, all in the memory of
 * the plan's device; strides of x and out in elements, 0: contiguous. Ids that name no expert add nothing. `workspace`
 * null: the plan's own. Launches and does nothing else, as q4_plan_run(). */
Q4_API q4_status q4_moe_plan_run(q4_runtime* runtime, q4_moe_plan plan, void* stream, const void* x, int64_t x_stride,
                                 const int32_t* topk_ids, const float* topk_weights, void* out, int64_t out_stride,
                                 int64_t tokens, void* workspace);
Q4_API q4_status q4_moe_plan_workspace_bytes(q4_runtime* runtime, q4_moe_plan plan, size_t* bytes);
Q4_API q4_status q4_moe_plan_tactic(q4_runtime* runtime, q4_moe_plan plan, int64_t tokens, char* text, size_t size,
                                    size_t* length);
Q4_API q4_status q4_moe_plan_destroy(q4_runtime* runtime, q4_moe_plan plan);

/* The plan of one grouped product: out has n columns, n / 2 with an activation. */
Q4_API q4_status q4_grouped_plan_create(q4_runtime* runtime, q4_experts experts, const q4_moe_options* options,
                                        q4_grouped_plan* plan);
/* Row r by the expert expert_ids[r]; or, where offsets is given instead, by the e with offsets[e] <= r < offsets[e + 1],
 * int32 [experts + 1]. One of the two is null. Rows of no expert get zeros. */
Q4_API q4_status q4_grouped_plan_run(q4_runtime* runtime, q4_grouped_plan plan, void* stream, const void* x,
                                     int64_t x_stride, const int32_t* expert_ids, const int32_t* offsets, void* out,
                                     int64_t out_stride, int64_t rows, void* workspace);
Q4_API q4_status q4_grouped_plan_workspace_bytes(q4_runtime* runtime, q4_grouped_plan plan, size_t* bytes);
Q4_API q4_status q4_grouped_plan_destroy(q4_runtime* runtime, q4_grouped_plan plan);

/* ---- warm-up ------------------------------------------------------------------------- */

typedef struct q4_warmup_layer {
  int64_t experts, k, width;        /* w13 is k x 2 width (k x width with Q4_MOE_NONE) */
  int64_t n;                        /* w2 is width x n; 0: k */
  int64_t group_size;               /* -1: one group, 0: 128 */
  int32_t act_order, has_bias, awq; /* 0 or 1 */
  int32_t reserved;                 /* 0 */
} q4_warmup_layer;

/* As q4_warmup_shapes(), for layers of experts and plans over them with these options. */
Q4_API q4_status q4_warmup_experts(q4_runtime* runtime, q4_device device, const q4_warmup_layer* layers, size_t count,
                                   const q4_moe_options* plan, const q4_warmup_options* options,
                                   q4_warmup_report* report);

#ifdef __cplusplus
} /* extern "C" */
#endif
