// Infinite, NaN and very large activations on the CPU: the result that fp64 gives, rounded once, on every instruction
// set and path.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "cpu_device.hpp"

namespace q4::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double largest(DType type) {
  return type == DType::kF16    ? 65504
         : type == DType::kBF16 ? bf16_value(0x7F7F)
                                : double(std::numeric_limits<float>::max());
}

enum Row { kNormal, kPlus, kMinus, kBoth, kNan, kSteady, kAlternating, kInfiniteEverywhere, kRows };

/// Rows of every kind; the large ones cancel in part, so that `scale` decides whether their sums are finite.
HostRows extreme_rows(DType type, std::int64_t k) {
  HostRows x = random_rows(type, kRows, k);
  x.set(kPlus, k / 2, kInfinity);
  x.set(kMinus, k - 1, -kInfinity);
  x.set(kBoth, 0, kInfinity), x.set(kBoth, k / 3, -kInfinity);
  x.set(kNan, 5, std::nan(""));
  for (std::int64_t i = 0; i < k; ++i) {
    x.set(kSteady, i, largest(type));
    x.set(kAlternating, i, i % 2 == 0 ? largest(type) : -largest(type));
    x.set(kInfiniteEverywhere, i, kInfinity);
  }
  return x;
}

/// Elements of `out` that are not what `expected` [kRows, n] says; counts what it was.
struct Kinds {
  int finite = 0, infinite = 0, nan = 0;
};
int wrong(const HostRows& x, const PlainMatrix& plain, const HostRows& out, DType type, Kinds& kinds) {
  const auto expected = product(x, plain);
  int count = 0;
  for (std::int64_t row = 0; row < kRows; ++row)
    for (std::int64_t col = 0; col < plain.n; ++col) {
      const double want = expected[static_cast<std::size_t>(row * plain.n + col)], got = out.at(row, col);
      if (std::isnan(want)) {
        ++kinds.nan, count += !std::isnan(got);
      } else if (std::fabs(want) > largest(type) * 1.01) {
        ++kinds.infinite, count += !(std::isinf(got) && std::signbit(got) == std::signbit(want));
      } else if (std::fabs(want) < largest(type) * 0.99) {  // where it rounds to in between is its tolerance's
        double size = 0;
        for (std::int64_t i = 0; i < plain.k; ++i) size += std::fabs(x.at(row, i) * plain.weight(i, col));
        ++kinds.finite, count += !(std::fabs(got - want) <= tolerance(type) * std::fabs(want) * 4 + 1e-6 * size);
      }
    }
  return count;
}

/// Every type and path, with scales that keep the large sums finite, and with scales that do not.
void check_extremes(DeviceBackend& device, MatrixSpec spec) {
  for (const double scale : {1e-4, 1.0}) {
    spec.scale = scale;
    const Packed packed = pack(device, spec);
    for (const DType type : {DType::kF16, DType::kBF16, DType::kF32}) {
      const HostRows x = extreme_rows(type, spec.k);
      for (const std::string& tactic : tactics(device, packed, type)) {
        HostRows out(type, kRows, spec.n);
        run(device, packed, options_for(kRows, type, tactic), x, out);
        CAPTURE(spec.k);
        CAPTURE(scale);
        CAPTURE(std::string(to_string(type)));
        CAPTURE(tactic);
        Kinds kinds;
        CHECK(wrong(x, packed.plain, out, type, kinds) == 0);
        CHECK(kinds.finite > spec.n);
        CHECK(kinds.infinite > spec.n);
        CHECK(kinds.nan > spec.n);
      }
    }
  }
}

TEST_CASE("cpu: infinite, NaN and very large activations give what fp64 gives") {
  for_each_isa([](CpuDevice& cpu) {
    check_extremes(*cpu.device, {.k = 256, .n = 64, .group_size = 32});
    check_extremes(*cpu.device, {.k = 400, .n = 72, .group_size = 128, .act_order = ActOrder::kPermuted, .bias = true});
  });
}

TEST_CASE("cpu: a row that is computed again leaves the others' bits as they are") {
  CpuDevice cpu;
  const Packed packed = pack(*cpu.device, {.k = 256, .n = 200});
  const HostRows x = extreme_rows(DType::kF16, 256), plain_x = random_rows(DType::kF16, kRows, 256);
  for (const bool invariant : {false, true}) {
    PlanOptions options = options_for(kRows, DType::kF16);
    options.batch_invariant = invariant;
    HostRows out(DType::kF16, kRows, 200), plain_out(DType::kF16, kRows, 200);
    run(*cpu.device, packed, options, x, out);
    run(*cpu.device, packed, options, plain_x, plain_out);
    for (std::int64_t col = 0; col < 200; ++col) CHECK(out.at(kNormal, col) == plain_out.at(kNormal, col));
  }
}

}  // namespace
}  // namespace q4::test
