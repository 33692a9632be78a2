// A CPU backend of a test's own, and multiplications through it.
#pragma once

#include <doctest/doctest.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "reference.hpp"
#include "report.hpp"
#include "runtime/backends/context.hpp"
#include "runtime/backends/cpu/cpu.hpp"
#include "runtime/backends/cpu/kernels.hpp"

namespace q4::test {

/// A device of its own: `threads` threads, the best kernels or the forced ones.
struct CpuDevice {
  BackendContext context;
  std::unique_ptr<Backend> backend;
  std::shared_ptr<DeviceBackend> device;
  explicit CpuDevice(int threads = 2, const std::string& isa = {}, const ParallelFor& parallel_for = {}) {
    context.options.cpu_threads = threads;
    context.options.cpu_isa = isa;
    context.options.parallel_for = parallel_for;
    backend = make_cpu_backend(context);
    device = backend->open(0);
  }
};

inline MatrixSource source_of(const PlainMatrix& plain, const std::uint32_t* qweight, std::int64_t group_size, bool awq,
                              const std::vector<std::int32_t>& g_idx) {
  MatrixSource source;
  source.k = plain.k;
  source.n = plain.n;
  source.groups = plain.groups;
  source.group_size = group_size < 0 ? plain.k : group_size;
  source.awq = awq;
  source.qweight = qweight;
  source.zeros = plain.zeros;
  for (const double scale : plain.scales) source.scales.push_back(half_bits(scale));
  for (const double value : plain.bias) source.bias.push_back(static_cast<float>(value));
  source.g_idx = g_idx;
  source.has_bias = !source.bias.empty();
  source.order = arrange(source, source.g_idx);
  return source;
}

struct Packed {
  PlainMatrix plain;
  std::shared_ptr<const PackedMatrix> matrix;
};

inline Packed pack(DeviceBackend& device, const MatrixSpec& spec, bool awq = false) {
  const GptqMatrix gptq = make_gptq(spec);
  Packed packed{unpack(gptq.tensors()), nullptr};
  const bool ordered = spec.act_order == ActOrder::kPermuted || spec.act_order == ActOrder::kUneven;
  const AwqMatrix other = awq ? to_awq(gptq) : AwqMatrix{};
  packed.matrix = device.pack(source_of(packed.plain, awq ? other.qweight.data() : gptq.qweight.data(), spec.group_size,
                                        awq, ordered ? gptq.g_idx : std::vector<std::int32_t>{}));
  return packed;
}

inline void run(DeviceBackend& device, const Packed& packed, const PlanOptions& options, const HostRows& x,
                HostRows& out) {
  const auto plan = device.plan(packed.matrix, options, nullptr);
  plan->run(nullptr, x.data(), x.row_stride(), out.data(), out.row_stride(), x.rows(), nullptr);
}

inline PlanOptions options_for(std::int64_t m, DType type, const std::string& tactic = {}) {
  PlanOptions options;
  options.max_m = m;
  options.activation = type;
  options.tactic = tactic;
  return options;
}

inline std::vector<std::string> tactics(DeviceBackend& device, const Packed& packed, DType type) {
  return device.plan(packed.matrix, options_for(1, type), nullptr)->tactics(1);
}

inline void check_all(DeviceBackend& device, const MatrixSpec& spec, const std::vector<std::int64_t>& rows,
                      bool awq = false) {
  const Packed packed = pack(device, spec, awq);
  for (const std::int64_t m : rows) {
    for (const DType type : {DType::kF16, DType::kBF16, DType::kF32}) {
      const HostRows x = random_rows(type, m, spec.k, 7, spec.k + 8);
      const auto expected = product(x, packed.plain);
      for (const std::string& tactic : tactics(device, packed, type)) {
        HostRows out(type, m, spec.n, spec.n + 16);
        run(device, packed, options_for(m, type, tactic), x, out);
        CAPTURE(spec.k);
        CAPTURE(spec.n);
        CAPTURE(spec.group_size);
        CAPTURE(m);
        CAPTURE(std::string(to_string(type)));
        CAPTURE(tactic);
        CHECK(relative_error(out, expected) <= tolerance(type));
        CHECK(out.padding_intact());
      }
    }
  }
}

inline bool same_bits(const HostRows& a, const HostRows& b) {
  return a.bytes() == b.bytes() && std::memcmp(a.data(), b.data(), a.bytes()) == 0;
}

/// Each instruction set of this build that this processor has, forced by its name and seen to be what runs; the others
/// are shown as skipped.
template <class Body>
void for_each_isa(Body&& body) {
  int ran = 0;
  for (const std::string isa : cpu::kernel_names()) {
    std::unique_ptr<CpuDevice> cpu;
    try {
      cpu = std::make_unique<CpuDevice>(2, isa);
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::kUnsupported);
      MESSAGE("skipped: ", std::string(error.what()));
      continue;
    }
    CAPTURE(isa);
    CHECK(cpu->device->info().arch == isa);
    body(*cpu);
    ++ran;
  }
  CHECK(ran > 0);
}

}  // namespace q4::test
