// Models of kernels/hopper.h and kernels/wgmma.h (what async_model.cpp does not
// already define). Copies land when somebody waits for their barrier, wgmma
// computes when it is waited for, tensor stores are written when they are
// waited for: as late as the hardware may, so that a missing wait shows.
#include "kernels/hopper.h"

#include <fmt/format.h>

#include <atomic>
#include <cmath>

#include "kernels/wgmma.h"
#include "tests/emulation/engine.hpp"
#include "tests/emulation/tensor_map.hpp"

namespace q4 {
namespace {

using emulation::at_address;
using emulation::EmulationError;
using emulation::MatrixView;
using emulation::self;

constexpr u32 kOffset = 0xffffffu;  // of an address; the block's place in the cluster is above

double wide(u16 v, bool bf16) { return bf16 ? bf16_to_float(v) : half_to_float(v); }

/// Where byte `at` of row `row` of a tile stands: 16-byte chunks change places within 128 bytes (64, where a row has no
/// more) by which of eight (four) 128 bytes these are.
u32 swizzled(u32 tile, int row, int at, int row_bytes = 128) {
  const u32 linear = static_cast<u32>(row * row_bytes + at);
  return tile + (linear ^ ((linear >> 7 & (row_bytes <= 64 ? 3u : 7u)) << 4));
}

/// The box at (row, column) of a matrix to a tile of shared memory; zeros
/// outside.
void load_box(u32 to, const MatrixView& map, int column, int row) {
  if ((to & 1023u) != 0 && (to & kOffset) % 1024 != 0) throw EmulationError("tensor_load: a tile stands at 1024 bytes");
  for (int r = 0; r < map.box_rows; ++r)
    for (int c = 0; c < 64; ++c) {
      const bool inside = row + r < map.rows && column + c < map.cols;
      const u16 v = inside ? map.data[(row + r) * map.row_stride + column + c] : static_cast<u16>(0);
      std::memcpy(at_address(swizzled(to, r, 2 * c), 2, 2), &v, 2);
    }
}

}  // namespace

// ---- arithmetic -----------------------------------------------------------------------------------------------------
u32 bf16x2_add(u32 a,
               u32 b) {  // a sum of two bf16 that is near a tie is exact in fp32
  return from_float2<true>(bf16_to_float(static_cast<u16>(a)) + bf16_to_float(static_cast<u16>(b)),
                           bf16_to_float(static_cast<u16>(a >> 16)) + bf16_to_float(static_cast<u16>(b >> 16)));
}
u32 bf16x2_mul(u32 a, u32 b) {
  return from_float2<true>(bf16_to_float(static_cast<u16>(a)) * bf16_to_float(static_cast<u16>(b)),
                           bf16_to_float(static_cast<u16>(a >> 16)) * bf16_to_float(static_cast<u16>(b >> 16)));
}
template <bool kBf16>
u32 pack(float low, float high) {
  return from_float2<kBf16>(low, high);
}
template u32 pack<false>(float, float);
template u32 pack<true>(float, float);
u32 byte_perm(u32 a, u32 b, u32 selector) {
  const u64 bytes = static_cast<u64>(b) << 32 | a;
  u32 d = 0;
  for (int i = 0; i < 4; ++i) d |= static_cast<u32>(bytes >> (8 * (selector >> (4 * i) & 7u)) & 255u) << (8 * i);
  return d;
}
float fma_float(float a, float b, float c) { return std::fma(a, b, c); }
bool elect_one() { return self().thread % 32 == 0; }

void mbar_arrive(u32 bar) { emulation::mbarrier_update(bar, 1, 0); }
void mbar_arrive_remote(u32 bar, u32 block) { mbar_arrive(remote_address(bar, block)); }

// ---- copies ---------------------------------------------------------------------------------------------------------
void bulk_load(u32 to, const void* from, u32 bytes, u32 bar) {
  if (reinterpret_cast<std::uintptr_t>(from) % 16 != 0 || bytes % 16 != 0)
    throw EmulationError("bulk_load: 16-byte pieces");
  emulation::arrive_later(bar, bytes, [=] { std::memcpy(at_address(to, static_cast<int>(bytes), 16), from, bytes); });
}
void bulk_load_multicast(u32 to, const void* from, u32 bytes, u32 bar, u16 blocks) {
  for (u32 b = 0; b < self().cluster->blocks.size(); ++b)
    if (blocks >> b & 1) bulk_load(remote_address(to, b), from, bytes, remote_address(bar, b));
}
void tensor_load(u32 to, const TensorMap* map, int column, int row, u32 bar) {
  const MatrixView view = emulation::view_of(*map);
  emulation::arrive_later(bar, static_cast<u32>(view.box_rows * 128), [=] { load_box(to, view, column, row); });
}
void tensor_load_multicast(u32 to, const TensorMap* map, int column, int row, u32 bar, u16 blocks) {
  for (u32 b = 0; b < self().cluster->blocks.size(); ++b)
    if (blocks >> b & 1) tensor_load(remote_address(to, b), map, column, row, remote_address(bar, b));
}
void tensor_store(const TensorMap* map, u32 from, int column, int row) {
  const MatrixView view = emulation::view_of(*map);
  self().stores.push_back([=] {
    for (int r = 0; r < view.box_rows && row + r < view.rows; ++r)
      for (int c = 0; c < view.box_cols && column + c < view.cols; ++c)
        std::memcpy(&view.data[(row + r) * view.row_stride + column + c],
                    at_address(swizzled(from, r, 2 * c, 2 * view.box_cols), 2, 2), 2);
  });
}
void bulk_commit() {}
void bulk_wait_all() {
  for (const auto& store : self().stores) store();
  self().stores.clear();
}
void bulk_wait_read() { bulk_wait_all(); }
void prefetch_map(const TensorMap*) {}
void fence_async_shared() {}

// ---- shared memory --------------------------------------------------------------------------------------------------
u32 load_shared(u32 address) {
  u32 v;
  std::memcpy(&v, at_address(address, 4, 4), 4);
  return v;
}
u32 load_shared_byte(u32 address) { return static_cast<u32>(*at_address(address, 1, 1)); }
void load_shared4(u32 (&d)[4], u32 address) { std::memcpy(d, at_address(address, 16, 16), 16); }
void store_shared(u32 address, u32 v) { std::memcpy(at_address(address, 4, 4), &v, 4); }
void store_shared4(u32 address, const Words4& v) { std::memcpy(at_address(address, 16, 16), &v, 16); }
template <int kCount>
void load_shared_floats(float (&v)[kCount], u32 address) {
  std::memcpy(v, at_address(address, sizeof v, sizeof v), sizeof v);
}
template <int kCount>
void store_shared_floats(u32 address, const float (&v)[kCount]) {
  std::memcpy(at_address(address, sizeof v, sizeof v), v, sizeof v);
}
template <int kCount>
void store_remote(u32 remote, const float (&v)[kCount], u32 remote_bar) {
  struct Values {
    float v[kCount];
  } values;
  std::memcpy(&values, v, sizeof v);
  emulation::arrive_later(remote_bar, sizeof v, [=] {
    std::memcpy(at_address(remote, sizeof values, sizeof values), &values, sizeof values);
  });
}
template void load_shared_floats<2>(float (&)[2], u32);
template void load_shared_floats<4>(float (&)[4], u32);
template void store_shared_floats<2>(u32, const float (&)[2]);
template void store_shared_floats<4>(u32, const float (&)[4]);
template void store_remote<2>(u32, const float (&)[2], u32);
template void store_remote<4>(u32, const float (&)[4], u32);

namespace {
void store_matrices_transposed(u32 address, int count, u32 a, u32 b, u32 c, u32 d) {
  struct Rows {
    u32 v[4];
  };
  const auto all = emulation::exchange(Rows{{a, b, c, d}}, "stmatrix");
  // Lane l writes row l % 8 of matrix l / 8: element c of it is held by lane 4 c + row / 2, lower or upper half.
  const int lane = self().thread % 32, matrix = lane / 8, row = lane % 8;
  if (matrix >= count) return;
  u16 elements[8];
  for (int column = 0; column < 8; ++column)
    elements[column] = static_cast<u16>(all[4 * column + row / 2].v[matrix] >> (16 * (row % 2)));
  std::memcpy(at_address(address, 16, 16), elements, 16);
}
}  // namespace
void store_matrix4_transposed(u32 address, u32 a, u32 b, u32 c, u32 d) {
  store_matrices_transposed(address, 4, a, b, c, d);
}
void store_matrix2_transposed(u32 address, u32 a, u32 b) { store_matrices_transposed(address, 2, a, b, 0, 0); }
template <int kCount>
void load_matrix_transposed(u32 (&d)[kCount], u32 address) {
  const auto addresses = emulation::exchange(address, "ldmatrix.trans");
  const int lane = self().thread % 32, column = lane / 4, first = lane % 4 * 2;  // elements (first, first + 1; column)
  for (int i = 0; i < kCount; ++i) {
    u32 pair = 0;
    for (int e = 0; e < 2; ++e) {
      u16 element;
      std::memcpy(&element, at_address(addresses[8 * i + first + e], 16, 16) + 2 * column, 2);
      pair |= static_cast<u32>(element) << (16 * e);
    }
    d[i] = pair;
  }
}
template void load_matrix_transposed<2>(u32 (&)[2], u32);
template void load_matrix_transposed<4>(u32 (&)[4], u32);

// ---- between blocks -------------------------------------------------------------------------------------------------
u32 atomic_add(u32* counter, u32 v) { return std::atomic_ref<u32>(*counter).fetch_add(v); }
Words4 load_l2(const void* p) { return *static_cast<const Words4*>(p); }
Words4 load_pairs(const void* p) { return *static_cast<const Words4*>(p); }
void store_pairs(void* p, const Words4& v) { *static_cast<Words4*>(p) = v; }
u32 load_acquire(const u32* p) { return std::atomic_ref<const u32>(*p).load(); }
void store_release(u32* p, u32 v) { std::atomic_ref<u32>(*p).store(v); }

// ---- wgmma: each warp owns 16 rows of d and meets all of b, so the model is a
// warp's -----------------------------------------
void wgmma_fence() {}
void wgmma_commit() { self().products.emplace_back(); }
template <int kPending>
void wgmma_wait() {
  auto& products = self().products;
  while (static_cast<int>(products.size()) - 1 > kPending) {
    for (const auto& product : products.front()) product();
    products.pop_front();
  }
}
template void wgmma_wait<0>();
template void wgmma_wait<1>();
template void wgmma_wait<2>();

template <bool kBf16, int kRegs>
void wgmma(float (&d)[kRegs], const u32 (&a)[4], u64 b, int add) {
  struct Fragment {
    u32 v[4];
  };
  const Fragment mine{{a[0], a[1], a[2], a[3]}};
  const u32 start = static_cast<u32>(b & 0x3fffu) << 4;
  const u32 tile = start & ~1023u;
  self().products.back().push_back([=, sums = &d[0]] {
    const auto all = emulation::exchange(mine, "wgmma");
    const int lane = self().thread % 32, g = lane / 4, t = lane % 4;
    double rows[2][16];
    for (int k = 0; k < 16; ++k)
      for (int upper = 0; upper < 2; ++upper)
        rows[upper][k] = wide(static_cast<u16>(all[4 * g + k % 8 / 2].v[k / 8 * 2 + upper] >> (16 * (k % 2))), kBf16);
    const u32 place = cluster_rank() << 24;
    for (int j = 0; j < kRegs / 4; ++j)
      for (int i = 0; i < 2; ++i) {
        const int n = 8 * j + 2 * t + i;
        u16 column[16];
        for (int half = 0; half < 2; ++half)
          std::memcpy(column + 8 * half,
                      at_address(swizzled(place | tile, n, static_cast<int>(start - tile) + 16 * half), 16, 16), 16);
        for (int upper = 0; upper < 2; ++upper) {
          float& sum = sums[4 * j + 2 * upper + i];
          double exact = add ? sum : 0;
          for (int k = 0; k < 16; ++k) exact += rows[upper][k] * wide(column[k], kBf16);
          sum = static_cast<float>(exact);
        }
      }
  });
}
template void wgmma<false, 8>(float (&)[8], const u32 (&)[4], u64, int);
template void wgmma<false, 16>(float (&)[16], const u32 (&)[4], u64, int);
template void wgmma<false, 24>(float (&)[24], const u32 (&)[4], u64, int);
template void wgmma<false, 48>(float (&)[48], const u32 (&)[4], u64, int);
template void wgmma<false, 40>(float (&)[40], const u32 (&)[4], u64, int);
template void wgmma<false, 56>(float (&)[56], const u32 (&)[4], u64, int);
template void wgmma<false, 80>(float (&)[80], const u32 (&)[4], u64, int);
template void wgmma<false, 96>(float (&)[96], const u32 (&)[4], u64, int);
template void wgmma<false, 112>(float (&)[112], const u32 (&)[4], u64, int);
template void wgmma<false, 32>(float (&)[32], const u32 (&)[4], u64, int);
template void wgmma<false, 64>(float (&)[64], const u32 (&)[4], u64, int);
template void wgmma<false, 128>(float (&)[128], const u32 (&)[4], u64, int);
template void wgmma<true, 8>(float (&)[8], const u32 (&)[4], u64, int);
template void wgmma<true, 16>(float (&)[16], const u32 (&)[4], u64, int);
template void wgmma<true, 24>(float (&)[24], const u32 (&)[4], u64, int);
template void wgmma<true, 48>(float (&)[48], const u32 (&)[4], u64, int);
template void wgmma<true, 40>(float (&)[40], const u32 (&)[4], u64, int);
template void wgmma<true, 56>(float (&)[56], const u32 (&)[4], u64, int);
template void wgmma<true, 80>(float (&)[80], const u32 (&)[4], u64, int);
template void wgmma<true, 96>(float (&)[96], const u32 (&)[4], u64, int);
template void wgmma<true, 112>(float (&)[112], const u32 (&)[4], u64, int);
template void wgmma<true, 32>(float (&)[32], const u32 (&)[4], u64, int);
template void wgmma<true, 64>(float (&)[64], const u32 (&)[4], u64, int);
template void wgmma<true, 128>(float (&)[128], const u32 (&)[4], u64, int);

}  // namespace q4
