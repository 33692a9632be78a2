// Plans that own no workspace, and take turns with one.
#include <doctest/doctest.h>

#include <algorithm>

#include "fake_gpu.hpp"
#include "kernels/problem.h"
#include "on_device.hpp"
#include "temp_folder.hpp"

using namespace q4;
using namespace q4::test;

namespace {

struct Shared {
  QuantizedMatrix matrix;
  PlainMatrix plain;
  MatmulPlan plan;
};

Shared make(Device device, std::int64_t k, std::int64_t n, ActOrder order, std::int64_t reconstruct_from) {
  MatrixSpec spec;
  spec.k = k, spec.n = n, spec.act_order = order;
  const GptqMatrix source = make_gptq(spec);
  Shared s;
  s.matrix = QuantizedMatrix::from_gptq(shared_runtime(), device, source.tensors());
  s.plain = unpack(source.tensors());
  PlanOptions options;
  options.max_m = 100, options.reconstruct_from = reconstruct_from, options.own_workspace = false;
  s.plan = MatmulPlan(shared_runtime(), s.matrix, options);
  return s;
}

}  // namespace

TEST_CASE("matmul: plans of one device take turns with one workspace") {
  for (const auto& info : shared_runtime().devices()) {
    const auto backend = shared_runtime().impl().open(info.device);
    std::vector<Shared> all;
    all.push_back(make(info.device, 1024, 64, ActOrder::kPermuted, 0));
    all.push_back(make(info.device, 4096, 128, ActOrder::kNone, 0));  // few columns: a GPU cuts k, and counts
    all.push_back(make(info.device, 512, 256, ActOrder::kUneven, 1));
    std::size_t bytes = 1;
    for (const auto& s : all) bytes = std::max(bytes, s.plan.workspace_bytes());
    const Buffer workspace(backend, bytes);
    backend->fill(workspace.get(), 0, bytes);
    for (int round = 0; round < 3; ++round)
      for (const auto& s : all)
        for (const std::int64_t m : {1, 16, 64, 100}) {
          const HostRows x = random_rows(DType::kF16, m, s.plain.k, static_cast<std::uint64_t>(m + round));
          HostRows out(DType::kF16, m, s.plain.n);
          const Buffer device_x(backend, x.bytes()), device_out(backend, out.bytes());
          backend->copy(device_x.get(), x.data(), x.bytes(), CopyKind::kToDevice);
          s.plan.run({}, {device_x.get()}, {device_out.get()}, m, workspace.get());
          backend->synchronize();
          backend->copy(out.data(), device_out.get(), out.bytes(), CopyKind::kToHost);
          INFO(info.device.str(), " k=", s.plain.k, " m=", m, " ", s.plan.tactic(m));
          CHECK(relative_error(out, product(x, s.plain)) <= tolerance(DType::kF16));
        }
    if (all[0].plan.workspace_bytes() == 0) continue;
    HostRows x = random_rows(DType::kF16, 1, 1024, 1), out(DType::kF16, 1, 64);
    CHECK_THROWS_WITH_AS(multiply(shared_runtime(), info.device, all[0].plan, x, out),
                         doctest::Contains("own_workspace = false"), Error);
  }
}

TEST_CASE("lora: what a plan keeps in a workspace lies behind the counters of those that share it") {
  if (cache::compiler_absent("lora's place in a workspace")) return;
  const TempFolder folder;
  const int status = cache::on_fake_gpu([&] {
    const Runtime runtime(cache::in(folder.path()));
    const auto bytes = [&](ActOrder order, bool lora) {
      MatrixSpec spec;
      spec.k = 256, spec.n = 256, spec.act_order = order;
      const auto matrix = QuantizedMatrix::from_gptq(runtime, cache::kGpu, make_gptq(spec).tensors());
      PlanOptions options;
      options.max_m = 64, options.min_m = 64, options.gather = Gather::kSeparate, options.epilogue.lora = lora,
      options.lora_rank = 16;
      return MatmulPlan(runtime, matrix, options).workspace_bytes();
    };
    Q4_CHILD_CHECK(bytes(ActOrder::kNone, false) == 0);  // no kernel of this plan counts
    // Where x is permuted, it lies behind the counters already, and low behind x.
    const std::size_t low = bytes(ActOrder::kPermuted, true) - bytes(ActOrder::kPermuted, false);
    Q4_CHILD_CHECK(low > 0 && low < kCounterBytes && bytes(ActOrder::kNone, true) >= kCounterBytes + low);
    return 0;
  });
  CHECK(status == 0);
}
