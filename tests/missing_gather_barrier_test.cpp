// That the tests of decode's gather would notice: without the barrier between x's arrival in shared memory and the
// gather, what other threads copy is not there yet.
#include "kernels/mma.h"
namespace q4 {
/// Each thread of a block calls it twice: once when x has come, once before the sums over the teams are added.
inline void second_barrier_alone() {
  static int calls[64] = {};
  if (calls[thread_index()]++ % 2 != 0) sync_block();
}
}  // namespace q4
#define sync_block() second_barrier_alone()  // in decode.h, for a config that occurs in no other file
#include "kernels/decode.h"
#undef sync_block

#include "kernel_runner.hpp"
#include "on_threads.hpp"

namespace q4::test {
namespace {

TEST_CASE("fibers: a gather without the barrier before it is wrong" *
          doctest::skip(emulation::default_engine() == emulation::Engine::kThreads)) {
  constexpr EmulatedCase kMatrix{.k = 640, .n = 40, .act_order = ActOrder::kPermuted};
  constexpr DecodeConfig C{.p = kMatrix.problem(), .tiles = 1, .brick = 1, .teams = 2, .staged = 2};
  static_assert(threads(C) == 64);
  const double error = largest_error(kMatrix, {2}, 0, [](const MatmulArgs& args) {
    constexpr EmulatedCase kMatrix{.k = 640, .n = 40, .act_order = ActOrder::kPermuted};
    constexpr DecodeConfig C{.p = kMatrix.problem(), .tiles = 1, .brick = 1, .teams = 2, .staged = 2};
    emulation::emulate({.grid = grid(C, args.m), .threads = threads(C), .shared_bytes = shared_bytes(C)},
                       [&] { decode<C>(args); });
  });
  CHECK_FALSE(error <= tolerance(DType::kF16));
}

}  // namespace
}  // namespace q4::test
