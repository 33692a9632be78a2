// The product on every device that is there, against fp64 on the unpacked tensors, over the shapes that break kernels.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cstring>
#include <thread>

#include "autotune/stopwatch.hpp"
#include "on_device.hpp"

using namespace q4;
using namespace q4::test;

namespace {

struct Case {
  MatrixSpec spec;
  std::vector<std::int64_t> ms = {1, 3, 8, 17};
};

MatrixSpec spec(std::int64_t k, std::int64_t n, std::int64_t group, ActOrder order = ActOrder::kNone,
                ZeroFormat zeros = ZeroFormat::kV1, bool bias = false) {
  MatrixSpec s;
  s.k = k, s.n = n, s.group_size = group, s.act_order = order, s.zeros = zeros, s.bias = bias;
  s.seed = static_cast<std::uint64_t>(k * 131 + n * 7 + group);
  return s;
}

std::vector<Case> table() {
  return {
      {spec(256, 64, 128), {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 65, 100}},
      {spec(512, 256, 128, ActOrder::kNone, ZeroFormat::kV2, true)},
      {spec(128, 8, 8)},
      {spec(256, 24, 16, ActOrder::kNone, ZeroFormat::kV1, true)},
      {spec(320, 40, 32)},
      {spec(448, 72, 64)},
      {spec(1024, 128, -1)},
      {spec(264, 136, -1, ActOrder::kNone, ZeroFormat::kV2)},
      {spec(384, 96, 24)},
      {spec(480, 64, 40)},
      {spec(1024, 64, 256)},
      {spec(200, 48, 128)},
      {spec(2752, 200, 128), {1, 5, 33}},
      {spec(231 * 16, 64, 16), {1, 4}},
      {spec(512, 192, 128, ActOrder::kPermuted), {1, 2, 9, 16, 40, 129}},
      {spec(512, 64, 64, ActOrder::kPermuted, ZeroFormat::kV2, true)},
      {spec(768, 104, 32, ActOrder::kUneven)},
      {spec(256, 64, 128, ActOrder::kTrivial)},
      {spec(3456, 136, 128, ActOrder::kUneven), {1, 16, 33}},
      {spec(4096, 1024, 128), {1, 16, 64, 300}},
  };
}

std::string text(const MatrixSpec& s) {
  return fmt::format("k={} n={} group={} act_order={} zeros={} bias={}", s.k, s.n, s.group_size,
                     static_cast<int>(s.act_order), static_cast<int>(s.zeros), s.bias);
}

void check_product(Device device, const QuantizedMatrix& matrix, const PlainMatrix& plain, DType type,
                   const PlanOptions& options, std::int64_t m, std::int64_t pad = 0) {
  const auto& runtime = shared_runtime();
  const MatmulPlan plan(runtime, matrix, options);
  const HostRows x = random_rows(type, m, plain.k, static_cast<std::uint64_t>(m + 3), pad ? plain.k + pad : 0);
  HostRows out(type, m, plain.n, pad ? plain.n + pad : 0);
  multiply(runtime, device, plan, x, out);
  if (m == 0) return;
  const double error = relative_error(out, product(x, plain));
  INFO("m=", m, " ", to_string(type), " ", plan.tactic(m));
  CHECK(error <= tolerance(type));
  CHECK(out.padding_intact());
}

}  // namespace

TEST_CASE("matmul: every device agrees with fp64 over the table of shapes") {
  for (const auto& info : ready_devices())
    for (const Case& one : table()) {
      const MatrixSpec& s = one.spec;
      INFO(info.device.str(), " ", text(s));
      const GptqMatrix source = make_gptq(s);
      GptqTensors tensors = source.tensors();
      const PlainMatrix plain = unpack(tensors);
      const auto matrix = QuantizedMatrix::from_gptq(shared_runtime(), info.device, tensors);
      CHECK(matrix.act_order() == (s.act_order == ActOrder::kPermuted || s.act_order == ActOrder::kUneven));
      for (const auto type : {DType::kF16, DType::kBF16, DType::kF32}) {
        if (type == DType::kF32 && info.device.kind != BackendKind::kCpu) continue;
        for (const auto m : one.ms) {
          PlanOptions options;
          options.activation = type, options.max_m = std::max<std::int64_t>(m, 1);
          check_product(info.device, matrix, plain, type, options, m, m % 2 ? 16 : 0);
        }
      }
    }
}

TEST_CASE("matmul: AWQ tensors give the same bits as the GPTQ tensors they were re-packed from") {
  for (const auto& info : ready_devices()) {
    const GptqMatrix source = make_gptq(spec(384, 136, 64, ActOrder::kNone, ZeroFormat::kV1, true));
    const AwqMatrix awq = to_awq(source);
    const auto a = QuantizedMatrix::from_gptq(shared_runtime(), info.device, source.tensors());
    const auto b = QuantizedMatrix::from_awq(shared_runtime(), info.device, awq.tensors());
    PlanOptions options;
    options.max_m = 5;
    const HostRows x = random_rows(DType::kF16, 5, 384);
    HostRows out_a(DType::kF16, 5, 136), out_b(DType::kF16, 5, 136);
    multiply(shared_runtime(), info.device, MatmulPlan(shared_runtime(), a, options), x, out_a);
    multiply(shared_runtime(), info.device, MatmulPlan(shared_runtime(), b, options), x, out_b);
    CHECK(std::memcmp(out_a.data(), out_b.data(), out_a.bytes()) == 0);
    CHECK(relative_error(out_b, product(x, unpack(awq.tensors()))) <= tolerance(DType::kF16));
  }
}

TEST_CASE("matmul: every tactic of the search space is right") {
  for (const auto& info : ready_devices())
    for (const auto order : {ActOrder::kNone, ActOrder::kPermuted})
      for (const auto type : {DType::kF16, DType::kBF16}) {
        const MatrixSpec s = spec(512, 192, 64, order, ZeroFormat::kV1, true);
        const GptqMatrix source = make_gptq(s);
        const PlainMatrix plain = unpack(source.tensors());
        const auto matrix = QuantizedMatrix::from_gptq(shared_runtime(), info.device, source.tensors());
        PlanOptions options;
        options.activation = type;
        for (const std::int64_t m : {1, 11, 70}) {
          options.max_m = m, options.tactic.clear();
          auto tactics = MatmulPlan(shared_runtime(), matrix, options).tactics(m);
          REQUIRE(!tactics.empty());
          // A GPU has hundreds: ten of them, others for each m, type and order.
          const std::size_t step = tactics.size() / 10 + 1;
          for (std::size_t i =
                   static_cast<std::size_t>(m + (order == ActOrder::kPermuted) + 2 * (type == DType::kBF16)) % step;
               i < tactics.size(); i += step) {
            options.tactic = tactics[i];
            check_product(info.device, matrix, plain, type, options, m);
          }
        }
      }
}

TEST_CASE("matmul: the same bits on every run, and for every m in batch-invariant plans") {
  for (const auto& info : ready_devices()) {
    const GptqMatrix source = make_gptq(spec(1024, 264, 128, ActOrder::kPermuted));
    const auto matrix = QuantizedMatrix::from_gptq(shared_runtime(), info.device, source.tensors());
    PlanOptions options;
    options.max_m = 40;
    const HostRows x = random_rows(DType::kF16, 40, 1024);
    HostRows first(DType::kF16, 40, 264), again(DType::kF16, 40, 264);
    const MatmulPlan plan(shared_runtime(), matrix, options);
    multiply(shared_runtime(), info.device, plan, x, first);
    for (int run = 0; run < 5; ++run) {
      again.poison();
      multiply(shared_runtime(), info.device, plan, x, again);
      CHECK(std::memcmp(first.data(), again.data(), first.bytes()) == 0);
    }
    options.batch_invariant = true;
    HostRows all(DType::kF16, 40, 264);
    multiply(shared_runtime(), info.device, MatmulPlan(shared_runtime(), matrix, options), x, all);
    for (const std::int64_t m : {1, 2, 7, 16, 33}) {
      options.max_m = m;
      HostRows rows(DType::kF16, m, 264), some(DType::kF16, m, 1024);
      const std::int64_t from = 40 - m;  // the last m rows: another place in the batch
      std::memcpy(some.data(), static_cast<const char*>(x.data()) + from * 1024 * 2, some.bytes());
      multiply(shared_runtime(), info.device, MatmulPlan(shared_runtime(), matrix, options), some, rows);
      CHECK(std::memcmp(rows.data(), static_cast<const char*>(all.data()) + from * 264 * 2, rows.bytes()) == 0);
    }
  }
}

TEST_CASE("matmul: large values stay finite inside, and NaN scales reach only their column") {
  for (const auto& info : ready_devices()) {
    MatrixSpec s = spec(512, 64, 128);
    s.scale = 0.002;
    GptqMatrix source = make_gptq(s);
    HostRows x(DType::kF16, 2, 512);
    for (std::int64_t r = 0; r < 2; ++r)
      for (std::int64_t c = 0; c < 512; ++c)
        x.set(r, c, (c * 7 + r) % 3 == 0 ? 60000. : -30000.);  // large terms that cancel
    const auto matrix = QuantizedMatrix::from_gptq(shared_runtime(), info.device, source.tensors());
    for (const auto math : {Math::kAuto, Math::kHalf2, Math::kFp32}) {
      PlanOptions options;
      options.max_m = 2, options.math = math;
      HostRows out(DType::kF16, 2, 64);
      multiply(shared_runtime(), info.device, MatmulPlan(shared_runtime(), matrix, options), x, out);
      const double error = relative_error(out, product(x, unpack(source.tensors())));
      INFO(info.device.str(), " math ", static_cast<int>(math));
      CHECK(error <= tolerance(DType::kF16));
    }
    source.scales[64 + 5] = 0x7e00;  // group 1, column 5
    const auto broken = QuantizedMatrix::from_gptq(shared_runtime(), info.device, source.tensors());
    PlanOptions options;
    const HostRows ones = random_rows(DType::kF16, 1, 512);
    HostRows out(DType::kF16, 1, 64);
    multiply(shared_runtime(), info.device, MatmulPlan(shared_runtime(), broken, options), ones, out);
    for (std::int64_t c = 0; c < 64; ++c) CHECK(std::isnan(out.at(0, c)) == (c == 5));
  }
}

TEST_CASE(
    "matmul: the sources are untouched and may be freed; plans outlive matrix handles and run from many threads") {
  for (const auto& info : ready_devices()) {
    PlainMatrix plain;
    std::vector<MatmulPlan> plans;
    {
      const GptqMatrix source = make_gptq(spec(512, 128, 128, ActOrder::kPermuted));
      const auto before = source.qweight;
      plain = unpack(source.tensors());
      const auto matrix = QuantizedMatrix::from_gptq(shared_runtime(), info.device, source.tensors());
      CHECK(source.qweight == before);
      PlanOptions options;
      options.max_m = 4;
      for (int i = 0; i < 4; ++i) plans.emplace_back(shared_runtime(), matrix, options);
    }
    std::vector<double> errors(4, 1);
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < 4; ++i)
      threads.emplace_back([&, i] {
        for (int run = 0; run < 10; ++run) {
          const HostRows x = random_rows(DType::kF16, 4, 512, i * 100 + static_cast<std::uint64_t>(run));
          HostRows out(DType::kF16, 4, 128);
          multiply(shared_runtime(), info.device, plans[i], x, out);
          errors[i] = relative_error(out, product(x, plain));
          if (!(errors[i] <= tolerance(DType::kF16))) return;
        }
      });
    for (auto& thread : threads) thread.join();
    for (const double error : errors) CHECK(error <= tolerance(DType::kF16));
  }
}

TEST_CASE("matmul: a workspace of the caller serves as well, and graphs replay") {
  for (const auto& info : ready_devices()) {
    auto backend = shared_runtime().impl().open(info.device);
    const GptqMatrix source = make_gptq(spec(512, 128, 128, ActOrder::kPermuted));
    const PlainMatrix plain = unpack(source.tensors());
    const auto matrix = QuantizedMatrix::from_gptq(shared_runtime(), info.device, source.tensors());
    PlanOptions options;
    options.max_m = 80;
    const MatmulPlan plan(shared_runtime(), matrix, options);
    const HostRows x = random_rows(DType::kF16, 80, 512);
    HostRows out(DType::kF16, 80, 128);
    const Buffer device_x(backend, x.bytes()), device_out(backend, out.bytes()),
        workspace(backend, plan.workspace_bytes() + 1);
    backend->copy(device_x.get(), x.data(), x.bytes(), CopyKind::kToDevice);
    backend->copy(device_out.get(), out.data(), out.bytes(), CopyKind::kToDevice);
    backend->fill(workspace.get(), 0, plan.workspace_bytes() + 1);
    const auto times = autotune::time_runs(
        *backend, [&](void* stream) { plan.run({stream}, {device_x.get()}, {device_out.get()}, 80, workspace.get()); },
        3);
    CHECK(times.size() == 3);
    for (const double us : times) CHECK(us > 0);
    backend->copy(out.data(), device_out.get(), out.bytes(), CopyKind::kToHost);
    CHECK(relative_error(out, product(x, plain)) <= tolerance(DType::kF16));
  }
}

TEST_CASE("matmul: tensors in the device's memory, with strides, untouched and freed before a thread of its own runs") {
  for (const auto& info : ready_devices()) {
    INFO(info.device.str());
    auto backend = shared_runtime().impl().open(info.device);
    const GptqMatrix source = make_gptq(spec(512, 128, 128, ActOrder::kPermuted));
    QuantizedMatrix matrix;
    {
      std::vector<std::unique_ptr<Buffer>> memory;
      std::vector<std::vector<char>> before;
      const auto move = [&](TensorView& view) {  // to rows that are 8 elements longer
        const auto size = size_of(view.dtype), row = static_cast<std::size_t>(view.cols) * size;
        std::vector<char> bytes(static_cast<std::size_t>(view.rows) * (row + 8 * size), 0x55);
        for (std::size_t r = 0; r < static_cast<std::size_t>(view.rows); ++r)
          std::memcpy(bytes.data() + r * (row + 8 * size), static_cast<const char*>(view.data) + r * row, row);
        memory.push_back(std::make_unique<Buffer>(backend, bytes.size()));
        backend->copy(memory.back()->get(), bytes.data(), bytes.size(), CopyKind::kToDevice);
        view.data = memory.back()->get(), view.device = info.device, view.row_stride = view.cols + 8;
        before.push_back(std::move(bytes));
      };
      GptqTensors tensors = source.tensors();
      move(tensors.qweight), move(tensors.qzeros), move(tensors.scales), move(*tensors.g_idx);
      matrix = QuantizedMatrix::from_gptq(shared_runtime(), info.device, tensors);
      for (std::size_t i = 0; i < memory.size(); ++i) {
        std::vector<char> after(before[i].size());
        backend->copy(after.data(), memory[i]->get(), after.size(), CopyKind::kToHost);
        CHECK(after == before[i]);
        backend->fill(memory[i]->get(), 0xff, after.size());
      }
    }
    const HostRows x = random_rows(DType::kF16, 40, 512);
    for (const std::int64_t reconstruct_from : {-1, 1}) {
      PlanOptions options;
      options.max_m = 40, options.reconstruct_from = reconstruct_from;
      double error = 1;
      std::thread([&] {  // no context is current there
        const MatmulPlan plan(shared_runtime(), matrix, options);
        HostRows out(DType::kF16, 40, 128);
        multiply(shared_runtime(), info.device, plan, x, out);
        error = relative_error(out, product(x, unpack(source.tensors())));
      })
          .join();
      CHECK(error <= tolerance(DType::kF16));
    }
  }
}

TEST_CASE("column_remap: gathers columns, any number of them") {
  for (const auto& info : ready_devices()) {
    auto backend = shared_runtime().impl().open(info.device);
    const std::int64_t rows = 5, x_cols = 1000, cols = 777;
    const HostRows x = random_rows(DType::kF16, rows, x_cols);
    HostRows out(DType::kF16, rows, cols);
    std::vector<std::int32_t> map;
    Random random(11);
    for (std::int64_t c = 0; c < cols; ++c) map.push_back(static_cast<std::int32_t>(random.below(x_cols)));
    const Buffer device_x(backend, x.bytes()), device_out(backend, out.bytes());
    backend->copy(device_x.get(), x.data(), x.bytes(), CopyKind::kToDevice);
    column_remap(shared_runtime(), info.device, {}, {device_x.get()}, x_cols, {device_out.get()}, map.data(), cols,
                 rows);
    backend->synchronize();
    backend->copy(out.data(), device_out.get(), out.bytes(), CopyKind::kToHost);
    bool same = true;
    for (std::int64_t r = 0; r < rows; ++r)
      for (std::int64_t c = 0; c < cols; ++c) same &= out.at(r, c) == x.at(r, map[static_cast<std::size_t>(c)]);
    CHECK(same);
    map[3] = 1000;
    CHECK_THROWS_AS(column_remap(shared_runtime(), info.device, {}, {device_x.get()}, x_cols, {device_out.get()},
                                 map.data(), cols, rows),
                    Error);
  }
}
