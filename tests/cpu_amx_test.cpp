// The AMX kernels, on a model of the tiles where the processor has none: every
// path of rows, segments, zeros and terms.
#include <doctest/doctest.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "amx_model.hpp"
#include "cpu_device.hpp"
#include "report.hpp"
#include "runtime/backends/cpu/packed.hpp"
#include "runtime/backends/cpu/plan.hpp"

namespace q4::test {
namespace {

/// Kernels for AVX-512 with the modelled AMX; null where the processor lacks
/// AVX-512 with BF16, which it says.
const cpu::Kernels* modelled() {
  static const auto kKernels = []() -> std::optional<cpu::Kernels> {
    try {
      cpu::Kernels kernels = cpu::select_kernels("avx512_bf16");
      if (cpu::modelled_amx_kernels(kernels)) return kernels;
    } catch (const Error&) {}
    return std::nullopt;
  }();
  if (!kKernels) skip("the AMX model: this processor or build has no AVX-512 BF16");
  return kKernels ? &*kKernels : nullptr;
}

/// A matrix and its products by the modelled AMX, with any number of threads.
struct Modelled {
  cpu::Kernels kernels = *modelled();
  CpuDevice cpu{1};
  std::shared_ptr<MemoryLedger> ledger = std::make_shared<MemoryLedger>();
  Packed packed;
  explicit Modelled(const MatrixSpec& spec) : packed(pack(*cpu.device, spec)) {
    ledger->open({}, {}, nullptr, {cpu::allocate_aligned, std::free});
  }

  HostRows product(int threads, const PlanOptions& options, std::int64_t m, const void* x, std::int64_t x_stride) {
    cpu::ThreadPool pool(threads);
    const cpu::CpuPlan plan(std::static_pointer_cast<const cpu::CpuMatrix>(packed.matrix), kernels, pool, ledger,
                            options, nullptr);
    HostRows out(options.activation, m, packed.plain.n, packed.plain.n + 16);
    plan.run(nullptr, x, x_stride, out.data(), out.row_stride(), m, nullptr, {});
    CHECK(out.padding_intact());
    CHECK(amx_faults() == 0);
    return out;
  }
  HostRows product(int threads, const PlanOptions& options, const HostRows& x) {
    return product(threads, options, x.rows(), x.data(), x.row_stride());
  }
};

MatrixSpec spec_of(std::int64_t k, std::int64_t n, std::int64_t group = 128) {
  MatrixSpec spec;
  spec.k = k, spec.n = n, spec.group_size = group;
  return spec;
}

}  // namespace

TEST_CASE("cpu amx model: exact for every number of rows, group and type, with symmetric zeros and others") {
  if (!modelled()) return;
  for (const std::int64_t group : {32, 64, 128, -1}) {
    for (const bool symmetric : {false, true}) {
      MatrixSpec spec = spec_of(416, 104, group);
      spec.stored_zeros = symmetric ? StoredZeros::kSymmetric : StoredZeros::kRandom;
      Modelled amx(spec);
      for (const std::int64_t m : {1, 2, 5, 16, 17, 32, 33, 70}) {
        for (const DType type : {DType::kF16, DType::kBF16, DType::kF32}) {
          const HostRows x = random_rows(type, m, spec.k, 7, spec.k + 8);
          CAPTURE(group);
          CAPTURE(m);
          CAPTURE(std::string(to_string(type)));
          const HostRows out = amx.product(2, options_for(m, type, "cpu-amx math=bf16"), x);
          CHECK(relative_error(out, product(x, amx.packed.plain)) <= tolerance(type));
        }
      }
    }
  }
}

TEST_CASE("cpu amx model: the same bits for any number of threads, and for all m where that is promised") {
  if (!modelled()) return;
  for (const MatrixSpec& spec : {spec_of(4096, 72), spec_of(512, 712)}) {  // parts of k; halves of tiles
    Modelled amx(spec);
    for (const DType type : {DType::kF16, DType::kBF16}) {
      const HostRows x = random_rows(type, 40, spec.k);
      PlanOptions options = options_for(40, type);
      options.batch_invariant = true;
      const HostRows all = amx.product(3, options, x);
      for (const std::int64_t m : {1, 16, 40}) {
        HostRows some(type, m, spec.k);
        std::memcpy(some.data(), x.data(), static_cast<std::size_t>(m * spec.k) * 2);
        const HostRows out = amx.product(3, options, some);
        for (std::int64_t row = 0; row < m; ++row)
          CHECK(std::memcmp(static_cast<const char*>(out.data()) + row * out.row_stride() * 2,
                            static_cast<const char*>(all.data()) + row * all.row_stride() * 2,
                            static_cast<std::size_t>(spec.n) * 2) == 0);
        const HostRows expected = amx.product(1, options_for(m, type), some);
        for (const int threads : {2, 5, 16})
          CHECK(same_bits(amx.product(threads, options_for(m, type), some), expected));
      }
    }
  }
}

TEST_CASE("cpu amx model: bf16 rows are multiplied where they lie, with the bits of packed ones") {
  if (!modelled()) return;
  const std::int64_t k = 512, stride = k + 96;
  Modelled amx(spec_of(k, 200));
  for (const std::int64_t m : {1, 5, 15, 16, 17, 32, 64}) {
    const HostRows x = random_rows(DType::kBF16, m, k, 7, stride);
    std::vector<std::byte> bytes(x.bytes() + 128);  // no row after the last
    std::byte* const line = bytes.data() + (64 - reinterpret_cast<std::uintptr_t>(bytes.data()) % 64) % 64;
    std::memcpy(line, x.data(), x.bytes());
    if (m != 17) amx.kernels.pack_x_amx = nullptr;  // a call would crash
    const HostRows in_place = amx.product(3, options_for(m, DType::kBF16, "cpu-amx math=bf16"), m, line, stride);
    CHECK(relative_error(in_place, product(x, amx.packed.plain)) <= tolerance(DType::kBF16));
    amx.kernels = *modelled();
    std::memcpy(line + 16, x.data(), x.bytes());
    CHECK(same_bits(amx.product(3, options_for(m, DType::kBF16, "cpu-amx math=bf16"), m, line + 16, stride), in_place));
  }
}

TEST_CASE("cpu amx model: digits on tiles have the bits of digits in registers") {
  if (!modelled()) return;
  for (const std::int64_t group : {32, 64, 128, -1}) {
    for (const std::int64_t k : {416, 4096}) {  // a block that is not full; parts of k
      MatrixSpec spec = spec_of(k, 104, group);
      spec.stored_zeros = StoredZeros::kRandom;
      Modelled amx(spec);
      for (const std::int64_t m : {1, 2, 3, 5, 6, 13}) {
        for (const DType type : {DType::kF16, DType::kBF16, DType::kF32}) {
          const HostRows x = random_rows(type, m, spec.k, 7, spec.k + 8);
          CAPTURE(group);
          CAPTURE(m);
          CAPTURE(std::string(to_string(type)));
          const HostRows out = amx.product(2, options_for(m, type, "cpu-amx math=digits"), x);
          CHECK(relative_error(out, product(x, amx.packed.plain)) <= tolerance(type));
          CHECK(same_bits(out, amx.product(3, options_for(m, type, "cpu-direct math=digits"), x)));
        }
      }
    }
  }
}

TEST_CASE("cpu amx model: where tuning kept the default, every number of rows keeps its own") {
  if (!modelled()) return;
  Modelled amx(spec_of(512, 200));
  cpu::ThreadPool pool(2);
  const auto matrix = std::static_pointer_cast<const cpu::CpuMatrix>(amx.packed.matrix);
  const auto tactic = [&](const char* at_eight, std::int64_t m) {
    TuningRecord record;
    record.buckets = {{8, at_eight}};
    return cpu::CpuPlan(matrix, amx.kernels, pool, amx.ledger, options_for(8, DType::kF16), &record).tactic(m);
  };
  CHECK(tactic("cpu-amx math=bf16", 5) == "cpu-amx math=digits");
  CHECK(tactic("cpu-amx math=bf16", 8) == "cpu-amx math=bf16");
  CHECK(tactic("cpu-direct math=fp32", 5) == "cpu-direct math=fp32");
}

TEST_CASE("cpu amx model: k in parts for several tiles of a task, where x does not fit the cache") {
  if (!modelled()) return;
  Modelled amx(spec_of(8192, 1032));  // 17 tiles: parts for two threads, none for sixteen
  const HostRows x = random_rows(DType::kF16, 70, amx.packed.plain.k);
  const HostRows whole = amx.product(16, options_for(70, DType::kF16), x);
  CHECK(relative_error(whole, product(x, amx.packed.plain)) <= tolerance(DType::kF16));
  CHECK(same_bits(amx.product(2, options_for(70, DType::kF16), x), whole));
}

}  // namespace q4::test
