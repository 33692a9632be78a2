// Activations quantized to 8 bits: what they compute exactly, how far from the truth that is, and that nobody gets them
// unasked.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "cpu_device.hpp"

namespace q4::test {
namespace {

PlanOptions int8_options(std::int64_t m, DType type) {
  PlanOptions options = options_for(m, type);
  options.math = Math::kInt8;
  return options;
}

/// Rows that 8 bits hold exactly: in each segment integers of up to 127, and one that is 127, times a power of two.
HostRows exact_rows(std::int64_t m, std::int64_t k, std::int64_t segment) {
  Random random(5);
  HostRows x(DType::kF32, m, k);
  for (std::int64_t row = 0; row < m; ++row)
    for (std::int64_t col = 0; col < k; ++col)
      x.set(row, col,
            std::ldexp(col % segment == row % 7 ? -127 : double(random.below(255) - 127), int(col / segment)));
  return x;
}

}  // namespace

TEST_CASE("cpu int8: every instruction set is exact where 8 bits hold the activations") {
  for_each_isa([](CpuDevice& cpu) {
    for (const std::int64_t group : {16, 32, 64, 128, 256}) {
      MatrixSpec spec;
      spec.k = 768;
      spec.n = 136;
      spec.group_size = group;
      spec.bias = group == 64;
      const Packed packed = pack(*cpu.device, spec);
      for (const std::int64_t m : {1, 2, 5, 12, 13, 40}) {
        const HostRows x = exact_rows(m, spec.k, std::min<std::int64_t>(group, 128));
        HostRows out(DType::kF32, m, spec.n);
        run(*cpu.device, packed, int8_options(m, DType::kF32), x, out);
        CAPTURE(group);
        CAPTURE(m);
        CHECK(relative_error(out, product(x, packed.plain)) <= 1e-6);
      }
    }
  });
}

TEST_CASE("cpu int8: the error that is stated, with tails and act-order") {
  CpuDevice cpu;
  for (const ActOrder order : {ActOrder::kNone, ActOrder::kPermuted, ActOrder::kUneven}) {
    for (const std::int64_t group : {32, 128}) {
      MatrixSpec spec;
      spec.k = 1000;
      spec.n = 72;
      spec.group_size = group;
      spec.act_order = order;
      if (order != ActOrder::kNone) spec.k = 1024;
      const Packed packed = pack(*cpu.device, spec);
      for (const DType type : {DType::kF16, DType::kBF16, DType::kF32}) {
        const HostRows x = random_rows(type, 30, spec.k);
        HostRows out(type, 30, spec.n);
        run(*cpu.device, packed, int8_options(30, type), x, out);
        const double error = relative_error(out, product(x, packed.plain));
        CAPTURE(group);
        CAPTURE(error);
        CHECK(error <= 8e-3);
        CHECK(error >= 1e-3);  // or it would not have been quantized
      }
    }
  }
}

TEST_CASE("cpu int8: rows do not depend on the batch nor on the number of threads") {
  MatrixSpec spec;
  spec.k = 384;
  spec.n = 200;
  const HostRows x = random_rows(DType::kF16, 100, spec.k);
  HostRows first;
  for (int threads = 1; threads <= 3; ++threads) {
    CpuDevice cpu(threads);
    const Packed packed = pack(*cpu.device, spec);
    const auto plan = cpu.device->plan(packed.matrix, int8_options(100, DType::kF16), nullptr);
    HostRows all(DType::kF16, 100, spec.n), some(DType::kF16, 100, spec.n);
    plan->run(nullptr, x.data(), spec.k, all.data(), spec.n, 100, nullptr);
    if (threads == 1) first = all;
    CHECK(same_bits(all, first));
    for (const std::int64_t m : {1, 3, 5, 14, 33}) {
      plan->run(nullptr, x.data(), spec.k, some.data(), spec.n, m, nullptr);
      CHECK(std::memcmp(some.data(), all.data(), static_cast<std::size_t>(m * spec.n) * 2) == 0);
    }
  }
}

TEST_CASE("cpu int8: zeros give zeros, infinity and NaN reach their rows alone") {
  CpuDevice cpu;
  MatrixSpec spec;
  const Packed packed = pack(*cpu.device, spec);
  HostRows x = random_rows(DType::kF32, 6, spec.k), out(DType::kF32, 6, spec.n);
  for (std::int64_t col = 0; col < spec.k; ++col) x.set(1, col, 0), x.set(4, col, 1e-44);
  x.set(2, 200, std::numeric_limits<double>::infinity());
  x.set(3, 5, std::numeric_limits<double>::quiet_NaN());
  run(*cpu.device, packed, int8_options(6, DType::kF32), x, out);
  for (std::int64_t col = 0; col < spec.n; ++col) {
    CHECK(std::isfinite(out.at(0, col)));
    CHECK(out.at(1, col) == 0);
    CHECK(std::isnan(out.at(2, col)));
    CHECK(std::isnan(out.at(3, col)));
    CHECK(std::fabs(out.at(4, col)) < 1e-40);
    CHECK(std::isfinite(out.at(5, col)));
  }
}

TEST_CASE("cpu int8: only for those who ask") {
  CpuDevice cpu;
  const Packed packed = pack(*cpu.device, MatrixSpec{});
  const std::string name = "cpu-direct math=int8";
  for (const DType type : {DType::kF16, DType::kBF16, DType::kF32})
    for (const std::string& tactic : tactics(*cpu.device, packed, type))
      CHECK(tactic.find("int8") == std::string::npos);
  CHECK_THROWS_AS(cpu.device->plan(packed.matrix, options_for(1, DType::kF16, name), nullptr), Error);
  const auto plan = cpu.device->plan(packed.matrix, int8_options(64, DType::kF16), nullptr);
  for (const std::int64_t m : {1, 7, 64}) {
    CHECK(plan->tactic(m) == name);
    for (const std::string& tactic : plan->tactics(m)) CHECK(tactic.starts_with(name));
  }
  TuningRecord record;  // measured without quantization
  record.reconstruct_from = 4;
  record.buckets = {{8, "cpu-panel math=fp32"}};
  CHECK(cpu.device->plan(packed.matrix, int8_options(64, DType::kF16), &record)->tactic(8) == name);
}

}  // namespace q4::test
