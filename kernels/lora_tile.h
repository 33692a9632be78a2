// Adding low B (lora.h) to a matmul's sums by mma.sync.
#pragma once
#include "lora.h"
#include "mma.h"

namespace q4 {

/// low of a tile, from its first row on: four ranks of a row.
struct LoraLow {
  const u16* low;
  int stride;
  Q4_DEVICE LoraLow(const LoraArgs& l, i64 row) : low(l.low + row * l.low_stride), stride(l.low_stride) {}
  Q4_DEVICE Words2 operator()(int row, int chunk, int four) const {
    return *reinterpret_cast<const Words2*>(low + row * stride + chunk * kLoraRanks + 4 * four);
  }
  /// Of all rows' one adapter, from this lane's first.
  Q4_DEVICE Words4 fragment(const u16* b, int chunk) const { return *reinterpret_cast<const Words4*>(b + chunk * 256); }
};

/// What a tile of rows by 16 columns gets from the adapters of its rows, in a warp: asked for before the tile is
/// multiplied (ask), added to its sums after (add). Of `parts` that sum over k, each has the chunks of an adapter that
/// the adapter's number names, so a row's bits do not depend on the others.
/// Rows are those of so many octets; kAtOnce: fragments of adapters asked for at once, as registers allow.
template <Problem P, int kOctets, int kAtOnce = 4>
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

  /// The same of what is known already: all rows' one adapter, where they have one, and its B.
  Q4_DEVICE void take(const u16* all_b, int all_chunks, int adapter, int tile, int lane, int part, int parts) {
    chunks = tile < kTiles ? all_chunks : 0, first = first_chunk(larger(adapter, 0), part, parts);
    // In numbers, since all_b is null where there is no B to read, and nothing may be added to a null pointer.
    b = reinterpret_cast<const u16*>(reinterpret_cast<i64>(all_b) +
                                     (static_cast<i64>(tile) * all_chunks * 32 + lane) * 16);
  }

  /// Columns g and g + 8 of `tile` and rows row + 2 t, row + 2 t + 1 of each octet, a float each as mma.m16n8k16 has
  /// them: sums[octet][2 c + i] += low B. Rows past m get anything.
  template <class Low>
  Q4_DEVICE void add(float (*sums)[4], const MatmulArgs& a, const Low& low, int tile, int row, int lane, int part,
                     int parts) const {
    if (chunks == 0) return;
    if (chunks < 0) return add_each(sums, a, low, tile, row, lane, part, parts);
    const int left_rows = a.m - row - (lane >> 2);  // octet o has this lane's row if 8 o is below it
    constexpr int kEach = smaller(kOctets, 8);      // octets, of two chunks
#pragma unroll 1
    for (int chunk = first; chunk < chunks; chunk += 2 * parts) {
      const bool two = chunk + parts < chunks;
      const Words4 frag = low.fragment(b, chunk), second = two ? low.fragment(b, chunk + parts) : Words4{0, 0, 0, 0};
#pragma unroll
      for (int base = 0; base < kOctets; base += kEach) {
        Words2 x[2][kEach];
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
          const int r = 8 * (base + i) + (lane >> 2);
          const bool inside = 8 * (base + i) < left_rows;
          x[0][i] = x[1][i] = {0, 0};
          if (inside) x[0][i] = low(r, chunk, lane & 3);
          if (inside && two) x[1][i] = low(r, chunk + parts, lane & 3);
        }
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
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

  /// From row `base` of the tile on. At most 64 rows at a time; more go round a loop, with the sums in local memory, since code for each would take long
  /// to compile.
  template <class Low>
  Q4_DEVICE static void add_each(float (*sums)[4], const MatmulArgs& a, const Low& low, int tile, int row, int lane,
                                 int part, int parts) {
    if constexpr (kOctets <= 8) {
      add_some<kOctets>(sums, a, low, 0, tile, row, lane, part, parts);
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
        add_some<8>(some, a, low, 8 * base, tile, row, lane, part, parts);
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
  template <int kSome, class Low>
  Q4_DEVICE static void add_some(float (*sums)[4], const MatmulArgs& a, const Low& low_of, int base, int tile, int row,
                                 int lane, int part, int parts) {
    row += base;
    constexpr int kHalves = ceil_div(kSome, 4);
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
        if (left[o / 4] >> in_half & 1) low[o] = low_of(base + 8 * o + (lane >> 2), of_row, lane & 3);
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

}  // namespace q4
