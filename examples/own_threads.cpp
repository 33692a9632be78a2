// A program with a thread pool of its own: q4's tasks run in it, also when the program calls q4 from inside a parallel
// region. Two matrices are multiplied at once, each by half of the threads. With TBB where it was found (it composes by
// itself), else with OpenMP (whose inner regions must be allowed).
#include <algorithm>
#include <cstdio>
#include <functional>
#include <q4/q4.hpp>
#include <thread>
#include <vector>

#if defined(EXAMPLE_TBB)
#include <tbb/parallel_for.h>
#else
#include <omp.h>
#endif

namespace {

constexpr int kMatrices = 2;

/// Calls body(0), ... body(count - 1), up to `count` at once; what q4::RuntimeOptions::parallel_for wants. q4 takes care
/// of tasks that start late: they find nothing left to do.
void parallel(int count, const std::function<void(int)>& body) {
#if defined(EXAMPLE_TBB)
  tbb::parallel_for(0, count,
                    [&](int i) { body(i); });  // an idle worker of the one pool steals whatever level it is of
#else
#pragma omp parallel for num_threads(count) schedule(dynamic, 1)
  for (int i = 0; i < count; ++i) body(i);
#endif
}

}  // namespace

int main() try {
  const std::int64_t k = 512, n = 512, groups = k / 128, m = 8;
  std::vector<std::uint32_t> qweight(k / 8 * n, 0x76543210), qzeros(groups * n / 8, 0);
  std::vector<std::uint16_t> scales(groups * n, 0x3800);  // fp16 0.5
  q4::GptqTensors tensors;
  tensors.qweight = {qweight.data(), q4::DType::kI32, k / 8, n};
  tensors.qzeros = {qzeros.data(), q4::DType::kI32, groups, n / 8};
  tensors.scales = {scales.data(), q4::DType::kF16, groups, n};

  const int threads = std::max(2, int(std::thread::hardware_concurrency()));
#if !defined(EXAMPLE_TBB)
  omp_set_max_active_levels(2);  // the outer region is of matrices, the inner one of q4's tasks
#endif
  q4::RuntimeOptions options;
  options.cpu_threads = threads / kMatrices;  // tasks of one call: both calls together fill the machine
  options.parallel_for = parallel;
  const q4::Runtime runtime(options);
  const auto matrix = q4::QuantizedMatrix::from_gptq(runtime, q4::Device::parse("cpu"), tensors);

  // A plan's workspace serves one run at a time: as many plans as runs at once.
  const q4::PlanOptions plan_options{.max_m = m, .activation = q4::DType::kF32};
  const q4::MatmulPlan plans[kMatrices] = {{runtime, matrix, plan_options}, {runtime, matrix, plan_options}};
  const std::vector<float> x(m * k, 1.0f);
  std::vector<float> outs[kMatrices];
  for (auto& out : outs) out.resize(m * n);
  parallel(kMatrices, [&](int i) { plans[i].run(q4::Stream(), {x.data()}, {outs[i].data()}, m); });

  const float expected = float(k) / 8 * 0.5f * (0 + 1 + 2 + 3 + 4 + 5 + 6 + 7 - 8 * 1);
  for (const auto& out : outs)
    for (const float value : out)
      if (value != expected) return std::fprintf(stderr, "got %g instead of %g\n", value, expected), 1;
  std::printf("%d products at once, each by up to %d threads: every element is %g\n", kMatrices, options.cpu_threads,
              expected);
  return 0;
} catch (const q4::Error& error) {
  std::fprintf(stderr, "%s: %s\n", q4::to_string(error.code()), error.what());
  return 1;
}
