// q4-soak: mixed problems through plans, graphs, updates and new matrices on one device for as long as is asked. Each result
// has the bits that it had at first, and memory is what it was after the first round. Exit status 0, or 1 and what is wrong.
// Usage: q4-soak [SECONDS [DEVICE [SCALE]]]; matrices of about 1000 x SCALE, by default 4 on a GPU, where rows are up to 1100.
#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <q4/lora.hpp>
#include <q4/moe.hpp>
#include <q4/q4.hpp>
#include <string>

#include "reference.hpp"
#include "runtime/backends/backend.hpp"
#include "runtime/runtime.hpp"

namespace q4::test {
namespace {

using Clock = std::chrono::steady_clock;

struct OnDevice {
  Runtime runtime;
  Device device;
  std::shared_ptr<DeviceBackend> backend;
};

std::size_t resident_bytes() {
  std::size_t total = 0, resident = 0;
  std::ifstream("/proc/self/statm") >> total >> resident;
  return resident * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
}

std::unique_ptr<Buffer> upload(const OnDevice& on, const void* data, std::size_t bytes) {
  auto buffer = std::make_unique<Buffer>(on.backend, bytes + 16);
  on.backend->copy(buffer->get(), data, bytes, CopyKind::kToDevice);
  return buffer;
}

TensorView view(const HostRows& rows) { return {rows.data(), rows.dtype(), rows.rows(), rows.cols()}; }

/// One problem: what it gave first, and everything that gives it again.
class Problem {
 public:
  Problem(const OnDevice& on, const MatrixSpec& spec, DType type, Epilogue epilogue, std::int64_t most)
      : on_(on), source_(make_gptq(spec)), type_(type) {
    MatrixSpec other = spec;
    other.seed += 1000;
    other_ = make_gptq(other);
    other_.g_idx = source_.g_idx;
    options_.max_m = most, options_.activation = type, options_.epilogue = epilogue, options_.lora_rank = 16;
    x_ = random_rows(type, most, spec.k, spec.seed);
    on_x_ = upload(on, x_.data(), x_.bytes());
    rows_.assign(static_cast<std::size_t>(most), 0);
    for (std::size_t r = 0; r < rows_.size(); r += 3) rows_[r] = 1;
    on_rows_ = upload(on, rows_.data(), rows_.size() * 4);
    a_ = random_rows(type, 16, spec.k, 3), b_ = random_rows(type, spec.n, 16, 4);
    load();
    for (std::int64_t m = 1; m <= most; m = m < 4 ? m + 1 : 2 * m + 1) ms_.push_back(m);
    ms_.push_back(most);
    for (const std::int64_t m : ms_) first_.push_back(run(m, false));
    const auto exact = product(x_, unpack(source_.tensors()));
    if (epilogue == Epilogue{} && !(relative_error(first_.back(), exact) <= tolerance(type)))
      throw Error(ErrorCode::kInternal, "the first result is wrong: " + plan_.tactic(most));
  }

  /// Everything once; empty, or what is wrong.
  std::string round(std::uint64_t number, std::uint64_t& launches) {
    if (number % 3 == 1) {  // other weights in the same memory, and back
      matrix_.update(other_.tensors());
      matrix_.update(source_.tensors());
    }
    if (number % 5 == 2) {
      table_.remove(0);
      set_adapters();
    }
    if (number % 7 == 3) plan_ = MatmulPlan(on_.runtime, matrix_, options_);
    if (number % 11 == 4) load();
    if (number % 13 == 5 && matrix_.unpack().qweight != source_.qweight) return "unpack() gives other codes";
    for (std::size_t i = 0; i < ms_.size(); ++i)
      for (const bool graph : {false, true}) {
        const HostRows out = run(ms_[i], graph);
        ++launches;
        if (std::memcmp(out.data(), first_[i].data(), out.bytes()) != 0)
          return fmt::format("k = {} n = {} m = {}{}: {} gives other bits than at first", source_.spec.k,
                             source_.spec.n, ms_[i], graph ? " in a graph" : "", plan_.tactic(ms_[i]));
      }
    return {};
  }

 private:
  void load() {
    matrix_ = QuantizedMatrix::from_gptq(on_.runtime, on_.device, source_.tensors(), {.gate_up = gated()});
    plan_ = MatmulPlan(on_.runtime, matrix_, options_);
    table_ = LoraAdapters(on_.runtime, matrix_, {.adapters = 2, .max_rank = 16, .type = type_});
    set_adapters();
  }
  void set_adapters() { table_.set(0, {view(a_), view(b_), 0.02f}); }
  bool gated() const { return options_.epilogue.activation >= Activation::kSiluMul; }

  HostRows run(std::int64_t m, bool graph) {
    HostRows out(type_, m, plan_.out_columns());
    const Buffer on_out(on_.backend, out.bytes() + 16);
    on_.backend->copy(on_out.get(), out.data(), out.bytes(), CopyKind::kToDevice);
    RunInputs inputs;
    if (options_.epilogue.lora)
      inputs.adapters = &table_, inputs.adapter_of_row = static_cast<const std::int32_t*>(on_rows_->get());
    const auto launch = [&](void* stream) { plan_.run({stream}, {on_x_->get()}, {on_out.get()}, m, inputs); };
    const auto captured = graph ? on_.backend->capture(launch) : nullptr;
    captured ? static_cast<void>(captured->replay()) : launch(nullptr);
    on_.backend->synchronize();
    on_.backend->copy(out.data(), on_out.get(), out.bytes(), CopyKind::kToHost);
    return out;
  }

  const OnDevice& on_;
  GptqMatrix source_, other_;
  DType type_;
  PlanOptions options_;
  HostRows x_, a_, b_;
  std::vector<std::int32_t> rows_;
  std::unique_ptr<Buffer> on_x_, on_rows_;
  QuantizedMatrix matrix_;
  MatmulPlan plan_;
  LoraAdapters table_;
  std::vector<std::int64_t> ms_;
  std::vector<HostRows> first_;
};

int soak(const std::string& name, double seconds, std::int64_t size) {
  Runtime runtime;
  const Device device = name.empty() ? runtime.best_device() : Device::parse(name);
  const OnDevice on{runtime, device, runtime.impl().open(device)};
  const bool gpu = device.kind != BackendKind::kCpu;
  const std::int64_t scale = size > 0 ? size : gpu ? 4 : 1, most = scale == 1 ? 70 : 1100;
  std::vector<std::unique_ptr<Problem>> problems;
  const auto add = [&](MatrixSpec spec, DType type, Epilogue epilogue = {}, bool few = false) {
    spec.k *= scale, spec.n *= scale, spec.seed = problems.size() + 1;
    problems.push_back(std::make_unique<Problem>(on, spec, type, epilogue, few ? 17 : most));
  };
  add({.k = 1024, .n = 1024, .group_size = 128}, DType::kF16);
  add({.k = 1024, .n = 1024, .group_size = 128, .act_order = ActOrder::kPermuted}, DType::kF16);
  add({.k = 512, .n = 768, .group_size = 64, .bias = true}, DType::kBF16);
  add({.k = 1000, .n = 200, .group_size = -1}, DType::kF16);
  add({.k = 768, .n = 512, .group_size = 32}, DType::kF16, {Activation::kSiluMul, false, false});
  add({.k = 512, .n = 512, .group_size = 128}, DType::kBF16, {Activation::kNone, false, true});
  add({.k = 264, .n = 136, .group_size = 24}, DType::kF16, {}, true);
  if (!gpu) add({.k = 1024, .n = 512, .group_size = 128}, DType::kF32);

  const auto begin = Clock::now();
  const auto passed = [&] { return std::chrono::duration<double>(Clock::now() - begin).count(); };
  std::uint64_t rounds = 0, launches = 0;
  std::size_t resident = 0, held = 0;
  double next = 10;
  const auto held_now = [&] {
    std::size_t total = 0;
    for (const auto& use : runtime.memory()) total += use.total();
    return total;
  };
  for (; passed() < seconds; ++rounds) {
    for (auto& problem : problems)
      if (const std::string wrong = problem->round(rounds, launches); !wrong.empty()) {
        std::printf("q4-soak: round %llu: %s\n", static_cast<unsigned long long>(rounds), wrong.c_str());
        return 1;
      }
    runtime.trim();
    if (rounds == 30 || (rounds < 30 && passed() > seconds / 4)) resident = resident_bytes(), held = held_now();
    if (held && held_now() != held) {
      std::printf("q4-soak: round %llu: %zu bytes are held on the device, %zu at first\n",
                  static_cast<unsigned long long>(rounds), held_now(), held);
      return 1;
    }
    if (passed() > next) {
      std::printf("%.0f s: %llu rounds, %llu runs, %zu MB resident\n", passed(),
                  static_cast<unsigned long long>(rounds), static_cast<unsigned long long>(launches),
                  resident_bytes() >> 20);
      std::fflush(stdout);
      next = passed() + 30;
    }
  }
  const std::size_t now = resident_bytes();
  std::printf(
      "q4-soak: %s: %.0f s, %llu rounds, %llu runs, %zu MB on the device, resident memory %zu MB, %zu MB early on\n",
      on.backend->info().name.c_str(), passed(), static_cast<unsigned long long>(rounds),
      static_cast<unsigned long long>(launches), held >> 20, now >> 20, resident >> 20);
  if (resident && now > resident + resident / 10 + (16u << 20)) {
    std::printf("q4-soak: resident memory grew\n");
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace q4::test

int main(int argc, char** argv) try {
  return q4::test::soak(argc > 2 ? argv[2] : "", argc > 1 ? std::atof(argv[1]) : 60, argc > 3 ? std::atoi(argv[3]) : 0);
} catch (const std::exception& error) {
  std::printf("q4-soak: %s\n", error.what());
  return 1;
}
