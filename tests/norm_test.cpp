// Plans that normalize x (PlanOptions::norm): against fp64 on every device, which kernels they take, and what is refused.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "epilogue_reference.hpp"
#include "kernel_runner.hpp"
#include "kernels/norm.h"
#include "on_device.hpp"
#include "rejects.hpp"
#include "runtime/choose/sources.hpp"
#include "runtime/matmul.hpp"

namespace q4::test {
namespace {

constexpr Limits kH200{.arch = 90, .units = 132, .shared_bytes = 232448};
constexpr double kEpsilon = 0.01;

HostRows run(Device device, const MatmulPlan& plan, const HostRows& x, const HostRows& weight) {
  auto backend = shared_runtime().impl().open(device);
  HostRows out(x.dtype(), x.rows(), plan.out_columns());
  const Buffer on_x(backend, x.bytes() + 16), on_weight(backend, weight.bytes() + 16),
      on_out(backend, out.bytes() + 16);
  backend->copy(on_x.get(), x.data(), x.bytes(), CopyKind::kToDevice);
  backend->copy(on_weight.get(), weight.data(), weight.bytes(), CopyKind::kToDevice);
  backend->copy(on_out.get(), out.data(), out.bytes(), CopyKind::kToDevice);
  RunInputs inputs;
  inputs.norm_weight = on_weight.get();
  plan.run({}, {on_x.get(), x.row_stride()}, {on_out.get()}, x.rows(), inputs);
  backend->synchronize();
  backend->copy(out.data(), on_out.get(), out.bytes(), CopyKind::kToHost);
  return out;
}

TEST_CASE("norm: agrees with fp64 on every device") {
  for (const auto& info : ready_devices())
    for (const auto order : {ActOrder::kNone, ActOrder::kPermuted})
      for (const std::int64_t k : {512, 1032}) {
        const GptqMatrix source = make_gptq({.k = k, .n = 192, .group_size = 64, .act_order = order, .bias = true});
        const PlainMatrix plain = unpack(source.tensors());
        const auto matrix =
            QuantizedMatrix::from_gptq(shared_runtime(), info.device, source.tensors(), {.gate_up = true});
        for (const auto type : {DType::kF16, DType::kBF16, DType::kF32}) {
          if (type == DType::kF32 && !traits_of(info.device).fp32_activations) continue;
          const HostRows weight = random_rows(type, 1, k, 21);
          for (const std::int64_t m : {1, 3, 8, 20, 70}) {
            HostRows x = random_rows(type, m, k, 7, k + 8);
            for (std::int64_t r = 0; r < m; ++r)
              for (std::int64_t c = 0; c < k; ++c) x.set(r, c, x.at(r, c) * std::pow(3.0, static_cast<int>(r % 5) - 2));
            const auto expected =
                finished(product(normed(x, weight, kEpsilon), plain), m, 192, Activation::kSiluMul, nullptr);
            for (const std::int64_t from : {0, 1}) {
              if (from == 1 && !traits_of(info.device).blas_finishes) continue;
              PlanOptions options{.max_m = m,
                                  .activation = type,
                                  .reconstruct_from = from,
                                  .norm = true,
                                  .norm_epsilon = static_cast<float>(kEpsilon)};
              options.epilogue.activation = Activation::kSiluMul;
              const MatmulPlan plan(shared_runtime(), matrix, options);
              CAPTURE(info.device.str());
              CAPTURE(to_string(type));
              CAPTURE(k);
              CAPTURE(m);
              CAPTURE(plan.tactic(m));
              CHECK(relative_error(run(info.device, plan, x, weight), expected) <= 1.5 * tolerance(type));
            }
          }
        }
      }
}

TEST_CASE("norm: every tactic has it, and so has reconstruction") {
  for (const auto& info : ready_devices()) {
    const GptqMatrix source = make_gptq({.k = 512, .n = 128, .group_size = 128, .act_order = ActOrder::kPermuted});
    const PlainMatrix plain = unpack(source.tensors());
    const auto matrix = QuantizedMatrix::from_gptq(shared_runtime(), info.device, source.tensors());
    for (const std::int64_t m : {1, 12, 70}) {
      PlanOptions options{.max_m = m, .norm = true, .norm_epsilon = static_cast<float>(kEpsilon)};
      const HostRows x = random_rows(DType::kF16, m, 512), weight = random_rows(DType::kF16, 1, 512, 21);
      const auto expected = product(normed(x, weight, kEpsilon), plain);
      const auto tactics = MatmulPlan(shared_runtime(), matrix, options).tactics(m);
      const std::size_t step = tactics.size() / 12 + 1;
      for (std::size_t i = static_cast<std::size_t>(m) % step; i < tactics.size(); i += step) {
        options.tactic = tactics[i];
        CAPTURE(info.device.str());
        CAPTURE(m);
        CAPTURE(options.tactic);
        CHECK(relative_error(run(info.device, MatmulPlan(shared_runtime(), matrix, options), x, weight), expected) <=
              tolerance(DType::kF16));
      }
    }
  }
}

TEST_CASE("norm: decode has it within for a few rows, and other kernels a launch before") {
  const auto chosen = [](bool act_order, std::int64_t m, bool norm = true) {
    PlanOptions options{.max_m = m, .min_m = m, .norm = norm};
    const auto choices = choose::choose(planned_shape({4096, 6144, 128, act_order}, options), options,
                                        {"cuda:0", "sm_90a", kH200}, nullptr);
    REQUIRE(choices.size() == 1);
    return choices[0].tactic.str();
  };
  CHECK(chosen(false, 1).starts_with("decode "));
  CHECK(chosen(false, 1).find(" staged=1 ") != std::string::npos);
  CHECK(chosen(false, 8).find(" staged=8 ") != std::string::npos);
  CHECK(chosen(false, 16).starts_with("remap+prefill "));
  CHECK(chosen(true, 1).starts_with("remap+decode "));
  CHECK(chosen(false, 16, false).starts_with("prefill "));
  const auto names = [](std::int64_t max_m) {
    const PlanOptions options{.max_m = max_m, .norm = true};
    const MatrixShape shape = planned_shape({4096, 6144, 128, false}, options);
    std::string all;
    for (const auto& source :
         choose::sources(shape, choose::choose(shape, options, {"cuda:0", "sm_90a", kH200}, nullptr), kH200))
      all += source.name.substr(0, source.name.find(' ')) + " ";
    return all;
  };
  CHECK(names(1).find(" norm ") == std::string::npos);
  CHECK(names(64).find(" norm ") != std::string::npos);
}

TEST_CASE("plans leave multiprocessors to others where they are asked to") {
  const auto chosen = [](int spare) {
    const PlanOptions options{.spare_units = spare};
    return choose::choose(planned_shape({4096, 4096, 128, false}, options), options, {"cuda:0", "sm_90a", kH200},
                          nullptr)
        .at(0);
  };
  CHECK(chosen(0).kernel->grid(1) == 128);
  CHECK(chosen(8).kernel->grid(1) == 86);
  CHECK(chosen(1000).kernel->grid(1) >= 1);
  rejects("fewer than none", {"MatmulPlan", "spare_units", "-1"}, [&] {
    const auto matrix =
        QuantizedMatrix::from_gptq(shared_runtime(), {}, make_gptq({.k = 128, .n = 64, .group_size = 64}).tensors());
    MatmulPlan(shared_runtime(), matrix, {.spare_units = -1});
  });
}

template <NormConfig C>
void check_kernel(bool mapped) {
  constexpr int kRows = 5, kColumns = 264, kPacked = 384;
  const DType type = C.bf16 ? DType::kBF16 : DType::kF16;
  const HostRows x = random_rows(type, kRows, kColumns, 3, kColumns + 8), weight = random_rows(type, 1, kColumns, 4);
  std::vector<i32> map(kPacked, -1);
  for (int c = 0; c < kColumns; ++c)
    map[static_cast<std::size_t>(c + 100)] = (c * 5) % kColumns;  // 5 and 264 have no divisor
  HostRows out(type, kRows, kPacked, kPacked + 8);
  const NormArgs args{static_cast<const u16*>(x.data()),
                      static_cast<u16*>(out.data()),
                      mapped ? map.data() : nullptr,
                      static_cast<const u16*>(weight.data()),
                      x.row_stride(),
                      out.row_stride(),
                      kRows,
                      kPacked,
                      kColumns,
                      0.01f};
  emulation::emulate({.grid = 2, .threads = C.threads, .shared_bytes = shared_bytes(C)}, [&] { norm<C>(args); });
  const HostRows expected = normed(x, weight, 0.01f);
  std::vector<double> wanted;
  for (int r = 0; r < kRows; ++r)
    for (int c = 0; c < kPacked; ++c) {
      const int from = mapped ? map[static_cast<std::size_t>(c)] : c < kColumns ? c : -1;
      wanted.push_back(from < 0 ? 0 : expected.at(r, from));
      if (from < 0) CHECK(out.at(r, c) == 0);
    }
  CHECK(relative_error(out, wanted) <= tolerance(type));
  CHECK(out.padding_intact());
}

TEST_CASE("norm: the kernel, in emulation") {
  check_kernel<NormConfig{.threads = 64}>(false);
  check_kernel<NormConfig{.threads = 128, .bf16 = 1}>(true);
}

TEST_CASE("norm: what is refused, and why") {
  const Runtime& runtime = shared_runtime();
  const GptqMatrix source = make_gptq({.k = 128, .n = 64, .group_size = 64});
  const auto matrix = QuantizedMatrix::from_gptq(runtime, {}, source.tensors());
  rejects("adapters", {"MatmulPlan", "norm", "lora"},
          [&] { MatmulPlan(runtime, matrix, {.epilogue = {.lora = true}, .norm = true}); });
  rejects("epsilon", {"MatmulPlan", "norm_epsilon", "-1"},
          [&] { MatmulPlan(runtime, matrix, {.norm = true, .norm_epsilon = -1.0f}); });
  HostRows x = random_rows(DType::kF16, 1, 128), out(DType::kF16, 1, 64);
  const MatmulPlan with(runtime, matrix, {.norm = true}), without(runtime, matrix, {});
  rejects("no weights", {"MatmulPlan::run", "norm_weight", "norm = true"},
          [&] { with.run({}, {x.data()}, {out.data()}, 1); });
  RunInputs inputs;
  inputs.norm_weight = x.data();
  rejects("weights for no norm", {"MatmulPlan::run", "norm_weight", "norm = false"},
          [&] { without.run({}, {x.data()}, {out.data()}, 1, inputs); });
  inputs.norm_weight = static_cast<const char*>(x.data()) + 1;
  rejects("unaligned weights", {"MatmulPlan::run", "norm_weight", "aligned"},
          [&] { with.run({}, {x.data()}, {out.data()}, 1, inputs); });
}

}  // namespace
}  // namespace q4::test
