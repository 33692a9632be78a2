// Embeddings, RoPE and the output layer of one Llama as CUDA kernels, compiled together with attention.cpp's.
#include "kernels.hpp"

#include <cstdio>

namespace generate {
namespace {

// Activations are fp16, as in transformers also what is added up from layer to layer (x), and all sums are fp32. Every
// kernel lets the next one of the stream start early (allow_next), so that q4's kernels ask for their weights while this
// one still computes, and itself waits for the one before (wait_previous) before it touches what others write.
const char* const kKernels = R"cuda(
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
constexpr int kGroup = HEADS / KV_HEADS;         // heads of queries that share one of keys and values
constexpr int kPart = HEAD_DIM / 16;             // elements of a head in each of 16 lanes
constexpr int kWidth = (HEADS + 2 * KV_HEADS) * HEAD_DIM;  // of a row of q, k and v
static_assert(HEAD_DIM % 32 == 0 && HIDDEN % 8 == 0 && INTERMEDIATE % 8 == 0 && HEADS / KV_HEADS <= 8, "");

struct State { int position; int blocks; u64 best; };  // of the text; of the output layer in this step

__device__ float to_float(u16 h) { float f; asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h)); return f; }
__device__ u16 to_half(float f) { u16 h; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f)); return h; }
__device__ void allow_next() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ void wait_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ float warp_sum(float v) {
  for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(~0u, v, d);
  return v;
}
__device__ void unpack(uint4 v, float* out) {
  const u32 words[4] = {v.x, v.y, v.z, v.w};
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = to_float((u16)words[i]);
    out[2 * i + 1] = to_float((u16)(words[i] >> 16));
  }
}

// A block a row: x = the embedding of its token.
extern "C" __global__ void __launch_bounds__(256) embed(const u16* embedding, const int* tokens, const State* state, u16* x) {
  allow_next();
  wait_previous();
  const uint4* const from = (const uint4*)(embedding + (long long)tokens[state->position + blockIdx.x] * HIDDEN);
  for (int i = threadIdx.x; i < HIDDEN / 8; i += 256) ((uint4*)(x + (long long)blockIdx.x * HIDDEN))[i] = from[i];
}

// A lane's elements of a head, and numbers for them: loaded at once.
struct alignas(kPart % 8 == 0 ? 16 : kPart % 4 == 0 ? 8 : 4) Part { u16 h[kPart]; };
struct alignas(kPart % 4 == 0 ? 16 : 8) Floats { float f[kPart]; };
__device__ void load_part(const u16* head, int lane, float* out) {
  const Part part = ((const Part*)head)[lane];
  for (int e = 0; e < kPart; ++e) out[e] = to_float(part.h[e]);
}
__device__ void store_part(u16* head, int lane, const float* v) {
  Part part;
  for (int e = 0; e < kPart; ++e) part.h[e] = to_half(v[e]);
  ((Part*)head)[lane] = part;
}

// The angles of a position for this lane's elements, from [2][HEAD_DIM / 2] cos and sin.
struct Angles {
  Floats cos, sin;
  __device__ Angles(const float* rope, int position) {
    const Floats* const table = (const Floats*)(rope + (long long)position * HEAD_DIM);
    cos = table[threadIdx.x % 8];
    sin = table[8 + threadIdx.x % 8];
  }
  // This lane's elements of a head, each rotated with the one half a head away.
  __device__ void rotate(const u16* head, float* out) const {
    const int lane = threadIdx.x % 16;
    float other[kPart];
    load_part(head, lane, out);
    load_part(head, lane ^ 8, other);
    for (int e = 0; e < kPart; ++e) out[e] = out[e] * cos.f[e] + (lane < 8 ? -other[e] : other[e]) * sin.f[e];
  }
};

// Where a head's key or value of a position is: [2][KV_HEADS][capacity][HEAD_DIM].
__device__ u16* cached(u16* cache, int what, int kv, int position, int capacity) {
  return cache + (((long long)what * KV_HEADS + kv) * capacity + position) * HEAD_DIM;
}

// The keys, rotated, and values of new tokens into the cache: 16 lanes for each row (x) and head (y).
extern "C" __global__ void __launch_bounds__(16) store(const u16* qkv, u16* cache, const float* rope, const State* state, int capacity) {
  allow_next();
  wait_previous();
  const int position = state->position + blockIdx.x, kv = blockIdx.y;
  const u16* const head = qkv + (long long)blockIdx.x * kWidth + (HEADS + kv) * HEAD_DIM;
  float v[kPart];
  Angles(rope, position).rotate(head, v);
  store_part(cached(cache, 0, kv, position, capacity), threadIdx.x, v);
  load_part(head + KV_HEADS * HEAD_DIM, threadIdx.x, v);
  store_part(cached(cache, 1, kv, position, capacity), threadIdx.x, v);
}

)cuda";

const char* const kOthers = R"cuda(
// out = silu(gate) * up, of rows of gate and then up: 4 elements a thread, few blocks, as attend.
extern "C" __global__ void __launch_bounds__(1024) silu_mul(const u16* gate_up, u16* out) {
  allow_next();
  wait_previous();
  const int i = blockIdx.x * 1024 + threadIdx.x;
  if (i >= INTERMEDIATE / 4) return;
  const uint2* const row = (const uint2*)(gate_up + (long long)blockIdx.y * 2 * INTERMEDIATE);
  const uint2 gates = row[i], ups = row[INTERMEDIATE / 4 + i];
  const auto pair = [](u32 gate, u32 up) {
    const float a = to_float((u16)gate), b = to_float((u16)(gate >> 16));
    return to_half(a / (1 + __expf(-a)) * to_float((u16)up)) | (u32)to_half(b / (1 + __expf(-b)) * to_float((u16)(up >> 16))) << 16;
  };
  ((uint2*)(out + (long long)blockIdx.y * INTERMEDIATE))[i] = make_uint2(pair(gates.x, ups.x), pair(gates.y, ups.y));
}

// The likeliest token of one row x: of the dense output layer head [VOCAB, HIDDEN] times x / rms(x) * weight, or of `logits`
// where that was multiplied already. The block that is last appends it to the text, which then is `rows` tokens longer, tells
// the host, and begins the next step with its embedding as `first`.
extern "C" __global__ void __launch_bounds__(256, 4) likeliest(const u16* head, const u16* row, const u16* weight, const u16* logits,
                                                            const u16* embedding, State* state, int* tokens, volatile int* told,
                                                            u16* first, int rows) {
  constexpr int kPieces = HIDDEN / 8, kEach = (kPieces + 31) / 32, kAhead = 8, kRounds = (kEach + kAhead - 1) / kAhead;
  constexpr int kStaged = kRounds * kAhead * 32, kMine = (kStaged + 255) / 256;
  __shared__ uint4 x[kStaged];  // zeros after HIDDEN
  __shared__ u64 bests[8];
  __shared__ float sums[8];
  __shared__ int found;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  allow_next();
  uint4 v[kMine], norm[kMine];
#pragma unroll
  for (int i = 0; i < kMine; ++i)  // nobody writes the weights: before the wait
    norm[i] = !logits && threadIdx.x + 256 * i < kPieces ? ((const uint4*)weight)[threadIdx.x + 256 * i] : make_uint4(0, 0, 0, 0);
  wait_previous();
  if (!logits) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int at = threadIdx.x + 256 * i;
      v[i] = at < kPieces ? ((const uint4*)row)[at] : make_uint4(0, 0, 0, 0);
      float e[8];
      unpack(v[i], e);
      for (int j = 0; j < 8; ++j) sum += e[j] * e[j];
    }
    sum = warp_sum(sum);
    if (lane == 0) sums[warp] = sum;
    __syncthreads();
    sum = 0;
    for (int w = 0; w < 8; ++w) sum += sums[w];
    const float scale = rsqrtf(sum / HIDDEN + EPSILON);
#pragma unroll
    for (int i = 0; i < kMine; ++i) {
      const int at = threadIdx.x + 256 * i;
      float e[8], w[8];
      unpack(v[i], e);
      unpack(norm[i], w);
      const auto pair = [&](int j) { return to_half(e[j] * scale * w[j]) | (u32)to_half(e[j + 1] * scale * w[j + 1]) << 16; };
      if (at < kStaged) x[at] = make_uint4(pair(0), pair(2), pair(4), pair(6));
    }
    __syncthreads();
  }
  u64 best = 0;
  for (int token = blockIdx.x * 8 + warp; token < VOCAB; token += gridDim.x * 8) {
    float sum = 0;
    const uint4* const weights = (const uint4*)(head + (long long)token * HIDDEN);
    for (int round = 0; !logits && round < kRounds; ++round) {
      const int begin = round * kAhead * 32 + lane;
      uint4 w[kAhead];  // all asked for before the first is used: instructions that are volatile stay in order
#pragma unroll
      for (int i = 0; i < kAhead; ++i)
        asm volatile("ld.global.cs.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(w[i].x), "=r"(w[i].y), "=r"(w[i].z), "=r"(w[i].w)
                     : "l"(weights + min(begin + 32 * i, kPieces - 1)));
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        float a[8], b[8];
        unpack(w[i], a);
        unpack(x[begin + 32 * i], b);
        for (int e = 0; e < 8; ++e) sum += a[e] * b[e];
      }
    }
    sum = logits ? to_float(logits[token]) : warp_sum(sum);
    const u32 bits = __float_as_uint(sum), order = bits >> 31 ? ~bits : bits | 0x80000000u;  // in the order of the floats
    const u64 key = (u64)order << 32 | ~(u32)token;  // of equals the first
    best = key > best ? key : best;
  }
  if (lane == 0) bests[warp] = best;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < 8; ++w) best = bests[w] > best ? bests[w] : best;
    atomicMax(&state->best, best);
    __threadfence();
    found = -1;
    if (atomicAdd(&state->blocks, 1) == gridDim.x - 1) {
      const int token = (int)~(u32)atomicExch(&state->best, 0ull), position = state->position + rows;
      state->blocks = 0;
      state->position = position;
      tokens[position] = token;
      told[position] = token;
      found = token;
    }
  }
  __syncthreads();
  if (found < 0) return;
  const uint4* const from = (const uint4*)(embedding + (long long)found * HIDDEN);
  for (int i = threadIdx.x; i < kPieces; i += 256) ((uint4*)first)[i] = from[i];
}
)cuda";

}  // namespace

AttendShape attend_shape(const Config& config) {
  int warps = 8;
  while (warps > 1 && warps * config.heads / config.kv_heads * (config.head_dim + 4) * 4 > (40 << 10)) warps /= 2;
  return {warps, config.head_dim <= 128 ? 2 : 1};  // shared memory, registers
}

KernelSource kernel_source(const Config& config) {
  char epsilon[40];
  std::snprintf(epsilon, sizeof epsilon, "-DEPSILON=%.9ef", config.norm_epsilon);
  const auto define = [](const char* name, int value) {
    return std::string("-D") + name + "=" + std::to_string(value);
  };
  return {std::string(kKernels) + kAttention + kOthers,
          {define("HIDDEN", config.hidden), define("HEADS", config.heads), define("KV_HEADS", config.kv_heads),
           define("HEAD_DIM", config.head_dim), define("INTERMEDIATE", config.intermediate),
           define("VOCAB", config.vocab), define("SPLITS", kSplits), define("WARPS", attend_shape(config).warps),
           define("TILES", attend_shape(config).tiles), epsilon}};
}

}  // namespace generate
