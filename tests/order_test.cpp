// Plans that are given x in the matrix's own order (q4/order.hpp) compute what plans compute that permute it.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <q4/order.hpp>

#include "on_device.hpp"
#include "rejects.hpp"
#include "runtime/choose/given.hpp"
#include "runtime/choose/sources.hpp"
#include "runtime/matmul.hpp"

namespace q4::test {
namespace {

HostRows in_order(const HostRows& x, const std::vector<std::int32_t>& order) {
  HostRows permuted(x.dtype(), x.rows(), x.cols(), x.row_stride());
  for (std::int64_t r = 0; r < x.rows(); ++r)
    for (std::int64_t c = 0; c < x.cols(); ++c) permuted.set(r, c, x.at(r, order[static_cast<std::size_t>(c)]));
  return permuted;
}

HostRows run(Device device, const QuantizedMatrix& matrix, PlanOptions options, const HostRows& x) {
  options.max_m = x.rows(), options.activation = x.dtype();
  HostRows out(x.dtype(), x.rows(), matrix.n());
  multiply(shared_runtime(), device, MatmulPlan(shared_runtime(), matrix, options), x, out);
  return out;
}

bool same_values(const HostRows& a, const HostRows& b) {
  bool same = true;
  for (std::int64_t r = 0; r < a.rows(); ++r)
    for (std::int64_t c = 0; c < a.cols(); ++c)
      same = same && (a.at(r, c) == b.at(r, c) || (std::isnan(a.at(r, c)) && std::isnan(b.at(r, c))));
  return same;
}

QuantizedMatrix load(Device device, const GptqMatrix& source) {
  return QuantizedMatrix::from_gptq(shared_runtime(), device, source.tensors());
}

TEST_CASE("x's order: a plan that is given x in it agrees with fp64, on every device") {
  for (const auto& info : ready_devices())
    for (const auto& [k, n, group, order] : std::vector<std::tuple<std::int64_t, std::int64_t, std::int64_t, ActOrder>>{
             {512, 64, 128, ActOrder::kPermuted},
             {1032, 72, 32, ActOrder::kPermuted},  // the last group is short, and k no multiple of 64
             {256, 136, 64, ActOrder::kNone},
             {384, 64, -1, ActOrder::kPermuted}}) {
      const GptqMatrix source = make_gptq({.k = k, .n = n, .group_size = group, .act_order = order, .bias = true});
      const auto matrix = load(info.device, source);
      const auto columns = x_order(matrix);
      REQUIRE(columns.size() == static_cast<std::size_t>(k));
      auto sorted = columns;
      std::sort(sorted.begin(), sorted.end());
      for (std::int64_t c = 0; c < k; ++c) CHECK(sorted[static_cast<std::size_t>(c)] == c);
      CHECK((columns == sorted) == !matrix.act_order());
      for (const std::int64_t m : {1, 8, 16, 70}) {
        CAPTURE(info.device.str());
        CAPTURE(k);
        CAPTURE(m);
        const HostRows x = random_rows(DType::kF16, m, k, 7, (k + 7) / 8 * 8);
        const HostRows given = run(info.device, matrix, {.gather = Gather::kGiven}, in_order(x, columns));
        CHECK(relative_error(given, product(x, unpack(source.tensors()))) <= tolerance(DType::kF16));
        if (info.device == Device::parse("cpu")) CHECK(same_values(given, run(info.device, matrix, {}, x)));
      }
    }
}

TEST_CASE("x's order: infinities and other math, on the CPU") {
  const Device cpu = Device::parse("cpu");
  const GptqMatrix source = make_gptq({.k = 256, .n = 40, .group_size = 32, .act_order = ActOrder::kPermuted});
  const auto matrix = load(cpu, source);
  for (const auto type : {DType::kF32, DType::kBF16})
    for (const auto math : {Math::kAuto, Math::kInt8}) {
      HostRows x = random_rows(type, 5, 256);
      x.set(1, 17, std::numeric_limits<double>::infinity());
      x.set(2, 100, -std::numeric_limits<double>::infinity()), x.set(2, 3, std::numeric_limits<double>::infinity());
      const PlanOptions plain{.math = math}, given{.math = math, .gather = Gather::kGiven};
      CHECK(same_values(run(cpu, matrix, given, in_order(x, x_order(matrix))), run(cpu, matrix, plain, x)));
    }
}

TEST_CASE("x's order: the same for matrices of one g_idx, and that of other weights after an update") {
  const Device cpu = Device::parse("cpu");
  const GptqMatrix first =
      make_gptq({.k = 256, .n = 64, .group_size = 64, .act_order = ActOrder::kPermuted, .seed = 1});
  GptqMatrix second = make_gptq({.k = 256, .n = 32, .group_size = 64, .act_order = ActOrder::kPermuted, .seed = 2});
  auto q = load(cpu, first);
  const auto other = load(cpu, second);
  CHECK_FALSE(same_x_order(q, other));
  second.g_idx = first.g_idx;
  const auto v = load(cpu, second);
  CHECK(same_x_order(q, v));
  CHECK(same_x_order(v, q));
  GptqMatrix third = make_gptq({.k = 256, .n = 64, .group_size = 64, .act_order = ActOrder::kPermuted, .seed = 3});
  const auto before = x_order(q);
  q.update(third.tensors());
  CHECK(x_order(q) != before);
  CHECK_FALSE(same_x_order(q, v));
  const HostRows x = random_rows(DType::kF16, 3, 256);
  CHECK(same_values(run(cpu, q, {.gather = Gather::kGiven}, in_order(x, x_order(q))), run(cpu, q, {}, x)));
}

TEST_CASE("x's order: what has none is refused, and so are adapters") {
  const Device cpu = Device::parse("cpu");
  for (const auto& spec : {MatrixSpec{.k = 240, .n = 16, .group_size = 24, .act_order = ActOrder::kPermuted},
                           MatrixSpec{.k = 256, .n = 16, .group_size = 64, .act_order = ActOrder::kUneven}}) {
    const auto matrix = load(cpu, make_gptq(spec));
    rejects("padded groups", ErrorCode::kUnsupported, {"x_order", "padded", "16, 32, 64", "gather"},
            [&] { (void)x_order(matrix); });
    rejects("padded groups in a plan", ErrorCode::kUnsupported, {"MatmulPlan", "padded"},
            [&] { MatmulPlan(shared_runtime(), matrix, {.gather = Gather::kGiven}); });
    CHECK_FALSE(same_x_order(matrix, matrix));
  }
  const auto matrix = load(cpu, make_gptq({.act_order = ActOrder::kPermuted}));
  rejects("adapters", {"MatmulPlan", "gather", "lora"},
          [&] { MatmulPlan(shared_runtime(), matrix, {.gather = Gather::kGiven, .epilogue = {.lora = true}}); });
  rejects("no matrix", {"x_order", "empty"}, [&] { (void)x_order({}); });
}

TEST_CASE("x's order: on a GPU the kernels are those of a matrix without act-order") {
  const choose::Gpu gpu{"cuda:0", "sm_90a", {.arch = 90, .units = 132, .shared_bytes = 232448}};
  const auto names = [&](bool act_order, Gather gather) {
    const PlanOptions options{.max_m = 2048, .gather = gather};
    const MatrixShape shape = planned_shape({4096, 4096, 128, act_order}, options);
    std::vector<std::string> all;
    for (const auto& source : choose::sources(shape, choose::choose(shape, options, gpu, nullptr), gpu.limits))
      all.push_back(source.name);
    return all;
  };
  CHECK(names(true, Gather::kGiven) == names(false, Gather::kAuto));
  CHECK(names(true, Gather::kAuto) != names(false, Gather::kAuto));
}

}  // namespace
}  // namespace q4::test
