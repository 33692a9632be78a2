// Every instruction set of the CPU backend that this processor can run: forced, seen to run, and exact.
#include <doctest/doctest.h>

#include <cmath>
#include <cstdlib>

#include "cpu_device.hpp"

namespace q4::test {

TEST_CASE("cpu: each instruction set that this processor has") {
  for_each_isa([](CpuDevice& cpu) {
    for (const std::int64_t group : {16, 128}) {
      MatrixSpec spec;
      spec.k = 400;
      spec.n = 104;
      spec.group_size = group;
      spec.act_order = group == 16 ? ActOrder::kPermuted : ActOrder::kNone;
      check_all(*cpu.device, spec, {1, 2, 3, 6, 13, 40});
    }
  });
}

TEST_CASE("cpu: each instruction set reads and writes fp16 and bf16 as they are") {
  for_each_isa([](CpuDevice& cpu) {
    // One column that is 1 in row 0 and 0 elsewhere: out = x[0], through load and store alone.
    MatrixSpec spec;
    spec.k = 8;
    spec.n = 8;
    spec.group_size = 8;
    const GptqMatrix gptq = make_gptq(spec);
    PlainMatrix plain = unpack(gptq.tensors());
    std::vector<std::uint32_t> codes(8, 1u);
    std::fill(plain.zeros.begin(), plain.zeros.end(), std::uint8_t{0});
    std::fill(plain.scales.begin(), plain.scales.end(), 1.0);
    const std::shared_ptr<const PackedMatrix> matrix = cpu.device->pack(source_of(plain, codes.data(), 8, false, {}));
    for (const DType type : {DType::kF16, DType::kBF16}) {
      constexpr int kRows = 512;
      const auto plan = cpu.device->plan(matrix, options_for(kRows, type, "cpu-direct math=fp32"), nullptr);
      std::vector<std::uint16_t> x(kRows * 8), out(kRows * 8);
      int wrong = 0;
      constexpr int kStep = 37;  // of bit patterns: all exponents and last digits, some of each
      for (int first = 0; first < 0x10000; first += kRows * kStep) {
        for (int row = 0; row < kRows; ++row) x[std::size_t(row) * 8] = std::uint16_t(first + row * kStep);
        plan->run(nullptr, x.data(), 8, out.data(), 8, kRows, nullptr);
        for (int row = 0; row < kRows; ++row) {
          const std::uint16_t in = x[std::size_t(row) * 8];
          const double value = type == DType::kF16 ? half_value(in) : bf16_value(in);
          if (std::isinf(value) || std::fabs(value) > 0x1p120) continue;  // the sums are up to 15 times larger
          for (int column = 0; column < 8; ++column) {
            const std::uint16_t bits = out[std::size_t(row * 8 + column)];
            const double got = type == DType::kF16 ? half_value(bits) : bf16_value(bits);
            wrong += std::isnan(value) ? !std::isnan(got) : got != value;
          }
        }
      }
      CHECK(wrong == 0);
    }
  });
}

TEST_CASE("cpu: an instruction set that cannot run is refused by name, from the option and the environment") {
  try {
    CpuDevice(1, "avx9000");
    FAIL("accepted");
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::kUnsupported);
    CHECK(std::string(error.what()).find("avx9000") != std::string::npos);
    CHECK(std::string(error.what()).find("portable") != std::string::npos);
  }
  setenv("Q4_CPU_ISA", "portable", 1);
  CHECK(CpuDevice().device->info().arch == "portable");
  setenv("Q4_CPU_ISA", "avx9000", 1);
  CHECK_THROWS_AS(CpuDevice(), Error);
  CHECK(CpuDevice(2, "portable").device->info().arch == "portable");
  unsetenv("Q4_CPU_ISA");
}

}  // namespace q4::test
