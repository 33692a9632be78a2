// The PTX instructions of Hopper that the prefill kernel uses, one helper each: barriers, copies, clusters, registers.
// Addresses of shared memory are 32-bit (shared_address). tests/emulation models them for a C++ compiler.
#pragma once
#include "words.h"

namespace q4 {

/// Same bytes as the driver's CUtensorMap; a __grid_constant__ parameter of the kernel.
struct alignas(64) TensorMap {
  u64 opaque[16];
};

#if Q4_EMULATED
bool elect_one();
void mbar_arrive(u32 bar);
void mbar_arrive_remote(u32 bar, u32 block);
void mbar_wait(u32 bar, u32 parity);
void tensor_load(u32 to, const TensorMap* map, int column, int row, u32 bar);
void tensor_load_multicast(u32 to, const TensorMap* map, int column, int row, u32 bar, u16 blocks);
void tensor_store(const TensorMap* map, u32 from, int column, int row);
void bulk_commit();
void bulk_wait_read();
void bulk_wait_all();
void prefetch_map(const TensorMap* map);
void fence_async_shared();
template <int kRegisters>
void registers_raise() {}
template <int kRegisters>
void registers_lower() {}
void store_matrix4_transposed(u32 address, u32 a, u32 b, u32 c, u32 d);
void store_matrix2_transposed(u32 address, u32 a, u32 b);
template <int kCount>
void load_matrix_transposed(u32 (&d)[kCount], u32 address);
#else

/// True in one lane of a converged warp; ptxas keeps what only that lane does in uniform registers.
Q4_DEVICE bool elect_one() {
  u32 elected;
  asm volatile("{\n.reg .pred p;\nelect.sync _|p, 0xffffffff;\nselp.u32 %0, 1, 0, p;\n}" : "=r"(elected));
  return elected != 0;
}

// ---- mbarriers ------------------------------------------------------------------------------------------------------
Q4_DEVICE void mbar_arrive(u32 bar) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory"); }
/// The barrier at the same place in another block of the cluster. No .release.cluster: it would cost a fence each, and
/// what is handed over here is only the right to overwrite.
Q4_DEVICE void mbar_arrive_remote(u32 bar, u32 block) {
  asm volatile(
      "{\n.reg .b32 ra;\nmapa.shared::cluster.u32 ra, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [ra];\n}" ::"r"(bar),
      "r"(block)
      : "memory");
}
Q4_DEVICE void mbar_wait(u32 bar, u32 parity) {
  asm volatile(
      "{\n.reg .pred p;\nWAIT:\nmbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra DONE;\nbra "
      "WAIT;\nDONE:\n}" ::"r"(bar),
      "r"(parity)
      : "memory");
}

// ---- bulk and tensor copies -----------------------------------------------------------------------------------------
Q4_DEVICE void tensor_load(u32 to, const TensorMap* map, int column, int row, u32 bar) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::
          "r"(to),
      "l"(map), "r"(column), "r"(row), "r"(bar)
      : "memory");
}
/// The same bytes and the same barrier's count in every block of the cluster that `blocks` names.
Q4_DEVICE void tensor_load_multicast(u32 to, const TensorMap* map, int column, int row, u32 bar, u16 blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(bar), "h"(blocks)
      : "memory");
}
Q4_DEVICE void tensor_store(const TensorMap* map, u32 from, int column, int row) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%1, %2}], [%3];" ::"l"(map),
               "r"(column), "r"(row), "r"(from)
               : "memory");
}
Q4_DEVICE void bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
Q4_DEVICE void bulk_wait_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }
Q4_DEVICE void bulk_wait_all() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
Q4_DEVICE void prefetch_map(const TensorMap* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }
/// Ordinary stores to shared memory before it, tensor copies and wgmma after it.
Q4_DEVICE void fence_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- registers of a warpgroup ---------------------------------------------------------------------------------------
template <int kRegisters>
Q4_DEVICE void registers_raise() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
Q4_DEVICE void registers_lower() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// ---- shared memory --------------------------------------------------------------------------------------------------
/// Four 8x8 matrices of 16-bit elements, each transposed: lane l gives the address of row l % 8 of matrix l / 8.
Q4_DEVICE void store_matrix4_transposed(u32 address, u32 a, u32 b, u32 c, u32 d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(a), "r"(b),
               "r"(c), "r"(d)
               : "memory");
}
/// Two, whose addresses lanes 0 to 15 give.
Q4_DEVICE void store_matrix2_transposed(u32 address, u32 a, u32 b) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(address), "r"(a), "r"(b)
               : "memory");
}
/// Four or two, as those two store them.
template <int kCount>
Q4_DEVICE void load_matrix_transposed(u32 (&d)[kCount], u32 address) {
  static_assert(kCount == 2 || kCount == 4);
  if constexpr (kCount == 2)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(d[0]), "=r"(d[1])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(address)
                 : "memory");
}

#endif

}  // namespace q4
