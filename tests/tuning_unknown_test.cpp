// A record whose tactic this version does not know: the default serves, and a process reports it once; q4-info lists it.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdlib>
#include <q4/q4.hpp>
#include <string>
#include <vector>

#include "cache_support.hpp"
#include "runtime/backends/backend.hpp"
#include "runtime/choose/kernel.hpp"
#include "runtime/tuning_key.hpp"

namespace q4::cache {
namespace {

/// On the fake driver's GPU, in a child process. Returns the number of reports.
int reports_of(const std::string& file) {
  return finish(start([&] {
    ::setenv("Q4_CUDA_DRIVER", q4::test::fake_cuda().c_str(), 1);
    ::setenv("Q4_HIP_RUNTIME", "none", 1);
    std::vector<std::string> said;
    RuntimeOptions options;
    options.cache_mode = CacheMode::kOff;
    options.tuning_files = {file};
    options.log = [&](LogLevel level, const std::string& text) {
      if (level <= LogLevel::kWarning) said.push_back(text);
    };
    const Runtime runtime(options);
    const Device gpu{BackendKind::kCuda, 0};
    TuningDb db;
    TuningRecord record;
    const DeviceInfo info = runtime.info(gpu);
    record.key.fingerprint = info.fingerprint, record.key.arch = info.arch, record.key.units = info.compute_units;
    record.key.k = 256, record.key.n = 512, record.key.group = 64;
    record.key.kernels = tuning_digest(choose::kernel_digests());
    record.buckets = {{1, "from-the-future speed=9", 1, 1, 1, 1, 0}};
    db.add(record);
    db.save(file);
    WarmupOptions warmup;
    warmup.device = gpu, warmup.deadline_s = 1e-9;  // it chooses, and compiles nothing
    for (int again = 0; again < 3; ++again) (void)runtime.warmup({{256, 512, 64}}, warmup);
    return static_cast<int>(std::ranges::count_if(said, [](const std::string& text) {
      return contains(text, "from-the-future") && contains(text, "m = 1") && contains(text, "there are: ") &&
             contains(text, "the default is used");
    }));
  }));
}

TEST_CASE("tuning: a tactic that this version does not know is reported once, and by q4-info") {
  const TempFolder s;
  const std::string file = s / "tuning.jsonl";
  CHECK(reports_of(file) == 1);
  const auto info =
      run_tool("q4-info", "Q4_HIP_RUNTIME=none Q4_CUDA_DRIVER=" + q4::test::fake_cuda() + " Q4_TUNING=" + file);
  CHECK_MESSAGE(contains(info.out, "from-the-future"), info.out);
}

}  // namespace
}  // namespace q4::cache
