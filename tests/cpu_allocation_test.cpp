// run() on the CPU asks for no memory, from the first run on: this program's malloc counts.
#include <doctest/doctest.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>

#include "cpu_device.hpp"
#include "runtime/backends/experts.hpp"

// A sanitizer has a malloc of its own; GCC and clang name it differently.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#if defined(__GLIBC__) && !defined(SANITIZED)
#define COUNTS 1
namespace {
std::atomic<bool> counting = false;
std::atomic<int> allocations = 0;
void count() noexcept {
  if (counting.load(std::memory_order_relaxed)) allocations.fetch_add(1, std::memory_order_relaxed);
}
}  // namespace

extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_memalign(std::size_t, std::size_t);
void* malloc(std::size_t bytes) noexcept {
  count();
  return __libc_malloc(bytes);
}
int posix_memalign(void** memory, std::size_t alignment, std::size_t bytes) noexcept {
  count();
  *memory = __libc_memalign(alignment, bytes);
  return *memory == nullptr ? ENOMEM : 0;
}
void* aligned_alloc(std::size_t alignment, std::size_t bytes) noexcept {
  count();
  return __libc_memalign(alignment, bytes);
}
}
#endif

namespace q4::test {

TEST_CASE("cpu: run() allocates nothing") {
#ifdef COUNTS
  CpuDevice cpu(3);
  MatrixSpec spec;
  spec.k = 512;
  spec.n = 200;
  spec.act_order = ActOrder::kPermuted;
  const Packed packed = pack(*cpu.device, spec);
  counting = true;
  (void)Buffer(cpu.device, 100);
  const bool counted = allocations > 0;
  counting = false;
  CHECK(counted);
  for (const DType type : {DType::kF16, DType::kBF16, DType::kF32}) {
    for (const std::int64_t m : {1, 5, 33, 600}) {
      const HostRows x = random_rows(type, m, spec.k);
      HostRows out(type, m, spec.n);
      for (const Math math : {Math::kAuto, Math::kInt8}) {
        PlanOptions options = options_for(m, type);
        options.math = math;
        for (const std::string& tactic : cpu.device->plan(packed.matrix, options, nullptr)->tactics(m)) {
          if (tactic == "reconstruct+blas") continue;  // the BLAS does as it likes
          options.tactic = tactic;
          const auto plan = cpu.device->plan(packed.matrix, options, nullptr);
          allocations = 0;
          counting = true;
          for (int i = 0; i < 3; ++i)
            plan->run(nullptr, x.data(), x.row_stride(), out.data(), out.row_stride(), m, nullptr);
          counting = false;
          CAPTURE(tactic);
          CAPTURE(m);
          CHECK(allocations == 0);
        }
      }
    }
  }
#else
  skip("counting needs glibc's malloc");
#endif
}

TEST_CASE("cpu: run() of experts allocates nothing") {
#ifdef COUNTS
  CpuDevice cpu(3);
  const auto experts = [&](std::int64_t k, std::int64_t n, bool gate_up) {
    std::shared_ptr<PackedExperts> made;
    for (std::uint64_t e = 0; e < 4; ++e) {
      const GptqMatrix gptq = make_gptq({.k = k, .n = n, .act_order = ActOrder::kPermuted, .seed = e + 1});
      const MatrixSource source = source_of(unpack(gptq.tensors()), gptq.qweight.data(), 128, false, gptq.g_idx);
      ExpertsShape shape;
      static_cast<MatrixShape&>(shape) = source;
      shape.experts = 4, shape.gate_up = gate_up;
      if (!made) made = cpu.device->make_experts(shape);
      made->update(static_cast<std::int64_t>(e), source, nullptr);
    }
    return made;
  };
  const std::shared_ptr<const PackedExperts> w13 = experts(512, 256, true), w2 = experts(128, 200, false);
  for (const std::int64_t tokens : {1, 40}) {
    MoeOptions options;
    options.topk = 2, options.max_tokens = tokens;
    const auto plan = cpu.device->plan_moe(w13, w2, options, nullptr);
    const HostRows x = random_rows(DType::kF16, tokens, 512);
    HostRows out(DType::kF16, tokens, 200);
    std::vector<std::int32_t> ids;
    const std::vector<float> weights(static_cast<std::size_t>(2 * tokens), 0.5f);
    for (std::int64_t s = 0; s < 2 * tokens; ++s) ids.push_back(static_cast<std::int32_t>(s % 3));
    const MoeCall call{nullptr, x.data(), 512, ids.data(), weights.data(), out.data(), 200, tokens, nullptr};
    allocations = 0;
    counting = true;
    for (int i = 0; i < 3; ++i) plan->run(call);
    counting = false;
    CAPTURE(tokens);
    CHECK(allocations == 0);
  }
#else
  skip("counting needs glibc's malloc");
#endif
}

}  // namespace q4::test
