// Activations as three digits each: as near to fp64 as fp32 sums are, whatever else is in the segment, for every
// instruction set, number of rows and group.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "cpu_device.hpp"

namespace q4::test {
namespace {

constexpr const char* kDigits = "cpu-direct math=digits";

bool has_digits(DeviceBackend& device, const Packed& packed) {
  const auto all = tactics(device, packed, DType::kF32);
  return std::find(all.begin(), all.end(), kDigits) != all.end();
}

/// Of elements of `out` that are further from `expected` than 2^-22 of the largest activation of each segment allows, times
/// its weights. A digit that is lost, or one with the wrong sign, is 2^-16 and more.
int wrong(const HostRows& x, const PlainMatrix& plain, const HostRows& out, std::int64_t segment) {
  const auto expected = product(x, plain);
  int count = 0;
  for (std::int64_t row = 0; row < x.rows(); ++row)
    for (std::int64_t col = 0; col < plain.n; ++col) {
      double limit = 0;
      for (std::int64_t begin = 0; begin < plain.k; begin += segment) {
        double largest = 0, weights = 0;
        for (std::int64_t i = begin; i < std::min(begin + segment, plain.k); ++i) {
          largest = std::max(largest, std::fabs(x.at(row, i)));
          weights += std::fabs(plain.weight(i, col));
        }
        limit += largest * weights * 0x1p-22;
      }
      const double want = expected[static_cast<std::size_t>(row * plain.n + col)];
      count += !(std::fabs(out.at(row, col) - want) <= limit);
    }
  return count;
}

}  // namespace

TEST_CASE("cpu digits: no digit is lost, for any rows, group and size of the activations") {
  for_each_isa([](CpuDevice& cpu) {
    for (const std::int64_t group : {16, 32, 64, 128, -1}) {
      MatrixSpec spec;
      spec.k = 392;
      spec.n = 136;
      spec.group_size = group;
      spec.bias = false;
      const Packed packed = pack(*cpu.device, spec);
      if (!has_digits(*cpu.device, packed)) return;
      for (const double size : {1.0, 0x1p-120, 0x1p100})
        for (const std::int64_t m : {1, 2, 3, 4, 5, 8, 9, 10, 17, 40}) {
          HostRows x = random_rows(DType::kF32, m, spec.k);
          for (std::int64_t row = 0; row < m; ++row)
            for (std::int64_t i = 0; i < spec.k; ++i) {  // of all sizes, a row of zeros, and the most that digits hold
              const double value = x.at(row, i) * std::ldexp(1.0, -int(i % 20));
              x.set(row, i, size * (row == 3 ? 0 : row == 1 ? (i % 2 ? 8355711 : -8355711) : value));
            }
          HostRows out(DType::kF32, m, spec.n);
          run(*cpu.device, packed, options_for(m, DType::kF32, kDigits), x, out);
          CAPTURE(group);
          CAPTURE(size);
          CAPTURE(m);
          CHECK(wrong(x, packed.plain, out, group < 0 ? 128 : group) == 0);
        }
    }
  });
}

TEST_CASE("cpu digits: a row's bits do not depend on the others") {
  for_each_isa([](CpuDevice& cpu) {
    const MatrixSpec spec{.k = 512, .n = 72};
    const Packed packed = pack(*cpu.device, spec);
    if (!has_digits(*cpu.device, packed)) return;
    const HostRows x = random_rows(DType::kF32, 20, spec.k);
    HostRows all(DType::kF32, 20, spec.n);
    run(*cpu.device, packed, options_for(20, DType::kF32, kDigits), x, all);
    for (const std::int64_t m : {1, 2, 7, 13}) {
      HostRows some(DType::kF32, m, spec.k), out(DType::kF32, m, spec.n);
      std::memcpy(some.data(), x.data(), static_cast<std::size_t>(m * spec.k) * 4);
      run(*cpu.device, packed, options_for(m, DType::kF32, kDigits), some, out);
      CHECK(std::memcmp(out.data(), all.data(), static_cast<std::size_t>(m * spec.n) * 4) == 0);
    }
  });
}

TEST_CASE("cpu digits: few rows take them where nothing better is, and never for batch_invariant plans") {
  CpuDevice cpu;
  const Packed packed = pack(*cpu.device, MatrixSpec{});
  if (!has_digits(*cpu.device, packed)) return skip("this processor has no dot products of bytes");
  PlanOptions options = options_for(512, DType::kF16);
  CHECK(cpu.device->plan(packed.matrix, options, nullptr)->tactic(1) == kDigits);
  CHECK(cpu.device->plan(packed.matrix, options, nullptr)->tactic(512) != kDigits);
  options.batch_invariant = true;
  CHECK(cpu.device->plan(packed.matrix, options, nullptr)->tactic(1) != kDigits);
}

}  // namespace q4::test
