// The C ABI called with random arguments in random order; fuzz/capi_calls.hpp says what is wrong. libFuzzer makes the same
// calls (fuzz/run.sh): here they are the same each time, and the whole library is what the preset makes of it.
#include <doctest/doctest.h>

#include <string>

#include "checkpoint_maker.hpp"
#include "fuzz/capi_calls.hpp"
#include "interpreted.hpp"
#include "reference.hpp"
#include "report.hpp"
#include "runtime/base/settings.hpp"
#include "temp_folder.hpp"

namespace q4::test {
namespace {

TEST_CASE("the C ABI: random calls with random arguments give results or errors") {
  const TempFolder folder;
  write_safetensors(folder / "m.safetensors", file_tensors("m", make_gptq({.k = 64, .n = 32, .group_size = 32})));
  // Tensors are host memory: no GPU is to be found, nor a compiler, which each Runtime would look for and try.
  const Environment alone({{"Q4_CUDA_DRIVER", "none"},
                           {"Q4_HIP_RUNTIME", "none"},
                           {"Q4_BLAS", "none"},
                           {"Q4_NVRTC", "none"},
                           {"Q4_HIP_CLANG", "none"}});
  const std::string first = setting("Q4_PROPERTY_SEED"), seconds = setting("Q4_PROPERTY_SECONDS");
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds.empty() ? 0 : std::stol(seconds));
  const std::uint64_t begin = first.empty() ? 1 : std::stoull(first);
  std::uint64_t sequences = 0;
  unsigned made = 0, succeeded = 0;
  for (; seconds.empty() ? sequences < 1500 / kSlower : std::chrono::steady_clock::now() < end; ++sequences) {
    Random random(begin + sequences);
    std::string bytes(static_cast<std::size_t>(64 + random.below(1500)), '\0');
    for (char& byte : bytes) byte = static_cast<char>(random.below(256));
    made += call_c_abi(bytes, folder.path(), &succeeded);
  }
  MESSAGE(sequences << " sequences from seed " << begin << ", " << made << " steps, " << succeeded
                    << " calls succeeded");
  CHECK(made > 10 * sequences);
  CHECK(succeeded > made / 4);  // else they would all end at the first check
}

}  // namespace
}  // namespace q4::test
