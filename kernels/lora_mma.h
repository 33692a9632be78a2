// The parts of LoRA on mma.sync: adding low B to a matmul's sums, and shrink by the matmul's own first blocks, of few
// adapters. lora_shrink.h is the launch before, of any.
#pragma once
#include "lora.h"
#include "mma.h"

namespace q4 {

/// What a tile of rows by 16 columns gets from the adapters of its rows, in a warp: asked for before the tile is
/// multiplied (ask), added to its sums after (add). Of `parts` that sum over k, each has the chunks of an adapter that
/// the adapter's number names, so a row's bits do not depend on the others.
/// Rows are those of so many octets.
template <Problem P, int kOctets>
struct LoraTile {
  static constexpr bool kBf16 = P.bf16 != 0;
  static constexpr int kTiles = ceil_div(P.n, kTileColumns);
  const u16* b;  // of all rows' one adapter, this lane's
  int chunks;    // of it; 0: nothing to add; -1: rows differ
  int first;     // chunk of this part

  Q4_DEVICE static int first_chunk(int adapter, int part, int parts) {
    return (part + parts - adapter % parts) % parts;
  }

  Q4_DEVICE void ask(const MatmulArgs& a, int tile, int row, int lane, int part, int parts) {
    b = nullptr, chunks = first = 0;
    if (row >= a.m || tile >= kTiles) return;
    const int adapter = lora_adapter(a.lora, row);
    bool same = true;
#pragma unroll
    for (int r = lane; r < 8 * kOctets; r += 32)
      if (row + r < a.m) same = same && lora_adapter(a.lora, row + r) == adapter;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) same = shuffle_xor(same ? 1 : 0, step) && same;
    if (!same) {
      chunks = -1;
#pragma unroll 1
      for (int r = lane; r < 8 * kOctets; r += 32) {  // B comes from memory meanwhile
        const int own = row + r < a.m ? lora_adapter(a.lora, row + r) : -1;
        if (own < 0) continue;
        const LoraEntry entry = a.lora.table[own];
        const u16* lines = entry.b + static_cast<i64>(tile) * entry.chunks * 256;
        for (int chunk = first_chunk(own, part, parts); chunk < entry.chunks; chunk += parts)
#pragma unroll
          for (int line = 0; line < 4; ++line) prefetch_l2(lines + chunk * 256 + line * 64);
      }
      return;
    }
    if (adapter < 0) return;
    const LoraEntry entry = a.lora.table[adapter];
    chunks = entry.chunks, first = first_chunk(adapter, part, parts);
    b = entry.b + (static_cast<i64>(tile) * chunks * 32 + lane) * 8;
    for (int line = lane; line < 4 * chunks; line += 32) prefetch_l2(b + line * 64 - lane * 8);
  }

  /// Columns g and g + 8 of `tile` and rows row + 2 t, row + 2 t + 1 of each octet, a float each as mma.m16n8k16 has
  /// them: sums[octet][2 c + i] += low B. Rows past m get anything.
  Q4_DEVICE void add(float (*sums)[4], const MatmulArgs& a, int tile, int row, int lane, int part, int parts) const {
    if (chunks == 0) return;
    if (chunks < 0) return add_each(sums, a, tile, row, lane, part, parts);
    const int left_rows = a.m - row - (lane >> 2);  // octet o has this lane's row if 8 o is below it
    const u16* low = a.lora.low + static_cast<i64>(row + (lane >> 2)) * a.lora.low_stride + 4 * (lane & 3);
    constexpr int kAtOnce = smaller(kOctets, 8);  // octets, of two chunks
#pragma unroll 1
    for (int chunk = first; chunk < chunks; chunk += 2 * parts) {
      const bool two = chunk + parts < chunks;
      const Words4 frag = *reinterpret_cast<const Words4*>(b + chunk * 256);
      const Words4 second = two ? *reinterpret_cast<const Words4*>(b + (chunk + parts) * 256) : Words4{0, 0, 0, 0};
#pragma unroll
      for (int base = 0; base < kOctets; base += kAtOnce) {
        Words2 x[2][kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          const u16* at = low + (base + i) * 8 * static_cast<i64>(a.lora.low_stride) + chunk * kLoraRanks;
          const bool inside = 8 * (base + i) < left_rows;
          x[0][i] = x[1][i] = {0, 0};
          if (inside) x[0][i] = *reinterpret_cast<const Words2*>(at);
          if (inside && two) x[1][i] = *reinterpret_cast<const Words2*>(at + parts * kLoraRanks);
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {
          multiply(sums[base + i], frag, x[0][i]);
          if (two) multiply(sums[base + i], second, x[1][i]);
        }
      }
    }
  }

 private:
  Q4_DEVICE static void multiply(float (&sums)[4], const Words4& b, const Words2& low) {
    const u32 frag[4] = {b.x, b.y, b.z, b.w};
    mma_16816<kBf16>(sums, frag, low.x, low.y);
  }

  /// At most 64 rows at a time; more go round a loop, with the sums in local memory, since code for each would take long
  /// to compile.
  Q4_DEVICE static void add_each(float (*sums)[4], const MatmulArgs& a, int tile, int row, int lane, int part,
                                 int parts) {
    if constexpr (kOctets <= 8) {
      add_some<kOctets>(sums, a, tile, row, lane, part, parts);
    } else {
      float local[kOctets][4];
#pragma unroll
      for (int octet = 0; octet < kOctets; ++octet)
#pragma unroll
        for (int e = 0; e < 4; ++e) local[octet][e] = sums[octet][e];
#pragma unroll 1
      for (int base = 0; base < kOctets; base += 8) {
        float some[8][4];
#pragma unroll
        for (int i = 0; i < 32; ++i) some[i / 4][i % 4] = local[base + i / 4][i % 4];
        add_some<8>(some, a, tile, row + 8 * base, lane, part, parts);
#pragma unroll
        for (int i = 0; i < 32; ++i) local[base + i / 4][i % 4] = some[i / 4][i % 4];
      }
#pragma unroll
      for (int octet = 0; octet < kOctets; ++octet)
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[octet][e] = local[octet][e];
    }
  }

  Q4_DEVICE static u32 ballot(bool v) {
    const u32 alike = equal_lanes(v ? 1 : 0, 1);
    return v ? alike : ~alike;
  }

  /// Adapter by adapter, each with one chunk a round: so a row needs one piece of low in a round, which all adapters'
  /// fragments meet. Lane l knows rows l and l + 32.
  template <int kSome>
  Q4_DEVICE static void add_some(float (*sums)[4], const MatmulArgs& a, int tile, int row, int lane, int part,
                                 int parts) {
    constexpr int kHalves = ceil_div(kSome, 4), kAtOnce = 4;
    i32 adapter[kHalves], chunks[kHalves], chunk[kHalves];
    const u16* b[kHalves];
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      const int r = 32 * h + lane;
      adapter[h] = r < 8 * kSome && row + r < a.m ? lora_adapter(a.lora, row + r) : -1;
    }
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      chunks[h] = chunk[h] = 0, b[h] = nullptr;
      if (adapter[h] < 0) continue;
      b[h] = a.lora.table[adapter[h]].b, chunks[h] = a.lora.table[adapter[h]].chunks;
      chunk[h] = first_chunk(adapter[h], part, parts);
    }
#pragma unroll 1
    for (;;) {
      u32 left[kHalves], any = 0;
#pragma unroll
      for (int h = 0; h < kHalves; ++h) left[h] = ballot(chunk[h] < chunks[h]), any |= left[h];
      if (any == 0) break;
      Words2 low[kSome];
#pragma unroll
      for (int o = 0; o < kSome; ++o) {
        const int in_half = o % 4 * 8 + (lane >> 2), of_row = shuffle(chunk[o / 4], in_half);
        low[o] = {0, 0};
        if (left[o / 4] >> in_half & 1)
          low[o] = *reinterpret_cast<const Words2*>(a.lora.low +
                                                    (row + 8 * o + (lane >> 2)) * static_cast<i64>(a.lora.low_stride) +
                                                    of_row * kLoraRanks + 4 * (lane & 3));
      }
#pragma unroll 1
      while (any != 0) {
        Words4 frag[kAtOnce];
        u32 rows[kAtOnce][kHalves];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {  // the adapter of the first row that is left, with all of its rows
          frag[i] = {0, 0, 0, 0};
#pragma unroll
          for (int h = 0; h < kHalves; ++h) rows[i][h] = 0;
          if (any == 0) continue;
          int half = 0;
#pragma unroll
          for (int h = kHalves - 1; h >= 0; --h) half = left[h] ? h : half;
          i32 number = adapter[0], all = chunks[0], which = chunk[0];
          const u16* from = b[0];
          u32 set = left[0];
#pragma unroll
          for (int h = 1; h < kHalves; ++h)
            if (half == h) number = adapter[h], all = chunks[h], which = chunk[h], from = b[h], set = left[h];
          const int lowest = bit_count((set & (~set + 1)) - 1) & 31;
          number = shuffle(number, lowest), all = shuffle(all, lowest), which = shuffle(which, lowest);
          from = shuffle_pointer(from, lowest);
          any = 0;
#pragma unroll
          for (int h = 0; h < kHalves; ++h) {
            rows[i][h] = ballot(adapter[h] == number) & left[h];
            left[h] &= ~rows[i][h], any |= left[h];
          }
          frag[i] = *reinterpret_cast<const Words4*>(from + (static_cast<i64>(tile) * all + which) * 256 + lane * 8);
        }
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i)
#pragma unroll
          for (int o = 0; o < kSome; ++o) {
            const u32 eight = rows[i][o / 4] >> (o % 4 * 8) & 255u;
            if (eight == 0) continue;
            multiply(sums[o], frag[i], eight >> (lane >> 2) & 1 ? low[o] : Words2{0, 0});
          }
      }
#pragma unroll
      for (int h = 0; h < kHalves; ++h) chunk[h] += parts;
    }
  }
};

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
