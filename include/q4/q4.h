/* The C ABI of q4: C99, no exceptions, no C++ types. The C++ headers say more about what each call does.
 *
 * Every call that can fail returns a q4_status; q4_last_error() then says which call, argument, value, limit and
 * remedy. Nothing is written to the results of a call that failed. All calls are thread-safe, except where stated
 * otherwise.
 *
 * Matrices, plans and checkpoints are numbers that one runtime gave out. A destroyed one, one of another runtime and
 * one of another kind are told apart from a live one: using it is Q4_INVALID_ARGUMENT, never a crash. 0 is never a live
 * one. A runtime is a pointer: it must be alive.
 *
 * Structures that may grow begin with their size: `q4_plan_options options = {.size = sizeof options}`. All other
 * fields mean their default when zero. */
#ifndef Q4_Q4_H
#define Q4_Q4_H

#include <q4/version.h> /* Q4_VERSION, Q4_VERSION_MAJOR, Q4_VERSION_MINOR, Q4_VERSION_PATCH */
#include <stddef.h>
#include <stdint.h>
#include <q4/export.hpp> /* Q4_API, nothing else */

#ifdef __cplusplus
extern "C" {
#endif

typedef int32_t q4_status;
enum {
  Q4_OK = 0,
  Q4_INVALID_ARGUMENT = 1, /* a value that the caller passed */
  Q4_UNSUPPORTED = 2,      /* valid in principle, not available here */
  Q4_OUT_OF_MEMORY = 3,    /* host or device memory */
  Q4_DEVICE_ERROR = 4,     /* the driver or a launch reported an error */
  Q4_COMPILE_ERROR = 5,    /* run-time compilation; the text carries the compiler's log */
  Q4_IO_ERROR = 6,         /* the file system refused */
  Q4_CORRUPT = 7,          /* a file's content contradicts itself or its format */
  Q4_NOT_FOUND = 8,        /* a name (tensor, file, device) that does not exist */
  Q4_INTERNAL = 9          /* a defect in q4 */
};

typedef int32_t q4_dtype;
enum { Q4_F16 = 0, Q4_BF16 = 1, Q4_F32 = 2, Q4_I32 = 3, Q4_I64 = 4, Q4_U8 = 5 };
typedef int32_t q4_backend;
enum { Q4_CPU = 0, Q4_CUDA = 1, Q4_HIP = 2 };
typedef int32_t q4_zeros; /* how stored zeros are read: detected, stored + 1, stored */
enum { Q4_ZEROS_AUTO = 0, Q4_ZEROS_V1 = 1, Q4_ZEROS_V2 = 2 };
typedef int32_t q4_math; /* products of the direct kernels; sums are always fp32 */
enum { Q4_MATH_AUTO = 0, Q4_MATH_HALF2 = 1, Q4_MATH_FP32 = 2, Q4_MATH_INT8 = 3 }; /* INT8: see q4::Math */
typedef int32_t
    q4_gather; /* act-order: x permuted inside the kernel or before it; GIVEN: it comes in the matrix's order */
enum { Q4_GATHER_AUTO = 0, Q4_GATHER_FUSED = 1, Q4_GATHER_SEPARATE = 2, Q4_GATHER_GIVEN = 3 };
typedef int32_t q4_cache_mode;
enum { Q4_CACHE_READ_WRITE = 0, Q4_CACHE_READ_ONLY = 1, Q4_CACHE_OFF = 2, Q4_CACHE_REQUIRE_PREBUILT = 3 };
typedef int32_t q4_cache_layer; /* where a kernel came from; none: nowhere, it failed */
enum {
  Q4_LAYER_NONE = 0,
  Q4_LAYER_MEMORY = 1,
  Q4_LAYER_USER_FOLDER = 2,
  Q4_LAYER_FOLDER = 3,
  Q4_LAYER_BESIDE_LIBRARY = 4,
  Q4_LAYER_PACK = 5,
  Q4_LAYER_COMPILER = 6
};
typedef int32_t q4_storage; /* of packed weights: own memory, or the tensors', where they fit (q4::Storage) */
enum { Q4_STORAGE_OWN = 0, Q4_STORAGE_REUSE = 1 };
typedef int32_t q4_activation; /* of the sums: epilogue.h */
typedef int32_t q4_sealing;    /* what a sealed runtime makes of compiling and allocating (q4::Sealing) */
enum { Q4_SEAL_OFF = 0, Q4_SEAL_WARN = 1, Q4_SEAL_ERROR = 2 };
typedef int32_t q4_log_level;
enum { Q4_LOG_ERROR = 0, Q4_LOG_WARNING = 1, Q4_LOG_INFO = 2, Q4_LOG_DEBUG = 3 };

typedef struct q4_runtime q4_runtime;
typedef uint64_t q4_matrix;
typedef uint64_t q4_plan;
typedef uint64_t q4_checkpoint;

typedef struct q4_device {
  q4_backend backend;
  int32_t ordinal;
} q4_device;

/* ---- library ------------------------------------------------------------------------- */

/* "0.2.0": of the library that runs; Q4_VERSION is that of this header. */
Q4_API const char* q4_version(void);
/* Stable lower-case name: "ok", "invalid_argument", ...; "unknown" for any other number. */
Q4_API const char* q4_status_name(q4_status status);
/* Text of the last failure of this thread, "" before the first. Valid until the thread's next failing call. */
Q4_API const char* q4_last_error(void);

/* ---- runtime ------------------------------------------------------------------------- */

/* One kernel that was looked for beyond memory; see q4::CacheEvent. Never null, valid during the call. */
typedef struct q4_cache_event {
  size_t size; /* sizeof(q4_cache_event), as the library knows it */
  q4_cache_layer layer;
  const char *key, *kernel, *target; /* 64 hex digits; the kernel and its configuration; "sm_90a" */
  const char *from, *missed, *error; /* the layer by name; the layers before it and why not; why it failed */
  double lookup_ms, compile_ms, load_ms;
} q4_cache_event;

typedef struct q4_runtime_options {
  size_t size;           /* sizeof(q4_runtime_options) */
  const char* cache_dir; /* folder of compiled kernels; null: $Q4_CACHE_DIR, else the user's cache folder */
  q4_cache_mode cache_mode;
  int32_t cpu_threads;             /* 0: what the affinity mask and the cgroup allow */
  const char* const* tuning_files; /* later ones win; none: $Q4_TUNING, else the default file where it exists */
  size_t tuning_file_count;
  void (*log)(void* user, q4_log_level level, const char* text); /* from any thread; null: warnings to stderr */
  void* log_user;
  /* Instead of the CPU backend's own threads: calls task(state, i) once for each i in [0, tasks), from any threads,
   * together or in turn, and returns when all have returned; at most cpu_threads tasks, perhaps from several threads at
   * once. Null: own threads. */
  void (*parallel_for)(void* user, int32_t tasks, void (*task)(void* state, int32_t index), void* state);
  void* parallel_for_user;
  const char* cpu_isa;              /* "avx2", "neon", ...; null: $Q4_CPU_ISA, else the best that runs */
  const char* const* cache_folders; /* only read, after cache_dir and before $Q4_CACHE_PATH */
  size_t cache_folder_count;
  const char* const* packs; /* .q4pack files, searched after all folders */
  size_t pack_count;
  const char* pack_public_key; /* 64 hex digits: packs must be signed by it; null: $Q4_PACK_PUBLIC_KEY */
  uint64_t cache_max_bytes;    /* of cache_dir; 0: 1 GiB, UINT64_MAX: unbounded */
  const char* dump_dir;        /* receives sources, code, logs of kernels; null: $Q4_DUMP_DIR */
  void (*cache_event)(void* user, const q4_cache_event* event); /* from any thread, while the library holds no lock */
  void* cache_event_user;
  const char* record_untuned; /* file that untuned problems are appended to; null: $Q4_RECORD_UNTUNED, else none */
  /* Where device memory comes from; both or neither. allocate() returns memory aligned to `alignment`, or null where
   * there is none; neither may throw (q4::Allocator). */
  void* (*allocate)(void* user, size_t bytes, size_t alignment, q4_device device, void* stream);
  void (*release)(void* user, void* memory, size_t bytes, q4_device device, void* stream);
  void* allocator_user;
} q4_runtime_options;

/* `options` may be null. Strings and lists are copied. Opens no driver. */
Q4_API q4_status q4_runtime_create(const q4_runtime_options* options, q4_runtime** runtime);
/* Also destroys what is left of its matrices, plans and checkpoints. Null does nothing. No other thread may be using
 * it, and GPU work of its plans must have ended. */
Q4_API void q4_runtime_destroy(q4_runtime* runtime);

typedef struct q4_device_info {
  size_t size; /* sizeof(q4_device_info), set by the caller */
  q4_device device;
  int32_t compute_units; /* SMs, CUs or usable CPU threads */
  uint64_t memory_bytes, l2_bytes;
  char name[128], arch[64], driver[64]; /* cut to fit, always terminated */
} q4_device_info;

/* Usable devices, best first: a missing driver is an absent device, not an error. */
Q4_API q4_status q4_device_count(q4_runtime* runtime, size_t* count);
Q4_API q4_status q4_device_get(q4_runtime* runtime, size_t index, q4_device_info* info);
Q4_API q4_status q4_best_device(q4_runtime* runtime, q4_device* device);
/* "cpu", "cuda:0", "hip:1". */
Q4_API q4_status q4_device_parse(const char* text, q4_device* device);
/* Why a backend has no device, or "" where it has one. Text results: at most `size` bytes with the terminator are
 * written to `text` (null with size 0 to ask), and `length`, unless null, receives the full length without it. */
Q4_API q4_status q4_backend_reason(q4_runtime* runtime, q4_backend backend, char* text, size_t size, size_t* length);

typedef struct q4_cache_counts {
  size_t size;                                                /* sizeof(q4_cache_counts), set by the caller */
  uint64_t memory, user_folder, folder, beside_library, pack; /* hits */
  uint64_t compiled, failed, problems;                        /* problems: folders, packs, entries of no use */
  double lookup_ms, compile_ms, load_ms;
} q4_cache_counts;

/* Since the runtime was created. */
Q4_API q4_status q4_cache_counters(q4_runtime* runtime, q4_cache_counts* counts);

typedef struct q4_memory_use {
  size_t size;                       /* sizeof(q4_memory_use), set by the caller */
  uint64_t weights, workspace, code; /* bytes */
  uint64_t allocations;              /* pieces that weights and workspace consist of */
} q4_memory_use;

/* What is held on a device; zeros for one that was not used. */
Q4_API q4_status q4_memory_get(q4_runtime* runtime, q4_device device, q4_memory_use* use);
/* Frees the memory that loads keep for the next load. */
Q4_API q4_status q4_runtime_trim(q4_runtime* runtime);
/* After warm-up: compiling and taking device memory is reported or refused from now on; see q4::Runtime::seal. */
Q4_API q4_status q4_runtime_seal(q4_runtime* runtime, q4_sealing mode);

/* ---- matrices ------------------------------------------------------------------------ */

/* A borrowed row-major tensor. Strides in elements; row_stride 0: contiguous. `device` zero: host memory. */
typedef struct q4_tensor {
  const void* data;
  q4_dtype dtype;
  int64_t rows, cols, row_stride; /* rows: 1 for a vector */
  q4_device device;
} q4_tensor;

/* GPTQ (qweight int32 [k/8, n]) or AWQ "gemm" (qweight int32 [k, n/8]) tensors; see q4::GptqTensors, q4::AwqTensors. */
typedef struct q4_tensors {
  size_t size; /* sizeof(q4_tensors) */
  q4_tensor qweight, qzeros, scales;
  const q4_tensor* g_idx; /* null or empty: no act-order. Not for AWQ */
  const q4_tensor* bias;  /* null: none */
  int64_t group_size;     /* -1: one group; 0: ceil(k / groups) */
  q4_zeros zeros;         /* AWQ: Q4_ZEROS_AUTO */
  int32_t reserved;       /* 0 */
  uint64_t scratch_bytes; /* for packing in place; 0: 64 MiB */
  q4_storage storage;
  int32_t gate_up; /* not 0: columns are gates, then ups; see q4::MatrixOptions::gate_up. Not for updates */
} q4_tensors;

/* Copied and repacked before the call returns: the tensors stay untouched and may be freed, except those that are
 * packed in place (Q4_STORAGE_REUSE; q4_matrix_info.in_place and scales_in_place say which). */
Q4_API q4_status q4_matrix_from_gptq(q4_runtime* runtime, q4_device device, const q4_tensors* tensors,
                                     q4_matrix* matrix);
Q4_API q4_status q4_matrix_from_awq(q4_runtime* runtime, q4_device device, const q4_tensors* tensors,
                                    q4_matrix* matrix);

typedef int32_t q4_along; /* what a slice divides */
enum { Q4_WHOLE = 0, Q4_COLUMNS = 1, Q4_ROWS = 2 };

/* What rank `rank` of `world` holds of a matrix; see q4::Slice. */
typedef struct q4_slice {
  size_t size; /* sizeof(q4_slice) */
  q4_along along;
  int32_t rank, world; /* world 0: 1 */
  int32_t share, pad;  /* not 0: columns are shared by ranks where there are too few; zeros where units do not divide */
  int32_t reserved;    /* 0 */
  int64_t unit;        /* columns or rows that stay together; 0: 8 */
  const int64_t* parts; /* columns of each matrix that was fused into this one; null: one */
  size_t part_count;
} q4_slice;

/* The same in slices, and `count` matrices of one input (q, k, v) side by side as one; `slice` may be null. All are of
 * one format: GPTQ or, with `awq` not 0, AWQ. Q4_UNSUPPORTED where their groups or g_idx differ. The codes go to own
 * memory. */
Q4_API q4_status q4_matrix_fuse(q4_runtime* runtime, q4_device device, const q4_tensors* const* tensors, size_t count,
                                int32_t awq, const q4_slice* slice, q4_matrix* matrix);

/* A .safetensors file or a folder with a checkpoint. Matrices are listed by name, layers in numeric order. */
Q4_API q4_status q4_checkpoint_open(q4_runtime* runtime, const char* path, q4_checkpoint* checkpoint);
Q4_API q4_status q4_checkpoint_count(q4_runtime* runtime, q4_checkpoint checkpoint, size_t* count);
Q4_API q4_status q4_checkpoint_name(q4_runtime* runtime, q4_checkpoint checkpoint, size_t index, char* text,
                                    size_t size, size_t* length);

typedef struct q4_checkpoint_info {
  size_t size;                 /* sizeof(q4_checkpoint_info), set by the caller */
  int32_t awq;                 /* 1: AWQ "gemm", 0: GPTQ */
  int64_t group_size;          /* claimed, -1: one group; matrices may differ */
  int32_t desc_act, symmetric; /* claimed: whether a matrix has act-order, its g_idx says; its zeros count */
  q4_zeros zeros;              /* Q4_ZEROS_V2 for gptq_v2 and AWQ, else detected when a matrix is loaded */
  uint64_t matrices;           /* as q4_checkpoint_count() */
} q4_checkpoint_info;

/* What the checkpoint says of its quantization; see q4::QuantConfig. */
Q4_API q4_status q4_checkpoint_get(q4_runtime* runtime, q4_checkpoint checkpoint, q4_checkpoint_info* info);

typedef struct q4_checkpoint_matrix {
  size_t size; /* sizeof(q4_checkpoint_matrix), set by the caller */
  int64_t k, n, groups, group_size;
  int32_t has_g_idx, has_bias; /* a g_idx may be trivial: then there is no act-order */
  int32_t awq;                 /* as in q4_checkpoint_info */
  int32_t supported;           /* 0: it cannot be loaded, and the numbers are what is known of it */
  char name[256];              /* cut to fit, always terminated; q4_checkpoint_name() gives all of it */
} q4_checkpoint_matrix;

/* What one matrix is, before anything is loaded; `index` as for q4_checkpoint_name(). See q4::MatrixEntry. */
Q4_API q4_status q4_checkpoint_entry(q4_runtime* runtime, q4_checkpoint checkpoint, size_t index,
                                     q4_checkpoint_matrix* entry);
/* Why it cannot be loaded, as text; "" if it can. */
Q4_API q4_status q4_checkpoint_reason(q4_runtime* runtime, q4_checkpoint checkpoint, size_t index, char* text,
                                      size_t size, size_t* length);
Q4_API q4_status q4_checkpoint_destroy(q4_runtime* runtime, q4_checkpoint checkpoint);
/* Q4_ZEROS_AUTO: what the checkpoint says, checked against its content. */
Q4_API q4_status q4_matrix_from_checkpoint(q4_runtime* runtime, q4_device device, q4_checkpoint checkpoint,
                                           const char* name, q4_zeros zeros, q4_matrix* matrix);

/* A slice of `count` matrices of one input as one matrix, reading its bytes only; `slice` may be null. Q4_UNSUPPORTED
 * where their groups, g_idx or packings differ. See q4::Checkpoint::load. */
Q4_API q4_status q4_matrix_from_checkpoint_slice(q4_runtime* runtime, q4_device device, q4_checkpoint checkpoint,
                                                 const char* const* names, size_t count, q4_zeros zeros,
                                                 const q4_slice* slice, q4_matrix* matrix);

typedef struct q4_matrix_info {
  size_t size; /* sizeof(q4_matrix_info), set by the caller */
  int64_t k, n, group_size, groups;
  int32_t act_order, has_bias, zeros_detected; /* 0 or 1 */
  q4_zeros zeros;                              /* what was applied */
  q4_device device;
  uint64_t bytes;          /* device memory held */
  int32_t in_place;        /* 1: the codes are in qweight's memory */
  int32_t scales_in_place; /* 1: scales and zeros are in the memory of scales and qzeros */
  int32_t gate_up;         /* 1: loaded with q4_tensors.gate_up */
  int32_t reserved;        /* 0 */
} q4_matrix_info;

Q4_API q4_status q4_matrix_get(q4_runtime* runtime, q4_matrix matrix, q4_matrix_info* info);
/* Other weights in the same memory; see q4::QuantizedMatrix::update. `stream` is the native stream. */
Q4_API q4_status q4_matrix_update(q4_runtime* runtime, q4_matrix matrix, const q4_tensors* tensors, void* stream);
/* What the matrix was made of, bit for bit, into host memory of the caller's. Each may be null: not wanted. */
typedef struct q4_unpacked {
  size_t size;       /* sizeof(q4_unpacked) */
  uint32_t* qweight; /* k * n / 8 words, in the format that was given */
  uint32_t* qzeros;  /* groups * n / 8 words */
  uint16_t* scales;  /* groups * n, fp16 */
  int32_t* g_idx;    /* k; row / group_size where none was given. Not for AWQ */
  float* bias;       /* n; not for a matrix without one */
} q4_unpacked;
Q4_API q4_status q4_matrix_unpack(q4_runtime* runtime, q4_matrix matrix, const q4_unpacked* to);
/* order[k]: column c of x in the matrix's own order is column order[c] of x, for q4_column_remap() and plans with
 * Q4_GATHER_GIVEN; see q4::x_order. */
Q4_API q4_status q4_matrix_x_order(q4_runtime* runtime, q4_matrix matrix, int32_t* order);
/* in_place: gives the tensors their content back; the matrix can then only be destroyed. */
Q4_API q4_status q4_matrix_restore(q4_runtime* runtime, q4_matrix matrix);
/* Plans made from it keep the weights alive. */
Q4_API q4_status q4_matrix_destroy(q4_runtime* runtime, q4_matrix matrix);

/* ---- plans --------------------------------------------------------------------------- */

typedef struct q4_plan_options {
  size_t size;         /* sizeof(q4_plan_options) */
  int64_t max_m;       /* largest m that q4_plan_run() will accept; 0: 1 */
  q4_dtype activation; /* of x and out: Q4_F16, Q4_BF16, and on the CPU Q4_F32 */
  q4_math math;
  q4_gather gather;
  int64_t reconstruct_from; /* first m that goes through reconstruct + BLAS; 0: chosen, -1: never, as in C++ */
  int32_t batch_invariant;  /* not 0: a row's bits do not depend on m or on its place */
  int32_t overlap_previous; /* not 0: programmatic dependent launch, where the GPU has it */
  const char* tactic;       /* null: chosen; else used for every m */
  int32_t caller_workspace; /* not 0: the plan allocates none, and runs with a workspace of the caller's alone */
  int32_t reserved;         /* 0 */
  q4_activation epilogue;   /* out = residual + epilogue(x @ W + bias), rounded once; see q4::Epilogue */
  int32_t residual;         /* not 0: q4_plan_run_inputs() is given rows to add */
  int64_t lora_rank;        /* not 0: it is given adapters, of tables with at most this max_rank */
  int32_t norm;             /* not 0: x is RMS-normalized first; see q4::PlanOptions::norm */
  float norm_epsilon;       /* with norm; 0: 1e-5, below 0: none */
  int32_t spare_units;      /* multiprocessors of a GPU that are left to others; see q4::PlanOptions::spare_units */
} q4_plan_options;

/* `options` may be null. Compiles, loads and allocates: what q4_plan_run() must not do. */
Q4_API q4_status q4_plan_create(q4_runtime* runtime, q4_matrix matrix, const q4_plan_options* options, q4_plan* plan);

/* out[m, n] = x[m, k] @ W (+ bias), asynchronous on a GPU; n / 2 columns with a ..._MUL epilogue. `stream` is the native stream (CUstream, hipStream_t), null
 * the default one; the CPU ignores it. x and out are device memory of the plan's dtype that does not overlap; strides
 * are in elements, 0: contiguous. A GPU needs 16-byte alignment and strides that are multiples of 8. Takes no lock and
 * allocates nothing: it can be captured in a CUDA graph. A plan serves one stream at a time; streams that run at once
 * each use a plan or a workspace of their own. Destroying a plan while another thread is inside q4_plan_run() with it
 * is the caller's data race. */
Q4_API q4_status q4_plan_run(q4_runtime* runtime, q4_plan plan, void* stream, const void* x, int64_t x_stride,
                             void* out, int64_t out_stride, int64_t m);
/* The same in q4_plan_workspace_bytes() of the caller's: 256-byte aligned, zeroed once before its first use. */
Q4_API q4_status q4_plan_run_workspace(q4_runtime* runtime, q4_plan plan, void* stream, const void* x, int64_t x_stride,
                                       void* out, int64_t out_stride, int64_t m, void* workspace);
Q4_API q4_status q4_plan_workspace_bytes(q4_runtime* runtime, q4_plan plan, size_t* bytes);
/* What runs for this m, as text. */
Q4_API q4_status q4_plan_tactic(q4_runtime* runtime, q4_plan plan, int64_t m, char* text, size_t size, size_t* length);
Q4_API q4_status q4_plan_destroy(q4_runtime* runtime, q4_plan plan);

/* x_new[r, c] = x[r, x_map[c]], 16-bit elements; x [rows, x_cols], x_new [rows, cols], x_map int32 [cols]. */
Q4_API q4_status q4_column_remap(q4_runtime* runtime, q4_device device, void* stream, const void* x, int64_t x_stride,
                                 int64_t x_cols, void* x_new, int64_t x_new_stride, const int32_t* x_map, int64_t cols,
                                 int64_t rows);

/* ---- warm-up ------------------------------------------------------------------------- */

typedef struct q4_warmup_shape {
  int64_t k, n, group_size;         /* group_size -1: one group, 0: 128 */
  int32_t act_order, has_bias, awq; /* 0 or 1 */
  int32_t in_place;                 /* 1: loaded with Q4_STORAGE_REUSE from tensors on the device */
} q4_warmup_shape;

typedef struct q4_warmup_options {
  size_t size;       /* sizeof(q4_warmup_options) */
  int32_t threads;   /* kernels at a time; 0: as many as the mask and the cgroup allow */
  double deadline_s; /* after which no further kernel is begun; 0: none */
  /* After each kernel, on the calling thread. */
  void (*progress)(void* user, size_t done, size_t total, const q4_cache_event* kernel);
  int32_t (*cancel)(void* user); /* asked on the calling thread; not 0: no further kernel is begun */
  void* user;
} q4_warmup_options;

typedef struct q4_warmup_report {
  size_t size; /* sizeof(q4_warmup_report), set by the caller */
  size_t kernels, compiled, failed, skipped;
  int32_t complete, cancelled, past_deadline; /* 0 or 1 */
  double ms;                                  /* of the whole call, without opening the device */
} q4_warmup_report;

/* Finds or compiles, and loads, every kernel that plans of these shapes with these options need; see
 * q4::Runtime::warmup. Kernels that fail are counted and shown to `progress`; the call fails for arguments and for want
 * of the device. `plan`, `options` and `report` may be null. */
Q4_API q4_status q4_warmup_shapes(q4_runtime* runtime, q4_device device, const q4_warmup_shape* shapes, size_t count,
                                  const q4_plan_options* plan, const q4_warmup_options* options,
                                  q4_warmup_report* report);
/* 16 hex digits of what decides the bits of results on a device; ranks compare them. See q4::Runtime::numerics_id. */
Q4_API q4_status q4_numerics_id(q4_runtime* runtime, q4_device device, const q4_warmup_shape* shapes, size_t count,
                                const q4_plan_options* plan, char* text, size_t size, size_t* length);
/* For every quantized matrix of a checkpoint. */
Q4_API q4_status q4_warmup_checkpoint(q4_runtime* runtime, q4_device device, q4_checkpoint checkpoint,
                                      const q4_plan_options* plan, const q4_warmup_options* options,
                                      q4_warmup_report* report);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* Q4_Q4_H */
