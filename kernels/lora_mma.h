// x A by mma.sync: what a row's adapter is, and shrink by a matmul's own first blocks, of few adapters and rows
// (lora_decode.h). lora_shrink.h is that of any.
#pragma once
#include "lora.h"
#include "mma.h"

namespace q4 {

/// A row's adapter; chunks 0: none.
struct LoraRow {
  i32 adapter, chunks;
  const u16 *a, *b;
  float scale;
};

/// A table that lanes can hold is asked for at the same time as the rows' numbers: one trip to memory less.
Q4_DEVICE LoraRow lora_row(const LoraArgs& l, i64 row, bool inside, int lane) {
  const bool small = l.adapters <= 32;
  LoraEntry entry{};
  if (small && lane < l.adapters) entry = l.table[lane];
  LoraRow r{};
  r.adapter = inside ? lora_adapter(l, row) : -1;
  if (small) {
    const int from = r.adapter < 0 ? 0 : r.adapter;
    entry = {shuffle_pointer(entry.a, from), shuffle_pointer(entry.b, from), shuffle(entry.chunks, from),
             shuffle(entry.scale, from)};
  } else if (r.adapter >= 0) {
    entry = l.table[r.adapter];
  }
  if (r.adapter >= 0) r.chunks = entry.chunks, r.a = entry.a, r.b = entry.b, r.scale = entry.scale;
  return r;
}

/// Chunks of ranks, and rows' adapters, that a block shrinks: all, or every step-th from `chunk` on, and those adapters
/// whose first row is the part-th of `parts`.
struct LoraShare {
  int chunk = 0, step = 1, part = 0, parts = 1;
};

/// x A for 8 octets rows from `row` on, by a whole block. Each warp has every warps-th block of 32 of k; warps are
/// added in order. A row's sums depend on the row and its adapter alone.
template <LoraShape S>
class LoraShrink {
 public:
  static constexpr int kWarps = S.threads / 32, kRows = 8 * S.octets;
  static constexpr int kGroup = lora_group(S), kUnroll = lora_unroll(S);
  static constexpr int kBytes = lora_shrink_bytes(S);
  /// Adapters and chunks that are summed at once, each an adapter's first row and a chunk.
  struct Pairs {
    const u16* pairs;
    const i32* leads;
    int count;
    Q4_DEVICE bool has(int j, int row) const { return j < count && leads[row] == pairs[j] % 32; }
    Q4_DEVICE int chunk(int j) const { return pairs[j] / 32; }
  };

  Q4_DEVICE LoraShrink(const LoraArgs& l, i64 row, int rows_left, const LoraShare& share, u8* shared)
      : row_(row),
        rows_(smaller(kRows, rows_left)),
        sums_(reinterpret_cast<float*>(shared)),
        a_(reinterpret_cast<const u16**>(sums_ + kGroup * S.octets * kWarps * 128)),
        leads_(reinterpret_cast<i32*>(a_ + kRows)),
        scales_(reinterpret_cast<float*>(leads_ + kRows)),
        pairs_(reinterpret_cast<u16*>(scales_ + kRows)) {
    const int lane = thread_index() & 31;
    mine_ = lora_row(l, row + lane, lane < rows_, lane);
    lead_ = lane;
#pragma unroll
    for (int r = kRows - 1; r >= 0; --r) {
      const int other = shuffle(mine_.adapter, r);
      if (other == mine_.adapter && r < lane) lead_ = r;
    }
    const bool leads = lead_ == lane && lane % share.parts == share.part && mine_.chunks > share.chunk;
    const int own = leads ? (mine_.chunks - share.chunk + share.step - 1) / share.step : 0;
    int end = own;  // pairs of the rows up to this
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int before = shuffle(end, lane - step < 0 ? 0 : lane - step);
      if (lane >= step) end += before;
    }
    count_ = shuffle(end, 31);
    if (thread_index() < kRows) {
      leads_[lane] = mine_.chunks > 0 ? lead_ : -1, scales_[lane] = mine_.scale, a_[lane] = mine_.a;
      for (int i = 0; i < own; ++i)
        pairs_[end - own + i] = static_cast<u16>(lane + 32 * (share.chunk + i * share.step));
    }
    sync_block();
  }

  /// Part `part` of what the rows will multiply with B.
  Q4_DEVICE void prefetch_b(int part, int parts, int n) const {
    for (int r = 0; r < rows_; ++r) {
      const int lines = shuffle(lead_, r) == r ? shuffle(mine_.chunks, r) * (ceil_div(n, kTileColumns) * 4) : 0;
      const u16* b = shuffle_pointer(mine_.b, r);
      for (int i = part * S.threads + thread_index(); i < lines; i += parts * S.threads) prefetch_l2(b + i * 64);
    }
  }

  /// Blocks [begin, end) of k. put(j, row, chunk, rank of it, value): an element of low, of pair j of those that
  /// then(pairs) is called with next, by all threads.
  template <class Put, class Then>
  Q4_DEVICE void sum(const u16* x, i64 x_stride, int k, int begin, int end, Put put, Then then) {
    const int warp = thread_index() >> 5, lane = thread_index() & 31;
    x += row_ * x_stride;
#pragma unroll 1
    for (int first = 0; first < count_; first += kGroup) {
      const Pairs pairs{pairs_ + first, leads_, smaller(kGroup, count_ - first)};
      const u16* from[kGroup];
#pragma unroll
      for (int j = 0; j < kGroup; ++j) {
        from[j] = nullptr;
        if (j < pairs.count)
          from[j] =
              a_[pairs.pairs[j] % 32] + static_cast<i64>(pairs.chunk(j)) * ceil_div(k, kLoraRows) * 512 + lane * 8;
      }
      float acc[kGroup][S.octets][4] = {};
#pragma unroll 1
      for (int base = begin + warp; base < end; base += kUnroll * kWarps)
        multiply(acc, from, pairs.count, x, x_stride, k, base, end);
#pragma unroll
      for (int j = 0; j < kGroup; ++j)
#pragma unroll
        for (int octet = 0; octet < S.octets; ++octet) {
          const float(&v)[4] = acc[j][octet];
          *reinterpret_cast<Floats4*>(sums_ + ((j * S.octets + octet) * kWarps + warp) * 128 + lane * 4) = {v[0], v[1],
                                                                                                            v[2], v[3]};
        }
      sync_block();
      for (int i = thread_index(); i < pairs.count * S.octets * 128; i += S.threads) {
        const int in_lane = i % 128 / 4, e = i % 4, r = i / 128 % S.octets * 8 + in_lane % 4 * 2 + e % 2;
        const int j = i / (128 * S.octets);
        if (!pairs.has(j, r)) continue;
        float v = 0.f;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) v += sums_[(i / 128 * kWarps + w) * 128 + i % 128];
        put(j, r, pairs.chunk(j), in_lane / 4 + e / 2 * 8, v * scales_[r]);
      }
      then(pairs);
      sync_block();  // the sums' place is used again
    }
  }

 private:
  /// All loads of a turn at once.
  Q4_DEVICE void multiply(float (&acc)[kGroup][S.octets][4], const u16* const (&from)[kGroup], int count, const u16* x,
                          i64 x_stride, int k, int base, int end) const {
    const int lane = thread_index() & 31, g = lane >> 2, t = lane & 3;
    Words4 frag[kUnroll][kGroup][2], rows[kUnroll][S.octets];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int block = base + i * kWarps, at = block * kLoraRows + 8 * t;
#pragma unroll
      for (int j = 0; j < kGroup; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          frag[i][j][half] = {};
          if (j < count && block < end)
            frag[i][j][half] = *reinterpret_cast<const Words4*>(from[j] + static_cast<i64>(block) * 512 + half * 256);
        }
#pragma unroll
      for (int octet = 0; octet < S.octets; ++octet) {
        const int r = 8 * octet + g;
        rows[i][octet] = {};
        if (r < rows_ && block < end && at < k)
          rows[i][octet] = *reinterpret_cast<const Words4*>(x + r * x_stride + at);
      }
    }
#pragma unroll
    for (int i = 0; i < kUnroll; ++i)
#pragma unroll
      for (int j = 0; j < kGroup; ++j) {
        if (j >= count) continue;
        const Words4 &p = frag[i][j][0], &q = frag[i][j][1];
        const u32 low_k[4] = {p.x, p.y, p.z, p.w}, high_k[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
        for (int octet = 0; octet < S.octets; ++octet) {
          mma_16816<S.bf16 != 0>(acc[j][octet], low_k, rows[i][octet].x, rows[i][octet].y);
          mma_16816<S.bf16 != 0>(acc[j][octet], high_k, rows[i][octet].z, rows[i][octet].w);
        }
      }
  }

  const i64 row_;
  const int rows_;
  float* sums_;  // [pair of the group][octet][warp][lane][4]
  const u16** a_;
  i32* leads_;  // of each row: the first row of the same adapter; -1: none
  float* scales_;
  u16* pairs_;
  LoraRow mine_;  // of row `lane`
  int lead_, count_;
};

}  // namespace q4
