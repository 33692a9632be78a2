// Attention of one Llama over the cache of keys and values, as a CUDA kernel: the products by tensor cores.
#include "kernels.hpp"

namespace generate {

const char* const kAttention = R"cuda(
// d += a b, of 16 x 16 and 16 x 8 fp16 numbers, with the first eight rows of a and d alone: the others are zero.
__device__ void mma(float (&d)[2], u32 a0, u32 a2, u32 b0, u32 b1) {
  [[maybe_unused]] float none0, none1;
#if __CUDA_ARCH__ < 800
  for (int half = 0; half < 2; ++half)
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %7, %7};"
                 : "+f"(d[0]), "+f"(d[1]), "=f"(none0), "=f"(none1)
                 : "r"(half ? a2 : a0), "r"(0), "r"(half ? b1 : b0), "f"(0.f));
#else
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %5}, {%7, %8}, {%0, %1, %9, %9};"
               : "+f"(d[0]), "+f"(d[1]), "=f"(none0), "=f"(none1)
               : "r"(a0), "r"(0), "r"(a2), "r"(b0), "r"(b1), "f"(0.f));
#endif
}
__device__ u32 pack(float low, float high) {
#if __CUDA_ARCH__ < 800
  return to_half(low) | (u32)to_half(high) << 16;
#else
  u32 word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#endif
}

__device__ float power_of_two(float v) { float p; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(p) : "f"(v)); return p; }
constexpr float kNothing = -1e30f;  // a score: its power of two is 0

// Keys and values of 16 positions as a warp's operands of mma. A product does not mind in which order its k is: a lane takes
// pieces of 16 bytes of its positions, and queries are read alike.
constexpr int kVec = HEAD_DIM % 64 == 0 ? 8 : 4;  // elements of a value that a lane loads at once
constexpr int kKeys = HEAD_DIM / 32, kValues = HEAD_DIM / (8 * kVec);
struct alignas(2 * kVec) Piece { u32 words[kVec / 2]; };
struct Tile {
  uint4 key[2][kKeys];       // of positions lane / 4 and 8 more: elements 32 i + 8 (lane % 4) and on
  Piece value[4][kValues];   // of positions 2 (lane % 4) + 0, 1, 8, 9: elements 8 kVec i + kVec (lane / 4) and on
  __device__ static int of_key(int first, int n, int last) { return min(first + 8 * n + (int)threadIdx.x % 32 / 4, last); }
  __device__ static int of_value(int first, int n, int last) {
    return min(first + 2 * (int)(threadIdx.x % 4) + n % 2 + n / 2 * 8, last);
  }
  __device__ void load_key(int n, const u16* head) {
#pragma unroll
    for (int i = 0; i < kKeys; ++i) key[n][i] = ((const uint4*)head)[4 * i + threadIdx.x % 4];
  }
  __device__ void load_value(int n, const u16* head) {
#pragma unroll
    for (int i = 0; i < kValues; ++i) value[n][i] = ((const Piece*)head)[8 * i + threadIdx.x % 32 / 4];
  }
};

// mixed = softmax(q k^T / sqrt(HEAD_DIM)) v. Blocks: heads of keys (x), shares of the positions (y), rows (z). A warp has
// TILES tiles of 16 positions in hand at a time, for all heads of queries that use them; what warps, and blocks, find is
// put together by the last of them. Few blocks: where one runs, q4's next kernel cannot ask for weights yet. `fresh`: the
// row's own key and value are not in the cache yet and are put there; all others are then loaded before the kernel before
// this one has ended, and its own join them at the end. Short code, which is in no cache of instructions when it begins.
extern "C" __global__ void __launch_bounds__(32 * WARPS) attend(const u16* qkv, u16* cache, const float* rope, const State* state,
                                                               int capacity, int fresh, float* partial, int* arrived, u16* mixed) {
  constexpr int kAtOnce = 16 * WARPS * TILES;  // positions
  const float scale_of_score = rsqrtf((float)HEAD_DIM) * 1.44269504f;  // weights are powers of two
  constexpr int kFound = HEAD_DIM + 2;         // of a block: the largest score, the sum of weights, the weighted sum of values
  __shared__ alignas(16) float found[WARPS][kGroup][HEAD_DIM + 4];  // of a warp: the weighted sum of values
  __shared__ float top_of[WARPS][kGroup], weights_of[WARPS][kGroup], own_score[kGroup];
  __shared__ alignas(16) u16 query[kGroup][HEAD_DIM + 32], own[2][HEAD_DIM];  // rotated; the row's own key and value
  __shared__ int last;
  const int kv = blockIdx.x, split = blockIdx.y, row = blockIdx.z, t = threadIdx.x;
  const int warp = (int)(threadIdx.x / 32), lane = (int)(threadIdx.x % 32);
  // What earlier steps wrote can be read at once: the position, and with it keys and values.
  const int position = state->position + row, seen = fresh ? position : position + 1;  // in the cache
  const int splits = max(1, min((int)gridDim.y, (seen + kAtOnce - 1) / kAtOnce)), share = (seen + splits - 1) / splits;
  if (split >= splits) return;
  const int begin = split * share, end = min(seen, begin + share);
  const bool adds = fresh && split == splits - 1;  // the row's own position
  const u16* const keys = cached(cache, 0, kv, 0, capacity);
  const u16* const values = cached(cache, 1, kv, 0, capacity);
  const Angles angles(rope, position);
  Tile tiles[TILES];
  const auto ask = [&](int base) {
#pragma unroll
    for (int r = 0; r < TILES; ++r) {
      const int first = base + 16 * WARPS * r;
      if (first >= end) break;
#pragma unroll
      for (int n = 0; n < 2; ++n) tiles[r].load_key(n, keys + (long long)Tile::of_key(first, n, end - 1) * HEAD_DIM);
#pragma unroll
      for (int n = 0; n < 4; ++n) tiles[r].load_value(n, values + (long long)Tile::of_value(first, n, end - 1) * HEAD_DIM);
    }
  };
  allow_next();
  if (!fresh) wait_previous();
  ask(begin + 16 * warp);
  if (fresh) wait_previous();
  const u16* const mine = qkv + (long long)row * kWidth;
#pragma unroll 1
  for (int unit = t / 16; unit < kGroup + 2; unit += 2 * WARPS) {  // 16 lanes a head: queries, the key, the value
    float v[kPart];
    if (unit < kGroup) {
      angles.rotate(mine + (kv * kGroup + unit) * HEAD_DIM, v);
      store_part(query[unit], t % 16, v);
    } else if (adds) {
      const int what = unit - kGroup;
      const u16* const head = mine + (HEADS + what * KV_HEADS + kv) * HEAD_DIM;
      if (what == 0) angles.rotate(head, v);
      if (what == 1) load_part(head, t % 16, v);
      store_part(own[what], t % 16, v);
      store_part(cached(cache, what, kv, position, capacity), t % 16, v);
    }
  }
  __syncthreads();
  if (adds)
#pragma unroll 1
    for (int g = WARPS - 1 - warp; g < kGroup; g += WARPS) {  // by the warps that have tiles last
      float score = 0;
#pragma unroll
      for (int d = 0; d < HEAD_DIM; d += 32) score += to_float(query[g][d + lane]) * to_float(own[0][d + lane]);
      score = warp_sum(score);
      if (lane == 0) own_score[g] = score * scale_of_score;
    }
  float sum[HEAD_DIM / 8][2] = {}, most = kNothing, weights = 0;  // of the head of queries lane / 4
  const uint4* const q = (const uint4*)query[min(lane / 4, kGroup - 1)];
  for (int base = begin + 16 * warp; base < end; base += kAtOnce) {
    if (base != begin + 16 * warp) ask(base);
    float score[TILES][2][2] = {};
    float top = most;
#pragma unroll
    for (int r = 0; r < TILES; ++r) {
      const int first = base + 16 * WARPS * r;
      if (first >= end) break;
      float other[2][2] = {};  // chains of half the length
#pragma unroll
      for (int i = 0; i < kKeys; ++i) {
        const uint4 a = q[4 * i + lane % 4];
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          mma(score[r][n], a.x, a.y, tiles[r].key[n][i].x, tiles[r].key[n][i].y);
          mma(other[n], a.z, a.w, tiles[r].key[n][i].z, tiles[r].key[n][i].w);
        }
      }
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        float& s = score[r][n / 2][n % 2];
        s += other[n / 2][n % 2];
        s = first + n / 2 * 8 + 2 * (lane % 4) + n % 2 < end ? s * scale_of_score : kNothing;
        top = fmaxf(top, s);
      }
    }
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    const float old = power_of_two(most - top);
    most = top, weights *= old;
#pragma unroll
    for (int d = 0; d < HEAD_DIM / 8; ++d) sum[d][0] *= old, sum[d][1] *= old;
#pragma unroll
    for (int r = 0; r < TILES; ++r) {
      if (base + 16 * WARPS * r >= end) break;
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        float& s = score[r][n / 2][n % 2];
        s = power_of_two(s - top);
        weights += s;
      }
      const u32 low = pack(score[r][0][0], score[r][0][1]), high = pack(score[r][1][0], score[r][1][1]);
#pragma unroll
      for (int i = 0; i < kValues; ++i)
#pragma unroll
        for (int e = 0; e < kVec; ++e) {
          const auto pair = [&](int n) {  // this element of positions n and n + 1
            return __byte_perm(tiles[r].value[n][i].words[e / 2], tiles[r].value[n + 1][i].words[e / 2], e % 2 ? 0x7632 : 0x5410);
          };
          mma(sum[kVec * i + e], low, high, pair(0), pair(2));
        }
    }
  }
  weights += __shfl_xor_sync(~0u, weights, 1);
  weights += __shfl_xor_sync(~0u, weights, 2);
  if (lane / 4 < kGroup) {  // a warp without a tile has found nothing, and says so
    if (lane % 4 == 0) top_of[warp][lane / 4] = most, weights_of[warp][lane / 4] = weights;
#pragma unroll
    for (int i = 0; i < kValues; ++i)
      for (int n = 0; n < 2; ++n) {  // in another order in half of the lanes, so that eight of them meet all banks
        const bool second = (n == 1) != (lane % 4 >= 2);
        float* const to = found[warp][lane / 4] + kVec * (8 * i + 2 * (lane % 4) + second);
#pragma unroll
        for (int e = 0; e < kVec; e += 4) {
          const float(*const from)[2] = sum + kVec * i + e;
          *(float4*)(to + e) = second ? make_float4(from[0][1], from[1][1], from[2][1], from[3][1])
                                      : make_float4(from[0][0], from[1][0], from[2][0], from[3][0]);
        }
      }
  }
  __syncthreads();
  float* const parts = partial + ((long long)row * KV_HEADS + kv) * SPLITS * kGroup * kFound;
  u16* const out = mixed + ((long long)row * HEADS + kv * kGroup) * HEAD_DIM;
  constexpr int kPairs = kGroup * HEAD_DIM / 2, kRounds = (kPairs + 32 * WARPS - 1) / (32 * WARPS);  // of elements of out
#pragma unroll
  for (int round = 0; round < kRounds; ++round) {
    const int i = 2 * (t + 32 * WARPS * round), g = i / HEAD_DIM, d = i % HEAD_DIM;
    if (kPairs % (32 * WARPS) != 0 && i >= 2 * kPairs) break;
    const float own_top = adds ? own_score[g] : kNothing;
    const u32 own_pair = adds ? *(const u32*)&own[1][d] : 0u;
    float top = own_top;
#pragma unroll
    for (int w = 0; w < WARPS; ++w) top = fmaxf(top, top_of[w][g]);
    float all = power_of_two(own_top - top);
    float2 value = make_float2(all * to_float((u16)own_pair), all * to_float((u16)(own_pair >> 16)));
#pragma unroll
    for (int w = 0; w < WARPS; ++w) {
      const float scale = power_of_two(top_of[w][g] - top);
      const float2 v = *(const float2*)&found[w][g][d];
      all += scale * weights_of[w][g];
      value.x += scale * v.x, value.y += scale * v.y;
    }
    const float share_of = __fdividef(1.f, all);
    if (splits == 1) *(u32*)(out + i) = pack(value.x * share_of, value.y * share_of);
    if (splits == 1) continue;
    float* const part = parts + (split * kGroup + g) * kFound;
    if (d == 0) *(float2*)part = make_float2(top, all);
    *(float2*)(part + 2 + d) = value;
  }
  if (splits == 1) return;
  __threadfence();
  __syncthreads();
  if (t == 0) last = atomicAdd(&arrived[row * KV_HEADS + kv], 1) == splits - 1;
  __syncthreads();
  if (!last) return;
  __threadfence();
  if (t == 0) arrived[row * KV_HEADS + kv] = 0;
#pragma unroll 1
  for (int i = 2 * t; i < 2 * kPairs; i += 64 * WARPS) {
    const int g = i / HEAD_DIM, d = i % HEAD_DIM;
    const auto part = [&](int s, int at) { return __ldcg((const float2*)(parts + (s * kGroup + g) * kFound + at)); };
    float top = kNothing, all = 0;
    float2 value = {0, 0};
#pragma unroll 4
    for (int s = 0; s < splits; ++s) top = fmaxf(top, part(s, 0).x);
#pragma unroll 4
    for (int s = 0; s < splits; ++s) {
      const float2 one = part(s, 0), v = part(s, 2 + d);
      const float scale = power_of_two(one.x - top);
      all += scale * one.y;
      value.x += scale * v.x, value.y += scale * v.y;
    }
    const float share_of = __fdividef(1.f, all);
    *(u32*)(out + i) = pack(value.x * share_of, value.y * share_of);
  }
}
)cuda";

}  // namespace generate
