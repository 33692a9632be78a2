// Packs a matrix on its device.
#include "runtime/gpu/matrix.hpp"

#include <cstring>

#include "kernels/pack.h"
#include "runtime/base/check.hpp"
#include "runtime/choose/sources.hpp"

namespace q4::gpu {
namespace {

std::vector<std::uint8_t> pack_meta(const MatrixSource& s) {
  const int k = static_cast<int>(s.order.k), n = static_cast<int>(s.n), unit = static_cast<int>(s.order.unit);
  std::vector<std::uint8_t> meta(static_cast<std::size_t>(meta_bytes(k, n, unit)), 0);
  for (int set = 0; set < sets(k, unit); ++set) {
    const std::int64_t group = s.order.group[static_cast<std::size_t>(set)];
    if (group < 0) continue;  // a unit of padding
    const auto* scales = s.scales.data() + group * s.n;
    const auto* zeros = s.zeros.data() + group * s.n;
    for (int col = 0; col < n; ++col) {
      const int strip = col / kStripColumns, tile = col % kStripColumns / kTileColumns, g = col % 8,
                second = col / 8 % 2;
      std::uint8_t* to = meta.data() + meta_offset(k, unit, strip, set);
      std::memcpy(to + scale_offset(tile, g) + 2 * second, &scales[col], 2);
      to[zero_offset(tile, g)] |= static_cast<std::uint8_t>(zeros[col] << (4 * second));
    }
  }
  return meta;
}

}  // namespace

Matrix::Matrix(std::shared_ptr<Driver> driver, Kernels& kernels, const MatrixSource& s) : MatrixShape(s), bias(s.bias) {
  if (packed_k > INT32_MAX || n > INT32_MAX)
    fail(ErrorCode::kUnsupported, "QuantizedMatrix: k = {} (packed {}) or n = {} exceeds {}: split the matrix", k,
         packed_k, n, INT32_MAX);
  const std::int64_t words = s.k / 8 * s.n;
  Buffer uploaded;
  const std::uint32_t* qweight = s.qweight;
  if (!s.qweight_on_device) {
    uploaded = Buffer(driver, s.qweight, static_cast<std::size_t>(words) * 4);
    qweight = uploaded.as<std::uint32_t>();
  }
  if (mapped) x_map = Buffer(driver, s.order.source.data(), s.order.source.size() * 4);
  const auto host_meta = pack_meta(s);
  meta = Buffer(driver, host_meta.data(), host_meta.size());
  codes = Buffer(driver, static_cast<std::size_t>(codes_bytes(static_cast<int>(packed_k), static_cast<int>(n))));

  const auto function = kernels.keep(choose::pack_source(s.awq));
  PackArgs args{qweight,
                x_map.as<const i32>(),
                codes.as<u32>(),
                static_cast<i32>(s.k),
                static_cast<i32>(packed_k),
                static_cast<i32>(n)};
  void* parameters[] = {&args};
  LaunchShape shape;
  shape.blocks = pack_blocks(args.k, args.n);
  shape.threads = pack_threads();
  driver->launch(*function, shape, nullptr, parameters);
  driver->synchronize();
}

}  // namespace q4::gpu
