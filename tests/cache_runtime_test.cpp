// The cache seen from a Runtime on a GPU, which is the fake driver's: warm-up, events, counters, dumps, fork, and what
// a process opens.
#include <doctest/doctest.h>
#include <sys/wait.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <q4/q4.hpp>
#include <set>
#include <thread>

#include "cache_support.hpp"
#include "fake_gpu.hpp"
#include "reference.hpp"
#include "report.hpp"
#include "runtime/backends/cuda/driver.hpp"
#include "runtime/jit/embedded.hpp"
#include "runtime/runtime.hpp"
#include "tools/cache/cross.hpp"

namespace q4::cache {
namespace {

namespace fs = std::filesystem;
using test::make_gptq;

const std::vector<WarmupShape> kShapes = {{256, 512, 64}, {512, 256, 128, true}};

}  // namespace

TEST_CASE("warmup: compiles once, then finds; the plans after it compile nothing") {
  if (compiler_absent("warmup")) return;
  TempFolder s;
  const int status = on_fake_gpu([&] {
    WarmupOptions options;
    options.plan.max_m = 4;
    std::size_t told = 0, total = 0;
    const auto thread = std::this_thread::get_id();
    bool here = true;
    options.progress = [&](std::size_t done, std::size_t of, const CacheEvent& event) {
      here &= std::this_thread::get_id() == thread && !event.kernel.empty() && event.target == "sm_90a";
      here &= done == ++told;
      total = of;
    };
    const Runtime first(in(s / "k"));
    const auto made = first.warmup(kShapes, options);
    Q4_CHILD_CHECK(made.complete() && here && told == made.kernels.size() && total == told);
    Q4_CHILD_CHECK(made.count(CacheLayer::kCompiler) == made.kernels.size() && made.kernels.size() >= 4);
    for (const auto& event : made.kernels) {
      Q4_CHILD_CHECK(event.compile_ms > 1 && contains(event.from, "nvrtc") && contains(event.missed, s / "k"));
      Q4_CHILD_CHECK(event.key.size() == 64);
    }
    Q4_CHILD_CHECK(first.warmup(kShapes, options).count(CacheLayer::kMemory) == made.kernels.size());

    told = 0;
    const Runtime second(in(s / "k"));
    const auto found = second.warmup(kShapes, options);
    Q4_CHILD_CHECK(found.complete() && found.count(CacheLayer::kUserFolder) == made.kernels.size());
    const auto before = second.cache_counters();
    Q4_CHILD_CHECK(before.user_folder == made.kernels.size() && before.compiled == 0 && before.lookup_ms > 0);
    for (const bool act_order : {false, true}) {
      const auto source = make_gptq({.k = act_order ? 512 : 256,
                                     .n = act_order ? 256 : 512,
                                     .group_size = act_order ? 128 : 64,
                                     .act_order = act_order ? test::ActOrder::kPermuted : test::ActOrder::kNone});
      const auto matrix = QuantizedMatrix::from_gptq(second, kGpu, source.tensors());
      const MatmulPlan plan(second, matrix, {.max_m = 4});
      (void)plan.tactic(1);
    }
    const auto after = second.cache_counters();
    Q4_CHILD_CHECK(after.compiled == 0 && after.failed == 0 && after.user_folder == before.user_folder);
    Q4_CHILD_CHECK(after.memory > before.memory);
    return 0;
  });
  CHECK(status == 0);
}

TEST_CASE("warmup: failures, deadline, cancel and bad arguments") {
  TempFolder s;
  const int status = on_fake_gpu([&] {
    RuntimeOptions prebuilt = in(s / "none");
    prebuilt.cache_mode = CacheMode::kRequirePrebuilt;
    std::atomic<int> asked = 0;
    std::atomic<bool> slow = false;  // then no kernel is done before the second question, nor all soon after it
    prebuilt.cache_event = [&](const CacheEvent&) {
      while (slow && asked < 2) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      if (slow) std::this_thread::sleep_for(std::chrono::milliseconds(20));
    };
    const Runtime runtime(prebuilt);
    WarmupOptions options;
    options.plan.max_m = 4;
    const auto failed = runtime.warmup(kShapes, options);
    Q4_CHILD_CHECK(!failed.complete() && failed.count(CacheLayer::kNone) == failed.kernels.size());
    for (const auto& event : failed.kernels)
      Q4_CHILD_CHECK(contains(event.error, event.key) && contains(event.error, s / "none") && !event.kernel.empty());
    Q4_CHILD_CHECK(runtime.cache_counters().failed == failed.kernels.size());

    options.deadline_s = 1e-9;
    const auto late = runtime.warmup(kShapes, options);
    Q4_CHILD_CHECK(late.past_deadline && !late.complete() && late.skipped == failed.kernels.size());
    options.deadline_s = 0, options.threads = 1;
    options.cancel = [&] { return ++asked == 2; };
    slow = true;
    const auto cancelled = runtime.warmup(kShapes, options);
    slow = false;
    Q4_CHILD_CHECK(cancelled.cancelled && cancelled.skipped > 0 && !cancelled.kernels.empty());
    options.cancel = nullptr;
    for (const WarmupShape& bad : {WarmupShape{7, 8}, WarmupShape{8, 12}, WarmupShape{64, 64, 7}})
      Q4_CHILD_CHECK(
          contains(error_of([&] { (void)runtime.warmup({bad}, options); }, ErrorCode::kInvalidArgument), "8"));
    options.threads = -1;
    Q4_CHILD_CHECK(
        contains(error_of([&] { (void)runtime.warmup(kShapes, options); }, ErrorCode::kInvalidArgument), "-1"));
    options.threads = 0, options.device = Device{BackendKind::kCpu, 0};
    const auto cpu = runtime.warmup(kShapes, options);
    Q4_CHILD_CHECK(cpu.complete() && cpu.kernels.empty());
    return 0;
  });
  CHECK(status == 0);
}

TEST_CASE("events: layer, missed layers and times; callbacks may call the library") {
  TempFolder s;
  std::vector<CacheEvent> events;
  KernelCache* cache = nullptr;
  int inside = 0;
  const auto reenter = [&] {  // each of these would hang or fail if a lock were held
    if (inside++ > 0) return;
    (void)cache->counters();
    (void)cache->get(numbered_key(77), [] { return compiled(77, 10); });
    CHECK(KeyLock(s / "k", numbered_key(0).digest(), 0).held());
  };
  CacheOptions options{.folder = s / "k", .folders = {s / "missing"}};
  options.event = [&](const CacheEvent& event) {
    if (event.kernel == "kernel 0" || event.kernel == "kernel 1") events.push_back(event), reenter();
    throw std::runtime_error("an observer's trouble");
  };
  int warnings = 0;
  KernelCache tested(options, [&](LogLevel level, const std::string&) {
    warnings += level == LogLevel::kWarning;
    reenter();
  });
  cache = &tested;
  double used = 0;
  const auto got = tested.get(
      numbered_key(0),
      [] {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        return compiled(0, 100);
      },
      [&](const KernelCache::Code& code) {
        used += static_cast<double>(code.size());
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      });
  CHECK(inside > 0);
  CHECK(used == 100);
  CHECK(warnings == 1);  // the folder that is not there
  REQUIRE(events.size() == 1);
  CHECK(events[0].layer == CacheLayer::kCompiler);
  CHECK(events[0].from == "nvrtc 1");
  CHECK(contains(events[0].missed, s / "k"));
  CHECK(contains(events[0].missed, (s / "missing") + " ("));
  CHECK(events[0].compile_ms >= 19);
  CHECK(events[0].load_ms >= 4);
  CHECK(tested.get(numbered_key(0), [] { return compiled(0, 1); }).event.layer == CacheLayer::kMemory);
  CHECK(events.size() == 1);  // memory is counted, not told

  KernelCache next(options, nullptr);
  CHECK(next.get(numbered_key(0), [] { return compiled(0, 1); }).event.layer == CacheLayer::kUserFolder);
  CHECK(events.back().missed == "");
  CHECK_THROWS(next.get(numbered_key(1), []() -> Compiled { throw Error(ErrorCode::kCompile, "no such thing"); }));
  CHECK(events.back().layer == CacheLayer::kNone);
  CHECK(events.back().error == "no such thing");
  const auto counters = next.counters();
  CHECK((counters.user_folder == 1 && counters.failed == 1 && counters.compiled == 0 && counters.problems == 1));
}

TEST_CASE("dump folder: source, options, code, registers and spills, and the compiler's log, also of what fails") {
  if (compiler_absent("dump folder")) return;
  TempFolder s;
  const int status = on_fake_gpu([&] {
    RuntimeOptions options = in(s / "k");
    options.dump_dir = s / "dump/below";
    WarmupOptions warm;
    warm.plan.max_m = 1;
    const Runtime runtime(options);
    Q4_CHILD_CHECK(runtime.warmup({{256, 512, 64}}, warm).complete());
    ::setenv("Q4_DUMP_DIR", (s / "by-variable").c_str(), 1);
    const Runtime reader(in(s / "k"));
    Q4_CHILD_CHECK(reader.warmup({{256, 512, 64}}, warm).complete());
    return 0;
  });
  CHECK(status == 0);
  std::size_t kernels = 0;
  for (const auto& file : fs::directory_iterator(s / "dump/below")) {
    if (file.path().extension() != ".json") continue;
    ++kernels;
    const auto facts = nlohmann::json::parse(read_file(file.path()));
    CHECK(facts["registers"].get<int>() > 8);
    CHECK(facts.contains("spill_bytes"));
    CHECK(facts["options"][0] == "-std=c++20");
    CHECK(facts["layer"] == "compiler");
    // The key of a kernel that a plan asks for holds this version's headers and exactly these options.
    const std::string source = read_file(fs::path(file.path()).replace_extension(".cu"));
    const KernelKey key{"", source, jit::headers_digest(source), "sm_90a", cuda::compile_options()};
    CHECK(facts["key"] == key.digest());
    auto path = file.path();
    CHECK(contains(read_file(path.replace_extension(".cu")), "#include"));
    CHECK(contains(read_file(path.replace_extension(".log")), "registers"));
    CHECK(fs::file_size(path.replace_extension(".cubin")) == facts["code_bytes"].get<std::size_t>());
  }
  CHECK(kernels >= 3);
  // And the entry says which build of the compiler made it.
  const std::string identity = cuda::Nvrtc().identity();
  CHECK(contains(identity, " CL-"));
  for (const auto& file : stored_files(s / "k")) CHECK(read_entry(file.path).entry->compiler == identity);
  std::size_t found = 0;
  for (const auto& file : fs::directory_iterator(s / "by-variable"))
    found += file.path().extension() == ".json" && contains(read_file(file.path()), "\"user-folder\"");
  CHECK(found == kernels);

  KernelCache failing({.dump_dir = s / "failed"}, nullptr);
  CHECK_THROWS(failing.get(numbered_key(3), []() -> Compiled { throw Error(ErrorCode::kCompile, "line 7: no"); }));
  bool source = false, error = false;
  for (const auto& file : fs::directory_iterator(s / "failed")) {
    source |= read_file(file.path()) == "source 3";
    error |= contains(read_file(file.path()), "line 7: no");
  }
  CHECK((source && error));
}

TEST_CASE("fork after use: GPUs are a clear error in the child, the CPU works, and nothing crashes") {
  TempFolder s;
  const int status = on_fake_gpu([&] {
    RuntimeOptions options = in(s / "k");
    std::optional<Runtime> runtime(options);
    const auto source = make_gptq({.k = 256, .n = 64});
    const Device cpu;
    auto on_cpu = QuantizedMatrix::from_gptq(*runtime, cpu, source.tensors());
    const MatmulPlan plan(*runtime, on_cpu, {.max_m = 2});
    std::vector<std::uint16_t> x(2 * 256, 0x3c00), before(2 * 64), after(2 * 64);
    plan.run({}, {x.data()}, {before.data()}, 2);
    Q4_CHILD_CHECK(runtime->info(kGpu).name == "Fake H200");
    std::optional<Buffer> memory(std::in_place, runtime->impl().open(kGpu), 64);
    const int child = finish(start([&] {
      plan.run({}, {x.data()}, {after.data()}, 2);
      Q4_CHILD_CHECK(before == after);
      const auto device = runtime->impl().open(kGpu);
      for (const auto& text :
           {error_of([&] { (void)Buffer(device, 64); }, ErrorCode::kDevice),
            error_of([&] { device->synchronize(); }, ErrorCode::kDevice),
            error_of([&] { (void)QuantizedMatrix::from_gptq(*runtime, kGpu, source.tensors()); }, ErrorCode::kDevice)})
        Q4_CHILD_CHECK(contains(text, "forked") && contains(text, "spawn"));
      memory.reset();
      const Runtime fresh(options);  // the driver's state is the process's
      Q4_CHILD_CHECK(contains(fresh.backends().front().reason, "forked"));
      Q4_CHILD_CHECK(fresh.best_device().kind == BackendKind::kCpu);
      runtime.reset();
      return 0;
    }));
    Q4_CHILD_CHECK(child == 0);
    memory.reset();
    return 0;
  });
  CHECK(status == 0);
}

TEST_CASE("with a complete cache the process opens the driver alone: neither NVRTC nor cuBLAS, hidden or not") {
  if (compiler_absent("what a process opens")) return;
  TempFolder s;
  const std::string shape = " --shape 256x512 --group 64 --max-m 16 --device cuda:0 --json --cache-dir ",
                    fake = std::string("LD_DEBUG=files Q4_CUDA_DRIVER=") + q4::test::fake_cuda();
  const auto opens = [](const std::string& log, const char* library) {
    return contains(log, std::string(library) + ".so");
  };
  const auto first = run_tool("q4-cache warmup" + shape + (s / "k"), fake);
  REQUIRE_MESSAGE(first.status == 0, first.out);
  CHECK(opens(first.out, "libnvrtc"));  // else this test could not fail
  CHECK_FALSE(opens(first.out, "libcublasLt"));
  for (const char* hidden : {"", " Q4_NVRTC=/nonexistent/nvrtc Q4_CUBLASLT=/nonexistent/cublas"}) {
    const auto second = run_tool("q4-cache warmup" + shape + (s / "k"), fake + hidden);
    REQUIRE_MESSAGE(second.status == 0, second.out);
    CHECK(contains(second.out, "\"compile_ms\": 0.0"));
    CHECK(opens(second.out, "fake-cuda"));
    CHECK_FALSE(opens(second.out, "libnvrtc"));
    CHECK_FALSE(opens(second.out, "libcublas"));
  }
  // The best device is found without asking a compiler, too, where kernels are there for it.
  std::string unnamed = shape;
  unnamed.replace(unnamed.find(" --device cuda:0"), std::string(" --device cuda:0").size(), "");
  const auto best = run_tool("q4-cache warmup" + unnamed + (s / "k"), fake);
  CHECK(best.status == 0);
  CHECK(contains(best.out, "\"device\": \"cuda:0\""));
  CHECK_FALSE(opens(best.out, "libnvrtc"));
}

TEST_CASE("a hit in memory costs under a microsecond") {
  KernelCache cache({.mode = CacheMode::kOff}, nullptr);
  KernelKey key = numbered_key(0);
  key.source = std::string(500, 's'), key.headers = std::string(64, 'h');
  key.options = {"-std=c++20", "--ptxas-options=-v"};
  cache.get(key, [] { return compiled(0, 30000); });
  double best = 1e9;
  constexpr int kHits = 20000;
  for (int round = 0; round < 5; ++round) {
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < kHits; ++i) cache.get(key, {});
    best = std::min(
        best, std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count() / kHits);
  }
  MESSAGE("a hit in memory: " << best << " us");
  CHECK(best < 5 * test::kSlower);  // sanitizers and busy machines; what it is, the line above says
  CHECK(cache.counters().memory == 5 * kHits);
}

TEST_CASE("a model's kernels are read and checked in milliseconds, from a pack and from a folder") {
  TempFolder s;
  constexpr int kKernels = 32;  // what llama-3-8b loads on one GPU for m up to 512, of this size
  constexpr std::size_t kBytes = 24000;
  std::vector<Entry> entries;
  for (int i = 0; i < kKernels; ++i)
    entries.push_back(make_entry(numbered_key(i), "nvrtc 1", 1, numbered_code(i, kBytes)));
  REQUIRE(write_pack(s / "p.q4pack", entries) == "");
  for (const auto& entry : entries) REQUIRE(Folder(s / "k", true).store(entry, 0) == "");
  const auto cold_start = [&](const CacheOptions& options) {
    double best = 1e9;
    for (int round = 0; round < 5; ++round) {
      const auto begin = std::chrono::steady_clock::now();
      KernelCache cache(options, nullptr);
      for (int i = 0; i < kKernels; ++i) CHECK(cache.get(numbered_key(i), {}).code->size() == kBytes);
      best =
          std::min(best, std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count());
    }
    return best;
  };
  const double pack = cold_start({.mode = CacheMode::kRequirePrebuilt, .packs = {s / "p.q4pack"}});
  const double folder = cold_start({.folder = s / "k", .mode = CacheMode::kRequirePrebuilt});
  MESSAGE(kKernels << " kernels of " << kBytes << " bytes: " << pack << " ms from a pack, " << folder
                   << " ms from a folder");
  CHECK(pack < 50);
  CHECK(folder < 50);
}

}  // namespace q4::cache
