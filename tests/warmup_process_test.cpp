// Warm-up beside others: processes that start together, threads that compile, sealing, and matrices that are packed in
// place. The GPU is the fake driver's.
#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <q4/q4.hpp>
#include <thread>

#include "cache_support.hpp"
#include "fake_gpu.hpp"
#include "reference.hpp"
#include "report.hpp"
#include "runtime/base/processors.hpp"
#include "runtime/cache/compile_slot.hpp"
#include "runtime/runtime.hpp"
#include "temp_folder.hpp"

namespace q4::cache {
namespace {

using std::chrono::milliseconds;
using test::make_gptq;

}  // namespace

TEST_CASE("warmup: processes that start together on an empty folder compile each kernel once") {
  if (compiler_absent("warmup beside others")) return;
  const char* wanted = std::getenv("Q4_WARMUP_PROCESSES");
  const int processes = wanted ? std::atoi(wanted) : 6;
  const test::TempFolder s;
  std::vector<pid_t> children;
  for (int p = 0; p < processes; ++p)
    children.push_back(start_on_fake_gpu([&] {
      const Runtime runtime(in(s / "k"));
      WarmupOptions options;
      options.plan.max_m = 2;
      const auto report = runtime.warmup({{256, 512, 64}}, options);
      std::ofstream(s / fmt::format("{}", ::getpid()))
          << report.count(CacheLayer::kCompiler) << " " << report.kernels.size();
      return report.complete() ? 0 : 1;
    }));
  std::size_t compiled = 0, kernels = 0;
  for (const auto child : children) {
    CHECK(finish(child) == 0);
    std::size_t here = 0;
    std::ifstream(s / fmt::format("{}", child)) >> here >> kernels;
    compiled += here;
  }
  CHECK(kernels > 3);
  CHECK(compiled == kernels);
}

TEST_CASE("warmup: 64 ranks load their slices, plan and warm up from one folder, and each kernel is compiled once") {
  if (compiler_absent("warmup beside others")) return;
  constexpr int kRanks = 64;
  const test::TempFolder s;
  const auto up = make_gptq({.k = 128, .n = 8 * kRanks, .group_size = 64});
  const auto down = make_gptq({.k = 128 * kRanks, .n = 64, .group_size = 128});
  std::vector<pid_t> ranks;
  for (int rank = 0; rank < kRanks; ++rank)
    ranks.push_back(start_on_fake_gpu([&] {
      const Runtime runtime(in(s / "k"));
      const auto columns =
          QuantizedMatrix::from_gptq(runtime, kGpu, up.tensors(), {.slice = Slice::columns(rank, kRanks)});
      const auto rows = QuantizedMatrix::from_gptq(runtime, kGpu, down.tensors(), {.slice = Slice::rows(rank, kRanks)});
      const std::vector<WarmupShape> shapes = {{columns.k(), columns.n(), columns.group_size()},
                                               {rows.k(), rows.n(), rows.group_size()}};
      WarmupOptions options;
      options.plan.max_m = 2;
      Q4_CHILD_CHECK(runtime.warmup(shapes, options).complete());
      runtime.seal(Sealing::kError);
      const MatmulPlan first(runtime, columns, options.plan), second(runtime, rows, options.plan);
      const auto counters = runtime.cache_counters();
      std::ofstream(s / fmt::format("{}", ::getpid()))
          << counters.compiled << " " << counters.user_folder << " " << runtime.numerics_id(kGpu, shapes, options.plan);
      return 0;
    }));
  std::uint64_t compiled = 0, all = 0;
  std::string id;
  for (const auto rank : ranks) {
    REQUIRE(finish(rank) == 0);
    std::uint64_t here = 0, found = 0;
    std::string own;
    std::ifstream(s / fmt::format("{}", rank)) >> here >> found >> own;
    compiled += here;
    if (id.empty()) all = here + found, id = own;
    CHECK(here + found == all);  // each rank needs the same kernels
    CHECK(own == id);
  }
  CHECK(id.size() == 16);
  CHECK(all > 3);
  CHECK(compiled == all);
}

TEST_CASE("warmup: what matrices in their tensors' memory load and run compiles nothing afterwards, also sealed") {
  if (compiler_absent("warmup beside others")) return;
  const test::TempFolder s;
  CHECK(finish(start_on_fake_gpu([&] {
          const Runtime runtime(in(s / "k"));
          WarmupOptions options;
          options.plan.max_m = 32;
          WarmupShape shape{256, 512, 64};
          shape.in_place = true;
          Q4_CHILD_CHECK(runtime.warmup({shape}, options).complete());
          const auto before = runtime.cache_counters();
          const auto source = make_gptq({.k = 256, .n = 512, .group_size = 64});
          const auto backend = runtime.impl().open(kGpu);
          auto tensors = source.tensors();
          tensors.zeros = ZeroFormat::kV1;
          std::vector<Buffer> memory;
          for (TensorView* view : {&tensors.qweight, &tensors.qzeros, &tensors.scales}) {
            const auto bytes = static_cast<std::size_t>(view->rows * view->cols) * size_of(view->dtype);
            memory.emplace_back(backend, bytes);
            view->data = memory.back().get(), view->device = kGpu;
          }
          auto matrix = QuantizedMatrix::from_gptq(runtime, kGpu, tensors, {.storage = Storage::kReuse});
          Q4_CHILD_CHECK(matrix.in_place() && matrix.scales_in_place());
          const auto held = matrix.bytes();
          Q4_CHILD_CHECK(held == 0);
          const MatmulPlan plan(runtime, matrix, {.max_m = 32});
          runtime.seal(Sealing::kError);
          matrix.update(tensors);
          matrix.restore();
          const auto after = runtime.cache_counters();
          Q4_CHILD_CHECK(after.compiled == before.compiled && after.user_folder == before.user_folder);
          return 0;
        })) == 0);
}

TEST_CASE("a sealed Runtime neither compiles nor writes to the cache") {
  if (compiler_absent("warmup beside others")) return;
  const test::TempFolder s;
  CHECK(finish(start_on_fake_gpu([&] {
          std::vector<std::string> said;
          RuntimeOptions options = in(s / "k");
          options.log = [&](LogLevel level, const std::string& text) {
            if (level <= LogLevel::kWarning) said.push_back(text);
          };
          const Runtime runtime(options);
          const auto source = make_gptq({.k = 256, .n = 64, .group_size = 64});
          runtime.seal(Sealing::kError);
          try {
            (void)QuantizedMatrix::from_gptq(runtime, kGpu, source.tensors());
            return 2;
          } catch (const Error& error) { Q4_CHILD_CHECK(contains(error.what(), "the runtime is sealed")); }
          runtime.seal(Sealing::kOff);
          const auto matrix = QuantizedMatrix::from_gptq(runtime, kGpu, source.tensors());
          std::filesystem::remove_all(s / "k");
          runtime.seal(Sealing::kError);
          PlanOptions plan;
          plan.own_workspace = false;
          try {
            const MatmulPlan made(runtime, matrix, plan);
            return 3;
          } catch (const Error& error) {
            Q4_CHILD_CHECK(contains(error.what(), "is to be compiled for sm_90a and written to " + s / "k"));
          }
          Q4_CHILD_CHECK(!std::filesystem::exists(s / "k"));  // no lock file either
          runtime.seal(Sealing::kWarn);
          const MatmulPlan made(runtime, matrix, plan);
          Q4_CHILD_CHECK(said.size() == 1 && contains(said[0], "is to be compiled for sm_90a and written to"));
          return 0;
        })) == 0);
}

TEST_CASE("compiles of one process are bounded, whoever asks") {
  KernelCache cache({.mode = CacheMode::kOff}, nullptr);
  std::atomic<int> running = 0, most = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 40; ++i)
    threads.emplace_back([&, i] {
      cache.get(numbered_key(i), [&] {
        const int now = ++running;
        for (int seen = most; seen < now && !most.compare_exchange_weak(seen, now);) continue;
        std::this_thread::sleep_for(milliseconds(10));
        --running;
        return compiled(i, 10);
      });
    });
  for (auto& thread : threads) thread.join();
  CHECK(most <= std::min(usable_threads(), CompileSlot::kMost));
  CHECK(most >= 1);
  const pid_t child = start([&] {  // whatever threads of the parent hold
    cache.get(numbered_key(99), [] { return compiled(99, 10); });
    return 0;
  });
  CHECK(finish(child) == 0);
}

}  // namespace q4::cache
