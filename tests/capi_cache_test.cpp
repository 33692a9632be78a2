// The cache through the C ABI: options, events, counters and warm-up, on the CPU and on the fake GPU.
#include <q4/q4.h>

#include <doctest/doctest.h>
#include <sys/wait.h>

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "bad_input.hpp"
#include "cache_support.hpp"
#include "paths.hpp"
#include "runtime/backends/cuda/nvrtc.hpp"

namespace q4::cache {
namespace {

struct Seen {  // events come from any thread
  std::atomic<int> events = 0, progress = 0, cancels = 0, compiled = 0;
  std::atomic<bool> whole = true;
};

void see_event(void* user, const q4_cache_event* event) {
  auto& seen = *static_cast<Seen*>(user);
  ++seen.events;
  seen.compiled += event->layer == Q4_LAYER_COMPILER;
  seen.whole = seen.whole && event->size == sizeof *event && std::strlen(event->key) == 64 && *event->kernel &&
               std::strcmp(event->target, "sm_90a") == 0 && event->missed && event->error && event->from;
}

q4_runtime_options options_for(const char* folder, Seen& seen) {
  q4_runtime_options options = {};
  options.size = sizeof options;
  options.cache_dir = folder;
  options.cache_event = see_event;
  options.cache_event_user = &seen;
  return options;
}

int warm_gpu(const std::string& folder, const std::string& pack) {
  Seen seen;
  q4_runtime_options options = options_for(folder.c_str(), seen);
  const char* packs[] = {pack.c_str()};
  options.packs = packs, options.pack_count = pack.empty() ? 0 : 1;
  if (!pack.empty()) options.cache_mode = Q4_CACHE_REQUIRE_PREBUILT;
  q4_runtime* runtime = nullptr;
  if (q4_runtime_create(&options, &runtime) != Q4_OK) return 1;
  q4_warmup_options warm = {};
  warm.size = sizeof warm, warm.user = &seen, warm.threads = 2;
  warm.progress = [](void* user, size_t, size_t, const q4_cache_event*) { ++static_cast<Seen*>(user)->progress; };
  warm.cancel = [](void* user) -> int32_t { return ++static_cast<Seen*>(user)->cancels < 0; };
  const q4_warmup_shape shapes[] = {{256, 512, 64, 0, 0, 0, 0}, {512, 256, 0, 1, 0, 0, 0}};
  q4_plan_options plan = {};
  plan.size = sizeof plan, plan.max_m = 2;
  q4_warmup_report report = {};
  report.size = sizeof report;
  if (q4_warmup_shapes(runtime, {Q4_CUDA, 0}, shapes, 2, &plan, &warm, &report) != Q4_OK) return 2;
  q4_cache_counts counts = {};
  counts.size = sizeof counts;
  if (q4_cache_counters(runtime, &counts) != Q4_OK) return 3;
  const bool right = report.complete && report.kernels >= 4 && report.failed == 0 && report.skipped == 0 &&
                     report.ms > 0 && seen.whole && seen.events == static_cast<int>(report.kernels) &&
                     seen.progress == seen.events && seen.cancels > 0 &&
                     seen.compiled == static_cast<int>(report.compiled) && counts.compiled == report.compiled &&
                     (pack.empty() ? counts.compiled == report.kernels : counts.pack == report.kernels);
  q4_runtime_destroy(runtime);
  return right ? 0 : 4;
}

}  // namespace

TEST_CASE("the C ABI warms a GPU up, from the compiler and from a pack") {
  if (const cuda::Nvrtc nvrtc; !nvrtc.available()) return test::skip("warm-up by the C ABI: " + nvrtc.problem());
  TempFolder s;
  const auto on_fake_gpu = [&](const std::string& pack) {
    return finish(start([&] {
      ::setenv("Q4_CUDA_DRIVER", q4::test::fake_cuda().c_str(), 1);
      return warm_gpu(s / (pack.empty() ? "k" : "none"), pack);
    }));
  };
  CHECK(on_fake_gpu("") == 0);
  REQUIRE(run_tool("q4-cache pack --cache-dir " + (s / "k") + " --out " + (s / "p.q4pack")).status == 0);
  CHECK(on_fake_gpu(s / "p.q4pack") == 0);
}

TEST_CASE("the C ABI's cache options: lists, keys and what is wrong with them") {
  TempFolder s;
  Seen seen;
  const std::string folder = s / "k";
  q4_runtime_options options = options_for(folder.c_str(), seen);
  q4_runtime* runtime = nullptr;
  const auto rejected = [&](const test::Words& words) {
    CHECK(q4_runtime_create(&options, &runtime) == Q4_INVALID_ARGUMENT);
    CHECK_MESSAGE(test::lacking(q4_last_error(), words).empty(), std::string(q4_last_error()));
  };
  options.pack_count = 1;
  rejected({"options.packs", "1"});
  const char* const holes[] = {"x.q4pack", nullptr};
  options.packs = holes, options.pack_count = 2;
  rejected({"options.packs[1]", "null"});
  options.packs = nullptr, options.pack_count = 0, options.cache_folder_count = 3;
  rejected({"options.cache_folders", "3"});
  options.cache_folder_count = 0;
  options.size = offsetof(q4_runtime_options, cache_folders);  // a caller of the first q4.h
  REQUIRE(q4_runtime_create(&options, &runtime) == Q4_OK);
  const q4_warmup_shape shape = {256, 64, 0, 0, 0, 0, 0}, bad = {12, 64, 0, 0, 0, 0, 0};
  q4_warmup_report report = {};
  report.size = sizeof report;
  CHECK(q4_warmup_shapes(runtime, {Q4_CPU, 0}, &shape, 1, nullptr, nullptr, &report) == Q4_OK);
  CHECK((report.complete && report.kernels == 0));
  CHECK(q4_warmup_shapes(runtime, {Q4_CPU, 0}, &shape, 1, nullptr, nullptr, nullptr) == Q4_OK);
  CHECK(q4_warmup_shapes(runtime, {Q4_CPU, 0}, nullptr, 1, nullptr, nullptr, &report) == Q4_INVALID_ARGUMENT);
  CHECK(q4_warmup_shapes(runtime, {Q4_CPU, 0}, &bad, 1, nullptr, nullptr, &report) == Q4_INVALID_ARGUMENT);
  CHECK_MESSAGE(contains(q4_last_error(), "k = 12"), std::string(q4_last_error()));
  CHECK(q4_warmup_shapes(runtime, {Q4_CUDA, 77}, &shape, 1, nullptr, nullptr, &report) == Q4_NOT_FOUND);
  CHECK(q4_warmup_checkpoint(runtime, {Q4_CPU, 0}, 12345, nullptr, nullptr, &report) == Q4_INVALID_ARGUMENT);
  CHECK(q4_cache_counters(runtime, nullptr) == Q4_INVALID_ARGUMENT);
  q4_runtime_destroy(runtime);
}

}  // namespace q4::cache
