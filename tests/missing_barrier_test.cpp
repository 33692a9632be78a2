// The emulator's own proof: real kernels compiled without their barrier must fail, as NaN under fibers and as a report
// of ThreadSanitizer under threads.
#include "kernels/mma.h"
namespace q4 {
inline void skip_barrier() {}
}  // namespace q4
#define sync_block() skip_barrier()  // in the kernels below, and nowhere else: their configs occur in no other file
#include "kernels/batch.h"
#include "kernels/gemv.h"
#include "kernels/reconstruct.h"
#undef sync_block
#define named_barrier(id, threads) skip_barrier()
#include "kernels/decode.h"
#undef named_barrier

#include <sys/wait.h>

#include <cstdio>
#include <filesystem>

#include "kernel_runner.hpp"
#include "on_threads.hpp"
#include "report.hpp"

namespace q4::test {
namespace {

using emulation::emulate;
using emulation::Engine;

constexpr EmulatedCase kMatrix{.k = 640, .n = 72};  // gemv and reconstruct of this shape are instantiated only here
constexpr GemvConfig kGemv{.p = kMatrix.problem(), .half2 = 0, .rows = 1, .tiles = 2, .warps = 4};
constexpr ReconstructConfig kReconstruct{.p = kMatrix.problem()};

double gemv_error(Engine engine) {
  return largest_error(kMatrix, {1}, 0, [&](const MatmulArgs& args) {
    emulate(
        {.grid = grid(kGemv, args.m), .threads = threads(kGemv), .shared_bytes = shared_bytes(kGemv), .engine = engine},
        [&] { gemv<kGemv>(args); });
  });
}

constexpr EmulatedCase kDecodeMatrix{.k = 1152, .n = 72};
constexpr DecodeConfig kDecode{.p = kDecodeMatrix.problem(), .tiles = 4, .side = 2, .brick = 1, .teams = 2};

double decode_error(Engine engine) {
  return largest_error(kDecodeMatrix, {1}, 0, [&](const MatmulArgs& args) {
    emulate({.grid = grid(kDecode, args.m),
             .threads = threads(kDecode),
             .shared_bytes = shared_bytes(kDecode),
             .engine = engine},
            [&] { decode<kDecode>(args); });
  });
}

constexpr EmulatedCase kBatchMatrix{.k = 640, .n = 136};
constexpr BatchConfig kBatch{.p = kBatchMatrix.problem(), .rows = 16, .strips = 2, .teams = 2, .stages = 2};

double batch_error(Engine engine) {
  return largest_error(kBatchMatrix, {5}, 0, [&](const MatmulArgs& args) {
    emulate({.grid = grid(kBatch, args.m),
             .threads = threads(kBatch),
             .shared_bytes = shared_bytes(kBatch),
             .engine = engine},
            [&] { batch<kBatch>(args); });
  });
}

TEST_CASE("fibers: gemv without its barrier gives NaN") {
  if (skipped_on_threads("fibers")) return;
  CHECK_FALSE(gemv_error(Engine::kFibers) <= tolerance(DType::kF16));
}
TEST_CASE("fibers: decode without the barrier of its teams is wrong") {
  if (skipped_on_threads("fibers")) return;
  CHECK_FALSE(decode_error(Engine::kFibers) <= tolerance(DType::kF16));
}
TEST_CASE("fibers: batch without its barriers is wrong") {
  if (skipped_on_threads("fibers")) return;
  CHECK_FALSE(batch_error(Engine::kFibers) <= tolerance(DType::kF16));
}

TEST_CASE("child: batch without its barriers" * doctest::skip()) { batch_error(Engine::kThreads); }

TEST_CASE("child: decode without the barrier of its teams" * doctest::skip()) { decode_error(Engine::kThreads); }

TEST_CASE("child: gemv without its barrier" * doctest::skip()) { gemv_error(Engine::kThreads); }

TEST_CASE("child: reconstruct without its barrier" * doctest::skip()) {
  const PackedMatrix packed = pack_reference(unpack(make_gptq({.k = kMatrix.k, .n = kMatrix.n}).tensors()), 128);
  const DeviceBytes codes(packed.codes), meta(packed.meta);
  HostRows w(DType::kF16, kMatrix.k, kMatrix.n);
  const ReconstructArgs args{codes.data(), meta.data(), nullptr,   static_cast<u16*>(w.data()),
                             kMatrix.n,    0,           kMatrix.n, nullptr};
  emulate({.threads = threads(kReconstruct), .shared_bytes = shared_bytes(kReconstruct), .engine = Engine::kThreads},
          [&] { reconstruct<kReconstruct>(args); });
}

TEST_CASE("child: lanes that do meet" * doctest::skip()) {
  emulate({.threads = 128, .shared_bytes = 512, .engine = Engine::kThreads}, [] {
    int* shared = reinterpret_cast<int*>(shared_memory());
    shared[thread_index()] = 1;
    sync_block();
    CHECK(shared[thread_index() ^ 64] == 1);
  });
}

/// Runs one of the cases above in a process of its own.
int exit_code_of(const std::string& name, std::string& output) {
  const std::string binary = std::filesystem::read_symlink("/proc/self/exe").string();
  const std::string command =
      "TSAN_OPTIONS=exitcode=66 '" + binary + "' --no-skip --test-case='child: " + name + "' 2>&1";
  FILE* child = popen(command.c_str(), "r");
  REQUIRE(child != nullptr);
  output.clear();
  for (int c; (c = fgetc(child)) != EOF;) output += static_cast<char>(c);
  const int status = pclose(child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST_CASE("threads: ThreadSanitizer reports a missing barrier") {
  if (!kThreads) return skip("needs a build with ThreadSanitizer: preset tsan");
  std::string output;
  CHECK(exit_code_of("lanes that do meet", output) == 0);
  CHECK(exit_code_of("gemv without its barrier", output) == 66);
  CHECK(output.find("ThreadSanitizer: data race") != std::string::npos);
  CHECK(exit_code_of("decode without the barrier of its teams", output) == 66);
  CHECK(output.find("ThreadSanitizer: data race") != std::string::npos);
  CHECK(exit_code_of("batch without its barriers", output) == 66);
  CHECK(output.find("ThreadSanitizer: data race") != std::string::npos);
  CHECK(exit_code_of("reconstruct without its barrier", output) == 66);
  CHECK(output.find("ThreadSanitizer: data race") != std::string::npos);
}

}  // namespace
}  // namespace q4::test
