// The kernels of kernels_amx.cpp on tiles that plain C++ computes: checked on processors without AMX. Built with the
// kernels' flags except AMX's own (CMakeLists.txt).
#include "amx_model.hpp"

#if defined(__AVX512BW__) && defined(__AVX512DQ__)
#include <cmath>
#include <cstring>

#include <immintrin.h>

namespace q4::test {
namespace {

struct Tile {
  int rows = 0, bytes = 0;
  alignas(64) std::uint8_t data[16][64];
};
thread_local Tile tiles[8];
thread_local bool configured = false;
std::atomic<int> faults{0};

bool use(int tile) {
  const Tile& used = tiles[tile];
  const bool good = configured && used.rows > 0 && used.rows <= 16 && used.bytes > 0 && used.bytes <= 64;
  if (!good) ++faults;
  return good;
}
void load_config(const void* from) {
  std::uint8_t bytes[64];
  std::memcpy(bytes, from, 64);
  if (bytes[0] != 1) ++faults;
  for (int i = 0; i < 8; ++i) {
    tiles[i].rows = bytes[48 + i];
    tiles[i].bytes = bytes[16 + 2 * i] | bytes[17 + 2 * i] << 8;
    std::memset(tiles[i].data, 0, sizeof tiles[i].data);
  }
  configured = true;
}
void release() { configured = false; }
void zero(int tile) {
  if (use(tile)) std::memset(tiles[tile].data, 0, sizeof tiles[tile].data);
}
void load(int tile, const void* from, std::int64_t stride) {
  if (!use(tile)) return;
  std::memset(tiles[tile].data, 0, sizeof tiles[tile].data);
  for (int row = 0; row < tiles[tile].rows; ++row)
    std::memcpy(tiles[tile].data[row], static_cast<const char*>(from) + row * stride, std::size_t(tiles[tile].bytes));
}
void store(int tile, void* to, std::int64_t stride) {
  if (!use(tile)) return;
  for (int row = 0; row < tiles[tile].rows; ++row)
    std::memcpy(static_cast<char*>(to) + row * stride, tiles[tile].data[row], std::size_t(tiles[tile].bytes));
}

/// sum[m][n] += the products of four bytes (or two bf16) of a[m][k] and b[k][n].
template <class Four>
void multiply(int sum, int a, int b, Four&& four) {
  if (!use(sum) || !use(a) || !use(b)) return;
  if (tiles[a].rows != tiles[sum].rows || tiles[a].bytes != 4 * tiles[b].rows || tiles[b].bytes != tiles[sum].bytes)
    ++faults;
  for (int m = 0; m < tiles[sum].rows; ++m)
    for (int k = 0; k < tiles[b].rows; ++k)
      for (int n = 0; n < 16; ++n) four(tiles[sum].data[m] + 4 * n, tiles[a].data[m] + 4 * k, tiles[b].data[k] + 4 * n);
}
/// As the processor does: denormals are zero.
float bf16(const std::uint8_t* at) {
  const std::uint32_t bits = std::uint32_t(at[0] | at[1] << 8) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return std::fpclassify(value) == FP_SUBNORMAL ? 0.0f : value;
}
void dpbf16ps(int sum, int a, int b) {
  multiply(sum, a, b, [](std::uint8_t* to, const std::uint8_t* x, const std::uint8_t* w) {
    float value;
    std::memcpy(&value, to, sizeof value);
    value = std::fmaf(bf16(x), bf16(w), value);
    value = std::fmaf(bf16(x + 2), bf16(w + 2), value);
    std::memcpy(to, &value, sizeof value);
  });
}
void dpbsud(int sum, int a, int b) {
  multiply(sum, a, b, [](std::uint8_t* to, const std::uint8_t* x, const std::uint8_t* w) {
    std::int32_t value;
    std::memcpy(&value, to, sizeof value);
    for (int i = 0; i < 4; ++i) value += std::int32_t(std::int8_t(x[i])) * w[i];
    std::memcpy(to, &value, sizeof value);
  });
}

}  // namespace

int amx_faults() { return faults.load(); }

}  // namespace q4::test

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#undef _tile_dpbsud
#define _tile_loadconfig(from) q4::test::load_config(from)
#define _tile_release() q4::test::release()
#define _tile_zero(tile) q4::test::zero(tile)
#define _tile_loadd(tile, from, stride) q4::test::load(tile, from, stride)
#define _tile_stored(tile, to, stride) q4::test::store(tile, to, stride)
#define _tile_dpbf16ps(sum, a, b) q4::test::dpbf16ps(sum, a, b)
#define _tile_dpbsud(sum, a, b) q4::test::dpbsud(sum, a, b)
#ifndef __AMX_BF16__
#define __AMX_BF16__ 1
#endif
#ifndef __AMX_INT8__
#define __AMX_INT8__ 1
#endif
#define amx_kernels modelled_amx_kernels
#include "runtime/backends/cpu/kernels_amx.cpp"

#else
namespace q4::cpu {
bool modelled_amx_kernels(Kernels&) { return false; }
}  // namespace q4::cpu
namespace q4::test {
int amx_faults() { return 0; }
}  // namespace q4::test
#endif
