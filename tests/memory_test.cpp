// Device memory: every byte through the embedder's allocator, failure at any point without a leak, and sealing.
#include <doctest/doctest.h>

#include <map>

#include "checkpoint_maker.hpp"
#include "interpreted.hpp"

namespace q4::test {
namespace {

/// Counts, and fails the call of number `fail_at`. On a GPU the memory is another Runtime's.
struct Counting {
  std::shared_ptr<DeviceBackend> from;  ///< null: the host
  int calls = 0, fail_at = -1;
  std::map<void*, std::size_t> alive;
  std::size_t bytes = 0;

  void* allocate(std::size_t wanted, std::size_t alignment, Device device) {
    CHECK(wanted > 0);
    CHECK(alignment == 256);
    CHECK(device.kind == (from ? BackendKind::kHip : BackendKind::kCpu));
    if (calls++ == fail_at) {
      if (calls % 3 == 0) return nullptr;
      if (calls % 3 == 1) throw 1;
      throw std::runtime_error("the pool is empty");
    }
    void* memory =
        from ? from->ledger().allocate(wanted, MemoryKind::kWorkspace) : ::operator new (wanted, std::align_val_t{256});
    alive[memory] = wanted, bytes += wanted;
    return memory;
  }
  void release(void* memory, std::size_t size) {
    REQUIRE(alive.count(memory) == 1);
    CHECK(alive[memory] == size);
    alive.erase(memory), bytes -= size;
    if (from)
      from->ledger().release(memory);
    else
      ::operator delete (memory, std::align_val_t{256});
  }
  Allocator hooks() {
    return {[this](std::size_t wanted, std::size_t alignment, Device device, void*) {
              return allocate(wanted, alignment, device);
            },
            [this](void* memory, std::size_t size, Device, void*) { release(memory, size); }};
  }
};

RuntimeOptions with(Counting& counting) {
  RuntimeOptions options;
  options.cache_dir = q4::test::binary_dir() + "/test-cache";
  options.allocator = counting.hooks();
  return options;
}

/// Everything that takes memory: a load, a plan with a workspace, unpack, update.
void use(const Runtime& runtime, Device device, const Counting& counting) {
  const GptqMatrix source =
      make_gptq({.k = 256, .n = 64, .group_size = 64, .act_order = ActOrder::kPermuted, .bias = true});
  auto matrix = QuantizedMatrix::from_gptq(runtime, device, source.tensors());
  PlanOptions options;
  options.max_m = 8, options.tactic = device.kind == BackendKind::kCpu ? "" : "remap+tile half2=0 rows=32";
  const MatmulPlan plan(runtime, matrix, options);
  const auto held = runtime.memory();
  REQUIRE(held.size() == 1);
  CHECK(held[0].device == device);
  CHECK(held[0].weights + held[0].workspace == counting.bytes);
  CHECK(held[0].allocations == counting.alive.size());
  CHECK(held[0].workspace >= plan.workspace_bytes());
  CHECK((held[0].code > 0) == (device.kind != BackendKind::kCpu));
  const UnpackedMatrix again = matrix.unpack();  // outside CHECK, which would keep what it throws
  CHECK(again.qweight == source.qweight);
  matrix.update(source.tensors());
}

void check_failures(const char* what, Device device, const std::shared_ptr<DeviceBackend>& from) {
  int failures = 0;
  for (int at = 0;; ++at) {
    Counting counting{from, 0, at, {}, 0};
    {
      const Runtime runtime(with(counting));
      INFO(what, ": allocation ", at, " fails");
      try {
        use(runtime, device, counting);
      } catch (const Error& error) {
        const std::string text = error.what();
        CHECK(error.code() == ErrorCode::kOutOfMemory);
        CHECK(text.find("allocator: allocate(") != text.npos);
        CHECK(text.find("are held there") != text.npos);
        CHECK(text.find(device.str()) != text.npos);
        ++failures;
        CHECK(counting.alive.size() <= 1);  // all of it is back but what loads keep for the next one
      }
      runtime.trim();
      CHECK(runtime.memory()[0].allocations == 0);
    }
    CHECK(counting.alive.empty());
    if (counting.calls <= at) break;
  }
  CHECK(failures >= 2);
}

TEST_CASE("memory: the allocator gets every byte, and may fail at any call") { check_failures("cpu", {}, nullptr); }

TEST_CASE("interpreted: the allocator gets every byte, and may fail at any call") {
  const auto info = device("gfx1030");
  if (!info) return;
  const Environment here = stand_in();
  check_failures("gfx1030", info->device, interpreted().impl().open(info->device));
}

TEST_CASE("memory: an allocator that breaks its contract is named") {
  alignas(256) static char memory[4096];
  void* released = nullptr;
  RuntimeOptions options;
  options.allocator = {[](std::size_t, std::size_t, Device, void*) -> void* { return memory + 8; },
                       [&](void* given, std::size_t, Device, void*) { released = given; }};
  const Runtime runtime(options);
  const GptqMatrix source = make_gptq({.k = 64, .n = 16, .group_size = 32});
  CHECK_THROWS_WITH_AS(QuantizedMatrix::from_gptq(runtime, {}, source.tensors()),
                       doctest::Contains("is not aligned to 256 bytes"), Error);
  CHECK(released == memory + 8);
  RuntimeOptions half;
  half.allocator.allocate = options.allocator.allocate;
  CHECK_THROWS_WITH_AS(Runtime{half}, doctest::Contains("set both allocate and release"), Error);
}

TEST_CASE("memory: a sealed Runtime allocates and compiles nothing") {
  std::vector<std::string> said;
  RuntimeOptions options;
  options.log = [&](LogLevel, const std::string& text) { said.push_back(text); };
  const Runtime runtime(options);
  const GptqMatrix source = make_gptq({.k = 256, .n = 64, .group_size = 64});
  const auto load = [&] { return QuantizedMatrix::from_gptq(runtime, {}, source.tensors()); };
  const auto matrix = load();
  const MatmulPlan plan(runtime, matrix, {.max_m = 4});
  runtime.seal(Sealing::kError);
  HostRows x = random_rows(DType::kF16, 4, 256), out(DType::kF16, 4, 64);
  plan.run({}, {x.data()}, {out.data()}, 4);  // what was prepared runs
  CHECK(relative_error(out, product(x, unpack(source.tensors()))) <= tolerance(DType::kF16));
  CHECK_THROWS_WITH_AS(load(), doctest::Contains("the runtime is sealed"), Error);
  CHECK_THROWS_WITH_AS(MatmulPlan(runtime, matrix, {.max_m = 8}), doctest::Contains("bytes of workspace"), Error);
  runtime.seal(Sealing::kWarn);
  said.clear();
  load(), load();
  CHECK(said.size() == 1);  // once each
  CHECK(said.at(0).find("bytes of weights are to be allocated on cpu") != std::string::npos);
  runtime.seal(Sealing::kOff);
  load();
  ::setenv("Q4_SEAL", "perhaps", 1);
  CHECK_THROWS_WITH_AS(runtime.seal(), doctest::Contains("not one of off, warn, error"), Error);
  ::setenv("Q4_SEAL", "off", 1);
  runtime.seal();
  load();
  ::unsetenv("Q4_SEAL");
  runtime.seal();
  CHECK_THROWS_AS(load(), Error);
}

TEST_CASE("interpreted: a sealed Runtime names the kernel that is missing") {
  const auto info = device("gfx1030");
  if (!info) return;
  const Environment here = stand_in();
  const TempFolder folder;
  RuntimeOptions options;
  options.cache_dir = folder / "cache";
  const Runtime runtime(options);
  const GptqMatrix source = make_gptq({.k = 128, .n = 64, .group_size = 64});
  const auto matrix = QuantizedMatrix::from_gptq(runtime, info->device, source.tensors());
  runtime.seal();
  CHECK_THROWS_WITH_AS(MatmulPlan(runtime, matrix, {.max_m = 1}),
                       doctest::Contains("is to be compiled for gfx1030 and written to"), Error);
}

}  // namespace
}  // namespace q4::test
