// One call of the driver, of NVRTC or of cuBLASLt fails, each in turn: an error with its cause, nothing kept, and the same
// work done afterwards. tests/faults has the layer that fails them.
#include <dlfcn.h>
#include <doctest/doctest.h>

#include <atomic>
#include <cstring>
#include <map>
#include <q4/lora.hpp>
#include <q4/moe.hpp>
#include <q4/warmup.hpp>
#include <thread>

#include "cache_support.hpp"
#include "interpreted.hpp"
#include "lora_case.hpp"
#include "moe_case.hpp"
#include "runtime/base/settings.hpp"

namespace q4::test {
namespace {

constexpr int kOutOfMemory = 2, kLaunchFailed = 719, kUnknown = 999;

/// The layer, and a Runtime's environment in which it is the driver.
struct Faulty {
  std::string folder = q4::test::binary_dir() + "/lib/";
  Environment environment{{{"Q4_CUDA_DRIVER", folder + "libq4-faulty-cuda.so"},
                           {"Q4_FAULTY_DRIVER", q4::test::fake_cuda()},
                           {"Q4_NVRTC", folder + "libq4-faulty-libraries.so"},
                           {"Q4_CUBLASLT", folder + "libq4-faulty-libraries.so"},
                           {"Q4_HIP_RUNTIME", "none"},
                           {"Q4_CACHE_MODE", "off"}}};
  void* driver = ::dlopen((folder + "libq4-faulty-cuda.so").c_str(), RTLD_NOW | RTLD_LOCAL);
  void* libraries = ::dlopen((folder + "libq4-faulty-libraries.so").c_str(), RTLD_NOW | RTLD_LOCAL);
  template <class F>
  F* find(void* library, const char* name) const {
    REQUIRE(library);
    return reinterpret_cast<F*>(::dlsym(library, name));
  }
  void (*arm)(long, int, int) = find<void(long, int, int)>(driver, "faults_arm");
  long (*seen)() = find<long()>(driver, "faults_seen");
  const char* (*failed)() = find<const char*()>(driver, "faults_failed");
  const char* (*kept)() = find<const char*()>(driver, "faults_kept");

  Faulty() {
    find<void(void*, void*)>(libraries, "libraries_connect")(::dlsym(driver, "faults_before"),
                                                             ::dlsym(driver, "faults_after"));
  }
  static Runtime runtime() {
    return Runtime({.log = [](LogLevel, const std::string&) {}});
  }
};

/// Most of what a program does with a GPU. What is multiplied does not matter: nothing is.
void work(const Runtime& runtime) {
  const Device gpu = Device::parse("cuda:0");
  const auto device = runtime.impl().open(gpu);
  const GptqMatrix ordered =
      make_gptq({.k = 256, .n = 128, .group_size = 64, .act_order = ActOrder::kPermuted, .bias = true});
  const GptqMatrix plain = make_gptq({.k = 256, .n = 128, .group_size = 64});
  auto first = QuantizedMatrix::from_gptq(runtime, gpu, ordered.tensors());
  const Uploaded x(device, ordered.qweight.data(), 256 * 16 * 2), out(device, ordered.qweight.data(), 256 * 16 * 2);
  const auto run = [&](const MatmulPlan& plan, const RunInputs& inputs = {}) {
    for (const std::int64_t m : {1, 16}) plan.run({}, {x.get()}, {out.get()}, m, inputs);
    device->synchronize();
  };
  run(MatmulPlan(runtime, first, {.max_m = 16}));
  run(MatmulPlan(runtime, first, {.max_m = 16, .reconstruct_from = 9}));
  first.update(ordered.tensors());
  static_cast<void>(first.unpack());

  const Uploaded qweight(device, plain.qweight.data(), plain.qweight.size() * 4),
      qzeros(device, plain.qzeros.data(), plain.qzeros.size() * 4),
      scales(device, plain.scales.data(), plain.scales.size() * 2);
  GptqTensors tensors = plain.tensors();
  tensors.qweight.data = qweight.get(), tensors.qzeros.data = qzeros.get(), tensors.scales.data = scales.get();
  tensors.qweight.device = tensors.qzeros.device = tensors.scales.device = gpu;
  auto second = QuantizedMatrix::from_gptq(runtime, gpu, tensors, {.storage = Storage::kReuse});
  const LoraCase adapters(256, 128, DType::kF16, {8});
  LoraAdapters table(runtime, second, {.adapters = 2, .max_rank = 8});
  const auto view = [](const HostRows& rows) {
    return TensorView{rows.data(), rows.dtype(), rows.rows(), rows.cols()};
  };
  table.set(0, {view(adapters.a[0]), view(adapters.b[0])});
  run(MatmulPlan(runtime, second, {.max_m = 16, .epilogue = {Activation::kSilu, false, true}, .lora_rank = 8}),
      {.adapters = &table, .adapter_of_row = static_cast<const std::int32_t*>(x.get())});
  table.remove(0);
  column_remap(runtime, gpu, {}, {x.get()}, 256, {out.get()}, ordered.g_idx.data(), 256, 4);
  second.restore();

  const MoeWeights w(MoeSpec{.experts = 2, .topk = 1, .k = 64, .width = 32, .n = 64});
  const MoeExperts experts(runtime, gpu, w);
  MoePlan(runtime, experts.w13, experts.w2, moe_options(w.spec, DType::kF16, 4))
      .run({}, {x.get()}, static_cast<const std::int32_t*>(out.get()), static_cast<const float*>(out.get()),
           {qweight.get()}, 4);
  device->synchronize();
  runtime.trim();
}

/// What `runtime` throws for the work; empty: nothing.
std::string attempt(const Runtime& runtime) {
  try {
    work(runtime);
  } catch (const Error& error) {
    return error.code() == ErrorCode::kInternal ? std::string("kInternal: ") + error.what() : error.what();
  }
  return {};
}

/// Whether the text says which call failed: by its name, of which it leaves out what tells versions apart.
bool names(const std::string& text, std::string call) {
  for (const char* end : {"_v2", "_internal", "Async", "WithFlags"})
    if (call.ends_with(end)) call.resize(call.size() - std::strlen(end));
  if (call.starts_with("nvrtc")) return text.find("nvrtc") != text.npos || text.find("NVRTC_ERROR") != text.npos;
  return text.find(call) != text.npos;
}

TEST_CASE(
    "faults: whichever call of the driver or a library fails, the error says so, nothing is kept, and the next try "
    "works") {
  const Faulty faulty;
  faulty.arm(0, 0, 0);
  {
    const Runtime runtime = Faulty::runtime();
    REQUIRE(attempt(runtime) == "");
  }
  REQUIRE(std::string(faulty.kept()) == "");
  const long calls = faulty.seen();
  const long step = is_set("Q4_FAULTS") ? 1 : 11 * kSlower;  // Q4_FAULTS=all
  long injected = 0;
  std::map<std::string, std::pair<long, long>> tolerated;  // calls by name: those whose failure no one noticed, of all
  for (const int code : {kOutOfMemory, kUnknown})
    for (long nth = 1 + code % step; nth <= calls; nth += step) {
      {
        const Runtime runtime = Faulty::runtime();
        faulty.arm(nth, code, 0);
        const std::string text = attempt(runtime), failed = faulty.failed();
        faulty.arm(0, 0, 0);
        INFO("call ", nth, ", ", failed, ", with ", code, ": ", text);
        if (failed.empty()) continue;  // threads compile: the number of calls is not always the same
        ++injected;
        auto& [unnoticed, all] = tolerated[failed];
        unnoticed += text.empty(), ++all;
        if (!text.empty()) CHECK(names(text, failed));
        const std::string again = attempt(runtime);
        const bool never_opened = failed == "cuInit" || failed.starts_with("cublasLtCreate") ||
                                  (failed.starts_with("nvrtc") && names(again, failed));
        if (!never_opened) CHECK(again == "");
        if (never_opened && !again.empty()) CHECK(names(again, failed));  // it says why not
      }
      INFO("after call ", nth, ", with ", code);
      REQUIRE(std::string(faulty.kept()) == "");
    }
  std::string text;
  for (const auto& [name, count] : tolerated)
    if (count.first) text += fmt::format("{} {}/{}, ", name, count.first, count.second);
  MESSAGE(injected << " faults in " << calls << " calls; without an effect: " << text);
  CHECK(injected > calls / step);
}

TEST_CASE(
    "faults: a kernel that the driver cannot read is told from other failures, with the driver's version and the "
    "remedy") {
  const Faulty faulty;
  for (const int code : {200, 209, 222}) {  // invalid image, no binary for this GPU, newer PTX
    std::string text, failed;
    for (long nth = 1; nth < 400 && failed != "cuModuleLoadData"; ++nth) {
      const Runtime runtime = Faulty::runtime();
      faulty.arm(nth, code, 0);
      text = attempt(runtime), failed = faulty.failed();
      faulty.arm(0, 0, 0);
    }
    REQUIRE(failed == "cuModuleLoadData");
    CHECK_MESSAGE(text.find("the driver is of CUDA ") != text.npos, text);
    CHECK_MESSAGE(text.find("$Q4_NVRTC") != text.npos, text);
  }
}

TEST_CASE("faults: a device that is lost stays lost, says so, and lets everything be destroyed") {
  const Faulty faulty;
  faulty.arm(0, 0, 0);
  {
    const Runtime runtime = Faulty::runtime();
    work(runtime);
  }
  const long calls = faulty.seen();
  long lost = 0;
  for (long nth = 60; nth <= calls - 60; nth += 41 * kSlower, ++lost) {
    {
      const Runtime runtime = Faulty::runtime();
      faulty.arm(nth, kLaunchFailed, 1);
      const std::string text = attempt(runtime), again = attempt(runtime);
      INFO("from call ", nth, ", ", std::string(faulty.failed()), ": ", text, " / ", again);
      CHECK((text.empty() || text.find("restart the process") != text.npos || names(text, faulty.failed()) ||
             names(text, "nvrtc")));
      CHECK(!again.empty());
    }
    faulty.arm(0, 0, 0);
    INFO("from call ", nth);
    CHECK(std::string(faulty.kept()) == "");
  }
  MESSAGE(lost << " times");
}

TEST_CASE("faults: 64 threads use one GPU at once, and a call fails now and then") {
  const Faulty faulty;
  faulty.arm(0, 0, 0);
  {
    const Runtime runtime = Faulty::runtime();
    std::atomic<int> unexpected = 0, errors = 0;
    std::vector<std::thread> threads;
    for (int i = 0; i < 64; ++i)
      threads.emplace_back([&, i] {
        for (int round = 0; round < 3; ++round) {
          if (i == 0) faulty.arm(200 + 1000 * round, kUnknown, 0);
          const std::string text = attempt(runtime);
          errors += !text.empty(), unexpected += text.find("kInternal") != text.npos;
        }
      });
    for (auto& thread : threads) thread.join();
    CHECK(unexpected == 0);
    CHECK(errors < 64);  // a kernel that fails to compile fails for all who wait for it
    faulty.arm(0, 0, 0);
    CHECK(attempt(runtime) == "");
  }
  CHECK(std::string(faulty.kept()) == "");
}

}  // namespace
}  // namespace q4::test
