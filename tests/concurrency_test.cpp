// 64 threads that make, run, change and destroy what they share. What a thread computes has the bits that one thread
// alone computes; the thread sanitizer (preset tsan) watches the rest.
#include <doctest/doctest.h>

#include <array>
#include <atomic>
#include <cstring>
#include <mutex>
#include <optional>
#include <q4/lora.hpp>
#include <q4/moe.hpp>
#include <thread>

#include "checkpoint_maker.hpp"
#include "lora_case.hpp"
#include "moe_case.hpp"
#include "on_device.hpp"
#include "whole.hpp"

namespace q4::test {
namespace {

constexpr int kThreads = 64, kMatrices = 6;
constexpr std::int64_t kRows = 5;

/// One matrix, two inputs with what they give, and the handle that threads share and replace.
struct Shared {
  GptqMatrix source;
  std::array<HostRows, 2> x, expected;
  std::mutex mutex;
  QuantizedMatrix matrix;
  MatmulPlan plan;

  QuantizedMatrix load(const Runtime& runtime) const {
    return QuantizedMatrix::from_gptq(runtime, {}, source.tensors());
  }
  static PlanOptions options() { return {.max_m = kRows}; }
  bool right(const MatmulPlan& plan, const QuantizedMatrix& of, std::vector<std::byte>& workspace, int which) const {
    const auto i = static_cast<std::size_t>(which);
    HostRows out(DType::kF16, kRows, of.n());
    workspace.resize(plan.workspace_bytes() + 256);
    auto at = reinterpret_cast<std::uintptr_t>(workspace.data());
    plan.run({}, {x[i].data()}, {out.data()}, kRows, reinterpret_cast<void*>((at + 255) / 256 * 256));
    return std::memcmp(out.data(), expected[i].data(), out.bytes()) == 0;
  }
};

}  // namespace

TEST_CASE("concurrency: 64 threads share matrices and plans, replace them, and destroy the Runtime under them") {
  const TempFolder folder;
  make_checkpoint(folder.path(), {.matrix = {.k = 64, .n = 64, .group_size = 32}});
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  std::optional<Runtime> runtime(
      std::in_place,
      RuntimeOptions{.cache_mode = CacheMode::kOff, .cpu_threads = 3, .log = [](LogLevel, const std::string&) {}});
  std::mutex runtime_mutex;  // of the handle, which threads copy
  const auto handle = [&] {
    const std::lock_guard lock(runtime_mutex);
    return *runtime;
  };
  std::vector<Shared> all(kMatrices);
  for (int i = 0; i < kMatrices; ++i) {
    Shared& s = all[static_cast<std::size_t>(i)];
    s.source = make_gptq({.k = 128 + 64 * i,
                          .n = 72 + 8 * i,
                          .group_size = 32,
                          .act_order = i % 2 ? ActOrder::kPermuted : ActOrder::kNone,
                          .bias = i % 3 == 0,
                          .seed = static_cast<std::uint64_t>(i)});
    s.matrix = s.load(*runtime), s.plan = MatmulPlan(*runtime, s.matrix, Shared::options());
    for (std::size_t which = 0; which < 2; ++which) {
      HostRows &x = s.x[which], &expected = s.expected[which];
      x = random_rows(DType::kF16, kRows, s.source.spec.k, static_cast<std::uint64_t>(i) + 50 * which);
      expected = HostRows(DType::kF16, kRows, s.source.spec.n);
      s.plan.run({}, {x.data()}, {expected.data()}, kRows);
      REQUIRE(relative_error(expected, product(x, unpack(s.source.tensors()))) <= tolerance(DType::kF16));
    }
  }
  const MoeWeights weights(MoeSpec{.experts = 3, .k = 64, .width = 32, .n = 64});
  const MoeExperts experts(*runtime, {}, weights);
  const LoraCase adapters(128, 72, DType::kF16, {8});

  std::atomic<int> wrong = 0, done = 0;
  const auto work = [&](int number) {
    Random random(static_cast<std::uint64_t>(number) + 100);
    std::vector<std::byte> workspace;
    for (int round = 0; round < (kSlower > 1 ? 12 : 40); ++round) {
      Shared& s = all[static_cast<std::size_t>(random.below(kMatrices))];
      const Runtime mine = handle();
      QuantizedMatrix matrix;
      MatmulPlan plan;
      {
        const std::lock_guard lock(s.mutex);
        matrix = s.matrix, plan = s.plan;
      }
      switch (random.below(9)) {
        case 0:
        case 1:  // the shared plan, at the same time as others
          wrong += !s.right(plan, matrix, workspace, number % 2);
          break;
        case 2: {  // one of its own, of the shared matrix
          wrong += !s.right(MatmulPlan(mine, matrix, Shared::options()), matrix, workspace, number % 2);
          break;
        }
        case 3: {  // another matrix and plan in their places, while others run the old ones
          QuantizedMatrix next = s.load(mine);
          MatmulPlan of_next(mine, next, Shared::options());
          const std::lock_guard lock(s.mutex);
          s.matrix = std::move(next), s.plan = std::move(of_next);
          break;
        }
        case 4:
          wrong += matrix.unpack().qweight != s.source.qweight;
          break;
        case 5:
          wrong += checkpoint.load_all(mine, {}).size() != 3;
          wrong += checkpoint.gptq("model.layers.0.mlp.up_proj").qweight.rows != 8;
          break;
        case 6: {
          MoePlan layer(mine, experts.w13, experts.w2, moe_options(weights.spec, DType::kF16, 4));
          HostRows x = random_rows(DType::kF16, 4, 64), out(DType::kF16, 4, 64);
          const Routing routing = random_routing(4, 2, 3);
          layer.run({}, {x.data()}, routing.ids.data(), routing.weights.data(), {out.data()}, 4);
          wrong += !(relative_error(out, moe_reference(weights, x, routing, DType::kF16)) <= moe_limit(DType::kF16));
          break;
        }
        case 7: {  // a table of its own that comes and goes
          const QuantizedMatrix first = all[0].load(mine);
          LoraAdapters table(mine, first, {.adapters = 2, .max_rank = 8});
          const auto view = [](const HostRows& r) { return TensorView{r.data(), r.dtype(), r.rows(), r.cols()}; };
          table.set(1, {view(adapters.a[0]), view(adapters.b[0])});
          table.remove(1);
          break;
        }
        case 8:
          static_cast<void>(mine.devices()), static_cast<void>(mine.memory());
          static_cast<void>(mine.tuning_sources()), mine.trim();
          if (random.below(4) == 0) {  // the last handle of the old one goes with the last thread that has it
            Runtime next({.cache_mode = CacheMode::kOff, .cpu_threads = 2, .log = [](LogLevel, const std::string&) {}});
            const std::lock_guard lock(runtime_mutex);
            runtime.emplace(std::move(next));
          }
          break;
      }
      ++done;
    }
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) threads.emplace_back(work, i);
  for (auto& thread : threads) thread.join();
  CHECK(wrong == 0);
  MESSAGE(done.load() << " operations of " << kThreads << " threads");
}

TEST_CASE("concurrency: a plan runs on while its Runtime, its matrix and the tensors are destroyed") {
  for (int round = 0; round < 20; ++round) {
    std::atomic<bool> begun = false;
    std::thread runner;
    HostRows expected, out(DType::kF16, kRows, 512);
    {
      const GptqMatrix source = make_gptq({.k = 1024, .n = 512, .seed = static_cast<std::uint64_t>(round)});
      const Runtime runtime(
          {.cache_mode = CacheMode::kOff, .cpu_threads = 2, .log = [](LogLevel, const std::string&) {}});
      const auto matrix = QuantizedMatrix::from_gptq(runtime, {}, source.tensors());
      const HostRows x = random_rows(DType::kF16, kRows, 1024);
      expected = HostRows(DType::kF16, kRows, 512);
      MatmulPlan plan(runtime, matrix, {.max_m = kRows});
      plan.run({}, {x.data()}, {expected.data()}, kRows);
      runner = std::thread([&begun, &out, x, plan = std::move(plan)] {
        for (int run = 0; run < 10; ++run) {
          plan.run({}, {x.data()}, {out.data()}, kRows);
          begun = true;
        }
      });
      while (!begun) std::this_thread::yield();
    }
    runner.join();
    CHECK(std::memcmp(out.data(), expected.data(), out.bytes()) == 0);
  }
}

TEST_CASE("concurrency: 16 threads use every device of the process through one Runtime, each device in turn") {
  struct Used {
    Device device;
    std::shared_ptr<DeviceBackend> backend;
    QuantizedMatrix matrix;
    std::vector<HostRows> expected;
  };
  constexpr int kUsers = 16;
  const PlanOptions options{.max_m = 70};
  const Runtime& runtime = shared_runtime();
  const GptqMatrix source = make_gptq({.k = 1024, .n = 512, .group_size = 128, .act_order = ActOrder::kPermuted});
  std::vector<HostRows> inputs;
  for (const std::int64_t m : {1, 5, 70}) inputs.push_back(random_rows(DType::kF16, m, 1024, 7));
  const auto weights = [&](Device device) {
    std::size_t held = 0;
    for (const auto& use : runtime.memory()) held += use.device == device ? use.weights : 0;
    return held;
  };
  std::vector<Device> devices;
  for (const DeviceInfo& info : ready_devices()) devices.push_back(info.device);
  if (devices.size() < 3) skip("fewer than two GPUs");
  std::vector<std::size_t> before;
  for (const Device device : devices) before.push_back(weights(device));
  {
    std::vector<Used> all;
    for (const Device device : devices) {
      Used& used = all.emplace_back(Used{device, runtime.impl().open(device), {}, {}});
      used.matrix = QuantizedMatrix::from_gptq(runtime, device, source.tensors());
      const MatmulPlan plan(runtime, used.matrix, options);
      for (const HostRows& x : inputs) {
        HostRows& out = used.expected.emplace_back(DType::kF16, x.rows(), 512);
        multiply(runtime, device, plan, x, out);
        CHECK(relative_error(out, product(x, unpack(source.tensors()))) <= tolerance(DType::kF16));
      }
    }
    std::atomic<int> wrong = 0;
    std::vector<std::thread> threads;
    for (std::size_t number = 0; number < kUsers; ++number)
      threads.emplace_back([&, number] {
        // This thread's own stream, by the name that it has in CUDA and HIP.
        const Stream own{reinterpret_cast<void*>(std::uintptr_t{2})};
        std::vector<MatmulPlan> plans;
        for (const Used& used : all) plans.emplace_back(runtime, used.matrix, options);
        for (std::size_t round = 0; round < (kSlower > 1 ? 10 : 100); ++round) {
          const Used& used = all[(number + round) % all.size()];
          const std::size_t which = (number + round / all.size()) % inputs.size();
          const HostRows& x = inputs[which];
          HostRows out(DType::kF16, x.rows(), 512);
          const Buffer on_x(used.backend, x.bytes() + 16), on_out(used.backend, out.bytes() + 16);
          used.backend->copy(on_x.get(), x.data(), x.bytes(), CopyKind::kToDevice);
          used.backend->copy(on_out.get(), out.data(), out.bytes(), CopyKind::kToDevice);
          plans[(number + round) % all.size()].run(own, {on_x.get()}, {on_out.get()}, x.rows());
          used.backend->synchronize();
          used.backend->copy(out.data(), on_out.get(), out.bytes(), CopyKind::kToHost);
          wrong += std::memcmp(out.data(), used.expected[which].data(), out.bytes()) != 0;
        }
      });
    for (auto& thread : threads) thread.join();
    CHECK(wrong == 0);
  }
  for (std::size_t i = 0; i < devices.size(); ++i) CHECK(weights(devices[i]) == before[i]);
}

}  // namespace q4::test
