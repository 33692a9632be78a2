// The AMX kernels, on a model of the tiles where the processor has none: every path of rows, segments, zeros and terms.
#include <doctest/doctest.h>

#include <cstdlib>
#include <memory>
#include <optional>

#include "amx_model.hpp"
#include "cpu_device.hpp"
#include "report.hpp"
#include "runtime/backends/cpu/packed.hpp"
#include "runtime/backends/cpu/plan.hpp"

namespace q4::test {
namespace {

/// Kernels for AVX-512 with the modelled AMX; none where the processor lacks AVX-512 with BF16.
std::optional<cpu::Kernels> modelled() {
  try {
    cpu::Kernels kernels = cpu::select_kernels("avx512_bf16");
    if (cpu::modelled_amx_kernels(kernels)) return kernels;
  } catch (const Error&) {}
  skip("the AMX model: this processor or build has no AVX-512 BF16");
  return std::nullopt;
}

struct Modelled {
  cpu::Kernels kernels;
  cpu::ThreadPool pool;
  std::shared_ptr<MemoryLedger> ledger = std::make_shared<MemoryLedger>();
  Modelled(const cpu::Kernels& table, int threads) : kernels(table), pool(threads) {
    ledger->open({}, {}, nullptr, {cpu::allocate_aligned, std::free});
  }

  HostRows product(const Packed& packed, const PlanOptions& options, const HostRows& x, std::int64_t n) {
    const cpu::CpuPlan plan(std::static_pointer_cast<const cpu::CpuMatrix>(packed.matrix), kernels, pool, ledger,
                            options, nullptr);
    HostRows out(options.activation, x.rows(), n, n + 16);
    plan.run(nullptr, x.data(), x.row_stride(), out.data(), out.row_stride(), x.rows(), nullptr, {});
    CHECK(out.padding_intact());
    return out;
  }
};

}  // namespace

TEST_CASE("cpu amx model: exact for every number of rows, group and type, with symmetric zeros and others") {
  const auto kernels = modelled();
  if (!kernels) return;
  Modelled amx(*kernels, 2);
  CpuDevice cpu(1);
  for (const std::int64_t group : {32, 64, 128, -1}) {
    for (const bool symmetric : {false, true}) {
      MatrixSpec spec;
      spec.k = 416;
      spec.n = 104;
      spec.group_size = group;
      spec.stored_zeros = symmetric ? StoredZeros::kSymmetric : StoredZeros::kRandom;
      const Packed packed = pack(*cpu.device, spec);
      for (const std::int64_t m : {1, 2, 5, 16, 17, 32, 33, 70}) {
        for (const DType type : {DType::kF16, DType::kBF16, DType::kF32}) {
          const HostRows x = random_rows(type, m, spec.k, 7, spec.k + 8);
          CAPTURE(group);
          CAPTURE(m);
          CAPTURE(std::string(to_string(type)));
          const HostRows out = amx.product(packed, options_for(m, type, "cpu-amx math=bf16"), x, spec.n);
          CHECK(relative_error(out, product(x, packed.plain)) <= tolerance(type));
        }
      }
    }
  }
  CHECK(amx_faults() == 0);
}

TEST_CASE("cpu amx model: the same bits for any number of threads, and for all m where that is promised") {
  const auto kernels = modelled();
  if (!kernels) return;
  CpuDevice cpu(1);
  MatrixSpec spec;
  spec.k = 4096;
  spec.n = 72;
  const Packed packed = pack(*cpu.device, spec);
  for (const DType type : {DType::kF16, DType::kBF16}) {
    const HostRows x = random_rows(type, 40, spec.k);
    PlanOptions options = options_for(40, type);
    options.batch_invariant = true;
    Modelled three(*kernels, 3);
    const HostRows all = three.product(packed, options, x, spec.n);
    for (const std::int64_t m : {1, 16, 40}) {
      HostRows some(type, m, spec.k);
      std::memcpy(some.data(), x.data(), static_cast<std::size_t>(m * spec.k) * 2);
      const HostRows out = three.product(packed, options, some, spec.n);
      for (std::int64_t row = 0; row < m; ++row)
        CHECK(std::memcmp(static_cast<const char*>(out.data()) + row * out.row_stride() * 2,
                          static_cast<const char*>(all.data()) + row * all.row_stride() * 2,
                          static_cast<std::size_t>(spec.n) * 2) == 0);
      const HostRows expected = Modelled(*kernels, 1).product(packed, options_for(m, type), some, spec.n);
      for (const int threads : {2, 5, 16})
        CHECK(same_bits(Modelled(*kernels, threads).product(packed, options_for(m, type), some, spec.n), expected));
    }
  }
  CHECK(amx_faults() == 0);
}

TEST_CASE("cpu amx model: k in parts for several tiles of a task, where x does not fit the cache") {
  const auto kernels = modelled();
  if (!kernels) return;
  CpuDevice cpu(1);
  MatrixSpec spec;
  spec.k = 8192;
  spec.n = 1032;  // 17 tiles: parts for two threads, none for sixteen
  const Packed packed = pack(*cpu.device, spec);
  const HostRows x = random_rows(DType::kF16, 70, spec.k);
  const HostRows whole = Modelled(*kernels, 16).product(packed, options_for(70, DType::kF16), x, spec.n);
  CHECK(relative_error(whole, product(x, packed.plain)) <= tolerance(DType::kF16));
  CHECK(same_bits(Modelled(*kernels, 2).product(packed, options_for(70, DType::kF16), x, spec.n), whole));
  CHECK(amx_faults() == 0);
}

}  // namespace q4::test
