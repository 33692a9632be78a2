// decode: out = x @ W for m <= 16 on NVIDIA from sm_80 on. Reading the codes once is all the work there is, so each
// warp has its loads in flight before it knows x, and the arithmetic is the least that mma.sync allows: the weights are
// A (16 columns of W), eight rows of x are B.
//
//   codes: global -> registers, 16 bytes a lane      x: global -> shared (cp.async), gathered there -> ldmatrix
//                                                       or all of it by bulk copies, which blocks side by side share
//   sums:  fp32, scaled once a unit -> shared, summed over teams in order -> over the cluster, in order -> out
//
// Arithmetic on one word (layout.h), fp16: its bytes are pairs of codes, q(column g) + 16 q(column g + 8), and an
// integer below 1024 in a half's low bits is that integer times 2^-24, a subnormal that the tensor cores multiply
// exactly. So
//     a[0] = w & 0x00ff00ff   q + 16 q'        a[1] = w & 0x00f000f0   16 q'      (rows c, c + 1)
//     a[2], a[3]: the same of w >> 8                                              (rows c + 8, c + 9)
// and column g is the difference of the two sums. No offset is added, so none has to be taken out again; the zero is:
// it meets the sum of x over the unit, which one more mma with A = 1 gives for all tiles. bf16 has no such subnormals
// (their products would leave fp32): 0x4300 | q = 128 + q, and 128 + zero is taken out.
#pragma once
#include "decode_sum.h"
#include "decode_x.h"
#include "lora_decode.h"

namespace q4 {
namespace decode_detail {

template <bool kBf16>
Q4_DEVICE void unpack(u32 (&a)[4], u32 w) {
  if constexpr (kBf16) {
    a[0] = and_or<0x000f000fu, 0x43004300u>(w);
    a[1] = and_or<0x000f000fu, 0x43004300u>(w >> 4);
    a[2] = and_or<0x000f000fu, 0x43004300u>(w >> 8);
    a[3] = and_or<0x000f000fu, 0x43004300u>(w >> 12);
  } else {
    const u32 upper = odd_bytes(w);
    a[0] = w & 0x00ff00ffu;
    a[1] = w & 0x00f000f0u;
    a[2] = upper;
    a[3] = upper & 0x00f000f0u;
  }
}
/// acc += scale (sum - zero sum_x) for one tile and set.
template <bool kBf16, int kBatch>
Q4_DEVICE void apply_meta(float (&acc)[kBatch][4], const float (&sum)[kBatch][4], const float (&sum_x)[kBatch][2],
                          u32 scales, u32 zeros) {
  const float s0 = half_to_float(static_cast<u16>(scales)), s1 = half_to_float(static_cast<u16>(scales >> 16));
  float z0, z1;
  if constexpr (kBf16) {
    z0 = bits_to_float((zeros & 15u) << 16 | 0x43000000u);
    z1 = bits_to_float((zeros & 0xf0u) << 12 | 0x43000000u);
  } else {  // 2^-24 times the zero, and times 16 zeros, as the sums are
    z0 = half_to_float(static_cast<u16>(zeros & 15u));
    z1 = half_to_float(static_cast<u16>(zeros & 0xf0u));
  }
#pragma unroll
  for (int b = 0; b < kBatch; ++b)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float low = kBf16 ? sum[b][e] : sum[b][e] - sum[b][2 + e];
      acc[b][e] += s0 * (low - z0 * sum_x[b][e]);
      acc[b][2 + e] += s1 * (sum[b][2 + e] - z1 * sum_x[b][e]);
    }
}

/// acc += brick x slab `i` of x. `refill(half)` runs when half of the words has been used.
template <DecodeConfig C, class F>
Q4_DEVICE void multiply(float (*acc)[C.batch][4], const Brick<C>& brick, const XRing<C>& x, int i, F refill) {
  // Dependent mma are some 33 clocks apart: few tiles in one go are summed in two chains each.
  constexpr int kChains = C.brick * C.batch < 4 && set_steps(C) > 1 ? 2 : 1;
  u32 frag[C.batch][4];
#pragma unroll
  for (int u = 0; u < slab_sets(C); ++u) {
    float sum[C.brick][kChains][C.batch][4];
    [[maybe_unused]] float ones_sum[kSumChains<C>][C.batch][4];
#pragma unroll
    for (int j = 0; j < set_steps(C); ++j) {
      const int step = u * set_steps(C) + j;
      if (step % 2 == 0) x.load(frag, x.slot, step / 2);
#pragma unroll
      for (int s = 0; s < C.brick; ++s) {
        const Words4& w = brick.words[s][step / 4];
        u32 a[4];
        unpack<kBf16<C>>(a, step % 4 == 0 ? w.x : step % 4 == 1 ? w.y : step % 4 == 2 ? w.z : w.w);
#pragma unroll
        for (int b = 0; b < C.batch; ++b) {
          if (j < kChains)
            mma_16816_first<kBf16<C>>(sum[s][j][b], a, frag[b][step % 2 * 2], frag[b][step % 2 * 2 + 1]);
          else
            mma_16816<kBf16<C>>(sum[s][j % kChains][b], a, frag[b][step % 2 * 2], frag[b][step % 2 * 2 + 1]);
        }
      }
      if constexpr (sums_itself(C)) sum_step<C>(ones_sum, frag, j, step);
      if (step % 4 == 3) refill(step / 4);
    }
    u32 scales[C.brick], zeros;
    spread_meta<C>(scales, zeros, brick, u, x.lane);
    float sum_x[C.batch][2];
#pragma unroll
    for (int b = 0; b < C.batch; ++b) {
      if constexpr (sums_itself(C)) {
#pragma unroll
        for (int e = 0; e < 2; ++e) sum_x[b][e] = total_of<C>(ones_sum, b, e);
      } else {
        const Words2 v = *reinterpret_cast<const Words2*>(x.slab_sums(i) + u * rows(C) + 8 * b);
        sum_x[b][0] = bits_to_float(v.x), sum_x[b][1] = bits_to_float(v.y);
      }
    }
#pragma unroll
    for (int s = 0; s < C.brick; ++s) {
      if constexpr (kChains == 2) {
#pragma unroll
        for (int b = 0; b < C.batch; ++b)
#pragma unroll
          for (int e = 0; e < 4; ++e) sum[s][0][b][e] += sum[s][1][b][e];
      }
      apply_meta<kBf16<C>, C.batch>(acc[s], sum[s][0], sum_x, scales[s], zeros >> (8 * s));
    }
  }
}

/// Grouped: acc += this team's slabs of a tile. `follow()` runs once before the first refill that the tile itself has no slab for;
/// where it is true, it has put what follows into `w.source`, and the refills go on there.
template <DecodeConfig C, class F>
Q4_DEVICE void multiply_slabs(float (&acc)[warp_tiles(C)][C.batch][4], Weights<C>& w, XRing<C>& x, const MatmulArgs& a,
                              const Place<C>& at, F follow) {
  bool asked = false, follows = false;
#pragma unroll 1
  for (int i = 0; i < at.count; i += C.depth) {
#pragma unroll
    for (int d = 0; d < C.depth; ++d) {
      if (i + d >= at.count) break;
      x.next(a, at, i + d);
      const int next = i + d + C.depth;
      int next_slab = at.slot + next * slots(C);
      bool more = most_slabs(C) > C.depth && next < at.count;
      if (!more) {
        if (!asked) follows = follow();
        asked = true;
        more = follows;
        next_slab = at.slot + d * slots(C);
      }
#pragma unroll
      for (int b = 0; b < warp_bricks(C); ++b) {
        multiply<C>(acc + b * C.brick, w.buffer[d][b], x, i + d, [&](int half) {
          if (C.early && more) load_words<C>(w.buffer[d][b], w.source[b], next_slab, half);
        });
        if (more) {
          load_meta<C>(w.buffer[d][b], w.source[b], next_slab);
          if (!C.early) load_words<C>(w.buffer[d][b], w.source[b], next_slab);
        }
      }
    }
  }
}

}  // namespace decode_detail

/// Launch: grid(C, m) blocks of threads(C), launch bounds (threads(C), 1), shared_bytes(C) of dynamic shared memory,
/// cluster(C) blocks a cluster; programmatic stream serialization is allowed. 1 <= m, serves(C, m).
template <DecodeConfig C>
Q4_DEVICE void decode(const MatmulArgs& a) {
  using namespace decode_detail;
  constexpr int kBricks = warp_bricks(C);
  int first_block = 0;
  if constexpr (C.p.lora) {
    if (a.lora.maker == kLoraWithin) {
      if (block_index() < kLoraParts) return lora_shrink_within<C>(a);
      first_block = kLoraParts;
    }
  }
  const Place<C> at = place<C>((block_index() - first_block) / C.cluster);
  XRing<C> x(a, at);
  float* sums = reinterpret_cast<float*>(shared_memory() + x_bytes(C) + x_sum_bytes(C));
  u8* inbox = shared_memory() + x_bytes(C) + x_sum_bytes(C) + sum_bytes(C);

  BrickSource source[kBricks];
  Brick<C> buffer[C.depth][kBricks];
#pragma unroll
  for (int b = 0; b < kBricks; ++b) source[b] = brick_source<C>(a, at.first_tile + b * C.brick, at.lane);
  x.load_maps(a, at);
  if constexpr (C.p.norm) x.bring_weights(a, at);
  const auto load_all_words = [&] {
#pragma unroll
    for (int d = 0; d < C.depth; ++d)
#pragma unroll
      for (int b = 0; b < kBricks; ++b)
        if (d < at.count) load_words<C>(buffer[d][b], source[b], at.slot + d * slots(C));
  };
#pragma unroll
  for (int d = 0; d < C.depth; ++d)
#pragma unroll
    for (int b = 0; b < kBricks; ++b)
      if (d < at.count) load_meta<C>(buffer[d][b], source[b], at.slot + d * slots(C));
  // Staggered: half of the warps asks later, so that the others' weights arrive, and are used, first: less arithmetic
  // is left when the last byte comes.
  const bool late = C.stagger && (thread_index() >> 5) >= C.teams * C.side / 2;
  if (!late) load_all_words();
  if constexpr (C.cluster > 1) open_inbox<C>(inbox, a.m);
  if constexpr (C.share > 0) x.open(a.m);
  allow_next_kernel();
  if constexpr (C.p.norm) x.wait_weights();
  if (!C.p.lora || a.lora.maker != kLoraBeside) wait_previous_kernel();  // weights are constant, x is not
  [[maybe_unused]] LoraRows<C> lora;
  if constexpr (C.p.lora) {
    if (at.rank == 0) lora.ask(a, at.lane);
  }
  if constexpr (C.p.residual) prefetch_l2(first_residual<C>(a, at));
  x.first(a, at, [&] {
    if (late) load_all_words();
  });
  if constexpr (C.p.lora) {
    if (at.rank == 0) lora.find(a);
  }

  // Its own loop, not multiply_slabs: called from two places, the compiler orders the same instructions otherwise.
  float acc[warp_tiles(C)][C.batch][4] = {};
#pragma unroll 1
  for (int i = 0; i < at.count; i += C.depth) {
#pragma unroll
    for (int d = 0; d < C.depth; ++d) {
      if (i + d >= at.count) break;
      x.next(a, at, i + d);
#pragma unroll
      for (int b = 0; b < kBricks; ++b) {
        const int next = i + d + C.depth, next_slab = at.slot + next * slots(C);
        const bool more = most_slabs(C) > C.depth && next < at.count;
        multiply<C>(acc + b * C.brick, buffer[d][b], x, i + d, [&](int half) {
          if (C.early && more) load_words<C>(buffer[d][b], source[b], next_slab, half);
        });
        if (more) {
          load_meta<C>(buffer[d][b], source[b], next_slab);
          if (!C.early) load_words<C>(buffer[d][b], source[b], next_slab);
        }
      }
    }
  }
  if constexpr (C.p.lora) {
    if (a.lora.maker == kLoraBeside) wait_previous_kernel();
    if (at.rank == 0) lora.add(acc, a, at, {1.f / column_factor<kBf16<C>>(false), 1.f / column_factor<kBf16<C>>(true)});
  }
  Words2 residual{};
  if constexpr (C.p.residual) residual = *first_residual<C>(a, at);
  store_sums<C>(acc, sums, at, a.m);
  if constexpr (C.p.norm) x.store_squares(a);
  sync_block();
  if constexpr (C.p.lora) {
    if (at.rank == 0 && a.lora.maker == kLoraWithin) lora.clear(a, at);
  }
  reduce<C>(a, sums, inbox, at, residual);
}

/// Grouped: a block goes from item to item. The registers that a slab of weights leaves behind are refilled with the
/// next item's, so that the memory is kept busy while sums are added up and x is fetched.
template <DecodeConfig C>
Q4_DEVICE void decode(const GroupedArgs& g) {
  using namespace decode_detail;
  constexpr bool kIndirect = is_indirect(C.p);
  if constexpr (kIndirect) wait_previous_kernel();  // the router
  constexpr int kBlocks = column_blocks(C);
  int number = block_index();
  GroupItem item = group_item<rows(C), kBlocks>(g, number), coming{};  // asked for together with their number
  const int items = group_items<kBlocks>(g);
  const bool any = number < items;
  const int lane = thread_index() & 31;
  // Row of x of this lane's row of an item.
  const auto source_of = [&](const GroupItem& of) { return kIndirect && lane < of.rows ? g.x_rows[of.row + lane] : 0; };
  Place<C> at = place<C>(item.block);
  MatmulArgs a = item_args(g, item, C.p);
  Weights<C> w;
  const bool late = C.stagger && (thread_index() >> 5) >= C.teams * C.side / 2;
  if (any) {
    w.find(a, at);
    w.ask_meta(at);
    if (!late) w.ask_words(at);
  }
  if constexpr (!kIndirect) wait_previous_kernel();
  allow_next_kernel();  // not before the wait: the next kernel reads the row tiles at once
  if (!any) return;
  XRing<C> x(a, at);
  float* sums = reinterpret_cast<float*>(shared_memory() + x_bytes(C) + x_sum_bytes(C));
  x.source = source_of(item);
  x.ask(a, at);
  bool first = true;
  while (true) {
    number += block_count();
    const bool more = number < items;
    if (more) coming = group_item<rows(C), kBlocks>(g, number);
    const i32 coming_source = more ? source_of(coming) : 0;
    x.first(a, at, [&] {
      if (late && first) w.ask_words(at);
    });
    first = false;
    float acc[warp_tiles(C)][C.batch][4] = {};
    multiply_slabs<C>(acc, w, x, a, at, [&] {
      if (more) w.find(item_args(g, coming, C.p), place<C>(coming.block));
      return more;
    });
    store_sums<C>(acc, sums, at, a.m);
    sync_block();
    const MatmulArgs done = a;
    const Place<C> was = at;
    if (more) {
      a = item_args(g, coming, C.p);
      at = place<C>(coming.block);
      x.source = coming_source;
      x.find_rows(a);
      x.ask(a, at);
    }
    reduce<C>(done, sums, shared_memory() + x_bytes(C) + x_sum_bytes(C) + sum_bytes(C), was, {});
    if (!more) return;
    sync_block();  // sums have been read
  }
}

/// Of at most kRoutedSlots slots, which every block sorts for itself: no router runs before.
template <DecodeConfig C>
Q4_DEVICE void decode(const RoutedArgs& r) {
  if constexpr (is_indirect(C.p))
    wait_previous_kernel();  // ids may be its; the second product's kernel comes after one that waited
  const GroupedArgs g = route_itself<C.p>(r, shared_memory() + shared_bytes(C) - routed_bytes(C.p), tile_rows(C));
  decode<C>(g);
}

}  // namespace q4
