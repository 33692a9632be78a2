// Asynchronous copies, barriers among some warps, and clusters: one helper each PTX instruction.
// Addresses of shared memory are 32-bit (shared_address), global ones ordinary pointers.
#pragma once
#include "device.h"

namespace q4 {

#if Q4_EMULATED
// tests/emulation defines them.
u32 shared_address(const void* p);
void async_copy16(u32 to, const void* from, int bytes);
void async_commit();
template <int kPending>
void async_wait();
void named_barrier(int id, int threads);
u32 cluster_rank();
void cluster_arrive();
void cluster_wait();
void mbar_init(u32 bar, u32 count);
void mbar_fence_init();
void mbar_expect(u32 bar, u32 bytes);
void mbar_wait_cluster(u32 bar, u32 parity);
u32 remote_address(u32 address, u32 block);
template <int kCount>
void store_remote(u32 remote, const float (&v)[kCount], u32 remote_bar);
void bulk_load(u32 to, const void* from, u32 bytes, u32 bar);
void bulk_load_multicast(u32 to, const void* from, u32 bytes, u32 bar, u16 blocks);
#else
Q4_DEVICE u32 shared_address(const void* p) { return static_cast<u32>(__cvta_generic_to_shared(p)); }

// ---- copies of 16 bytes to shared memory, sm_80 on ------------------------------------------------------------------
/// The first `bytes` (0 or 16) come from `from`, the rest is zero.
Q4_DEVICE void async_copy16(u32 to, const void* from, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
Q4_DEVICE void async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Until at most kPending of this thread's committed groups are on their way.
template <int kPending>
Q4_DEVICE void async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

/// Waits for `threads` threads of the block that name the same barrier (1..15; 0 is sync_block's).
Q4_DEVICE void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- clusters, sm_90 on ---------------------------------------------------------------------------------------------
Q4_DEVICE u32 cluster_rank() {
  u32 r;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return r;
}
/// Relaxed: orders no data but what mbar_fence_init covers; a release would cost a fence of the whole GPU.
Q4_DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
Q4_DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

Q4_DEVICE void mbar_init(u32 bar, u32 count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}
Q4_DEVICE void mbar_fence_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
/// One arrival, and `bytes` that must come before the phase ends.
Q4_DEVICE void mbar_expect(u32 bar, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
/// Until the phase of this parity has ended, whichever block of the cluster wrote what it counted.
Q4_DEVICE void mbar_wait_cluster(u32 bar, u32 parity) {
  asm volatile(
      "{\n.reg .pred p;\nL%=:\nmbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%0], %1;\n@!p bra "
      "L%=;\n}" ::"r"(bar),
      "r"(parity)
      : "memory");
}
/// The same place in another block of the cluster.
Q4_DEVICE u32 remote_address(u32 address, u32 block) {
  u32 d;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(d) : "r"(address), "r"(block));
  return d;
}
/// 2 or 4 floats to another block, whose barrier (remote_address of it) counts their bytes: no fence, no cluster
/// barrier.
template <int kCount>
Q4_DEVICE void store_remote(u32 remote, const float (&v)[kCount], u32 remote_bar) {
  static_assert(kCount == 2 || kCount == 4);
  if constexpr (kCount == 2)
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(remote),
        "f"(v[0]), "f"(v[1]), "r"(remote_bar)
        : "memory");
  else
    asm volatile(
        "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(remote),
        "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]), "r"(remote_bar)
        : "memory");
}
// ---- bulk copies, sm_90 on: the bytes are counted by a barrier ------------------------------------------------------
Q4_DEVICE void bulk_load(u32 to, const void* from, u32 bytes, u32 bar) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
               "l"(from), "r"(bytes), "r"(bar)
               : "memory");
}
/// To the same place in every block of the cluster that `blocks` names, where the same barrier counts them.
Q4_DEVICE void bulk_load_multicast(u32 to, const void* from, u32 bytes, u32 bar, u16 blocks) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], "
      "%4;" ::"r"(to),
      "l"(from), "r"(bytes), "r"(bar), "h"(blocks)
      : "memory");
}
#endif

Q4_DEVICE void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

}  // namespace q4
