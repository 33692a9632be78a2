// Adapters through plans, on every device that is there: against fp64, changed under a plan, and what is refused.
#include <doctest/doctest.h>

#include <memory>

#include "bad_input.hpp"
#include "epilogue_reference.hpp"
#include "kernels/lora.h"
#include "lora_case.hpp"
#include "on_device.hpp"
#include "runtime/choose/defaults/prefill.hpp"

namespace q4::test {
namespace {

TensorView view(const HostRows& rows) {
  return {rows.data(), rows.dtype(), rows.rows(), rows.cols(), rows.row_stride()};
}
LoraTensors tensors(const LoraCase& source, std::size_t i) {
  return {view(source.a[i]), view(source.b[i]), source.scales[i]};
}

/// A plan with adapters on a device, and rows to run it with.
struct OnDevice {
  std::shared_ptr<DeviceBackend> backend;
  std::int64_t m;
  HostRows x;
  std::vector<std::int32_t> rows;
  Buffer on_x, on_out, on_rows;

  OnDevice(Device device, const LoraCase& source, std::int64_t m, std::int64_t outs)
      : backend(shared_runtime().impl().open(device)),
        m(m),
        x(random_rows(source.type, m, source.k, 17)),
        rows(source.rows(m)),
        on_x(backend, x.bytes()),
        on_out(backend, static_cast<std::size_t>(m * outs) * 4),
        on_rows(backend, rows.size() * 4) {
    backend->copy(on_x.get(), x.data(), x.bytes(), CopyKind::kToDevice);
    backend->copy(on_rows.get(), rows.data(), rows.size() * 4, CopyKind::kToDevice);
  }
  HostRows run(const MatmulPlan& plan, const LoraAdapters& adapters) {
    HostRows out(x.dtype(), m, plan.out_columns());
    backend->copy(on_out.get(), out.data(), out.bytes(), CopyKind::kToDevice);
    plan.run({}, {on_x.get()}, {on_out.get()}, m,
             {.adapters = &adapters, .adapter_of_row = static_cast<const std::int32_t*>(on_rows.get())});
    backend->synchronize();
    backend->copy(out.data(), on_out.get(), out.bytes(), CopyKind::kToHost);
    return out;
  }
};

TEST_CASE("lora: rows get what their adapters add, on every device") {
  for (const auto& info : ready_devices())
    for (const bool gate_up : {false, true})
      for (const auto type : {DType::kF16, DType::kBF16, DType::kF32}) {
        if (type == DType::kF32 && !traits_of(info.device).fp32_activations) continue;
        const GptqMatrix source = make_gptq({.k = 264,
                                             .n = 144,
                                             .group_size = 64,
                                             .act_order = gate_up ? ActOrder::kPermuted : ActOrder::kNone,
                                             .bias = true});
        const PlainMatrix plain = unpack(source.tensors());
        const auto matrix =
            QuantizedMatrix::from_gptq(shared_runtime(), info.device, source.tensors(), {.gate_up = gate_up});
        const LoraCase adapters(264, 144, type, {1, 16, 33, 64, 8}), few(264, 144, type, {16, 9});
        LoraAdapters table(shared_runtime(), matrix, {.adapters = 5, .max_rank = 64, .type = type}),
            small(shared_runtime(), matrix, {.adapters = 2, .max_rank = 16, .type = type});
        for (std::size_t i = 0; i < 5; ++i) table.set(static_cast<std::int64_t>(i), tensors(adapters, i));
        for (std::size_t i = 0; i < 2; ++i) small.set(static_cast<std::int64_t>(i), tensors(few, i));
        CHECK((table.rank(2) == 33 && table.bytes() > 0));
        const Activation activation = gate_up ? Activation::kSiluMul : Activation::kNone;
        for (const std::int64_t m : {1, 3, 8, 20, 66, 600}) {
          if (m == 600 && gate_up) continue;
          PlanOptions options;
          options.max_m = m, options.activation = type, options.epilogue = {activation, false, true};
          const MatmulPlan plan(shared_runtime(), matrix, options);
          // A GPU whose multiprocessors are not all needed shrinks few adapters within the launch, others before it.
          for (const bool is_few : {false, true, true}) {
            const LoraCase& given = is_few ? few : adapters;
            OnDevice on(info.device, given, m, plan.out_columns());
            auto sums = product(on.x, plain);
            given.add(sums, on.x, on.rows);
            const HostRows out = on.run(plan, is_few ? small : table);
            const double error = relative_error(out, finished(sums, m, 144, activation, nullptr));
            INFO(info.device.str(), " m=", m, " ", to_string(type), " ", plan.tactic(m), " few=", is_few);
            // A GPU rounds x A to the type, and an activation of gate and up sees the sums' errors twice.
            CHECK(error <= tolerance(type) * (type == DType::kF32 ? 1 : 1.5));
          }
          CHECK(plan.tactic(m).find("+lora") != std::string::npos);
        }
      }
}

TEST_CASE("lora: adapters come and go under a plan") {
  for (const auto& info : ready_devices()) {
    const GptqMatrix source = make_gptq({.k = 256, .n = 64, .group_size = 128});
    const PlainMatrix plain = unpack(source.tensors());
    const auto matrix = QuantizedMatrix::from_gptq(shared_runtime(), info.device, source.tensors());
    const LoraCase first(256, 64, DType::kF16, {16, 8}), second(256, 64, DType::kF16, {32, 8}, 40);
    LoraAdapters table(shared_runtime(), matrix, {.adapters = 2, .max_rank = 32});
    const MatmulPlan plan(shared_runtime(), matrix, {.max_m = 12, .epilogue = {.lora = true}, .lora_rank = 32});
    OnDevice on(info.device, first, 10, 64);
    const auto check_sum = [&](const LoraCase* adapters, int skip) {
      auto sums = product(on.x, plain);
      if (adapters) adapters->add(sums, on.x, on.rows, skip);
      CHECK(relative_error(on.run(plan, table), sums) <= tolerance(DType::kF16));
    };
    check_sum(nullptr, -1);
    table.set(0, tensors(first, 0)), table.set(1, tensors(first, 1));
    check_sum(&first, -1);
    const std::size_t full = table.bytes();
    table.remove(1);
    CHECK((table.bytes() < full && table.rank(1) == 0));
    check_sum(&first, 1);
    table.set(0, tensors(second, 0)), table.set(1, tensors(second, 1));
    check_sum(&second, -1);
    table.remove(1), table.remove(1);
    check_sum(&second, 1);
  }
}

TEST_CASE("lora: a row's bits do not depend on the others where that is asked for") {
  for (const auto& info : ready_devices())
    for (const std::int64_t most : {8, 40}) {
      const GptqMatrix source = make_gptq({.k = 1024, .n = 256, .group_size = 128});
      const auto matrix = QuantizedMatrix::from_gptq(shared_runtime(), info.device, source.tensors());
      const LoraCase adapters(1024, 256, DType::kF16, {16, 40, 8, 24});
      LoraAdapters table(shared_runtime(), matrix, {.adapters = 4, .max_rank = 40});
      for (std::size_t i = 0; i < 4; ++i) table.set(static_cast<std::int64_t>(i), tensors(adapters, i));
      const MatmulPlan plan(shared_runtime(), matrix,
                            {.max_m = most, .batch_invariant = true, .epilogue = {.lora = true}, .lora_rank = 40});
      const std::int64_t all = most - 1;  // no multiple of 3: rows of all adapters
      OnDevice on(info.device, adapters, all, 256);
      const HostRows together = on.run(plan, table);
      for (const std::int64_t row : {std::int64_t{1}, all - 1}) {
        HostRows x(DType::kF16, 1, 1024), out(DType::kF16, 1, 256);
        for (int c = 0; c < 1024; ++c) x.set(0, c, on.x.at(row, c));
        const Buffer on_x(on.backend, x.bytes()), on_out(on.backend, out.bytes()), number(on.backend, 4);
        on.backend->copy(on_x.get(), x.data(), x.bytes(), CopyKind::kToDevice);
        on.backend->copy(number.get(), &on.rows[static_cast<std::size_t>(row)], 4, CopyKind::kToDevice);
        plan.run({}, {on_x.get()}, {on_out.get()}, 1,
                 {.adapters = &table, .adapter_of_row = number.as<const std::int32_t>()});
        on.backend->synchronize();
        on.backend->copy(out.data(), on_out.get(), out.bytes(), CopyKind::kToHost);
        int different = 0;
        for (int c = 0; c < 256; ++c) different += out.at(0, c) != together.at(row, c);
        CHECK(different == 0);
      }
    }
}

// On an H200 each form was timed at these points, and the other was slower.
TEST_CASE("lora: prefill shrinks within its launch, or after another, as was measured to be faster") {
  constexpr Limits kH200{.arch = 90, .units = 132, .shared_bytes = 232448};
  const struct {
    int k, n, m, adapters;
    bool within;
  } points[] = {{4096, 4096, 16, 1, true},    {4096, 4096, 64, 1, true},    {4096, 4096, 128, 1, false},
                {4096, 4096, 2048, 1, false}, {4096, 4096, 64, 8, false},   {4096, 4096, 64, 64, false},
                {14336, 4096, 32, 1, true},   {14336, 4096, 128, 1, true},  {4096, 14336, 64, 1, true},
                {8192, 8192, 128, 1, true},   {8192, 8192, 2048, 1, false}, {4096, 6144, 16, 8, true},
                {4096, 6144, 512, 1, true},   {2048, 2048, 64, 1, true},    {2048, 2048, 128, 1, false}};
  for (const auto& p : points) {
    CAPTURE(p.k);
    CAPTURE(p.n);
    CAPTURE(p.m);
    CAPTURE(p.adapters);
    const PrefillConfig c = choose::prefill_default({.k = p.k, .n = p.n, .x_k = p.k, .lora = 1}, p.m, kH200);
    const LoraLoad load{p.m, 1, p.adapters};
    const int blocks = lora_blocks(c, load, kH200);
    CHECK((blocks > 0) == p.within);
    CHECK(blocks % cluster(c) == 0);
    CHECK(lora_grid(c, load, kH200) <= 132);
    CHECK(lora_blocks(c, {p.m, 1, p.adapters, true}, kH200) == 0);  // bits must not depend on m
  }
}

TEST_CASE(
    "lora: a launch before cuts k as far as all of its clusters run at once, and never where bits must not change") {
  constexpr Limits kH200{.arch = 90, .units = 132, .shared_bytes = 232448};
  constexpr int kResident[] = {0, 132, 66, 39, 30, 0, 17, 0, 15};
  int cut = 0;
  for (const int rows : {8, 64}) {
    const LoraShrinkConfig config{0, 1, rows, rows > 8 ? 2 : 1, 65536, kLoraMostSplit};
    for (const std::int64_t m : {1, 5, 8, 16, 64, 100, 512, 4096})
      for (const int adapters : {1, 3, 8, 64, 1000})
        for (const int chunks : {1, 4, 16}) {
          if (m > rows && rows == 8) continue;
          CAPTURE(m);
          CAPTURE(adapters);
          CAPTURE(chunks);
          LoraLoad load{m, chunks, adapters};
          const LoraSplit split = lora_split(config, load, 4096, kH200);
          CHECK(split.parts >= 1);
          if (split.k > 1) CHECK(grid(config, m, split) / split.k <= kResident[split.k]);
          cut += split.k > 1;
          load.invariant = true;
          CHECK(lora_split(config, load, 4096, kH200).k == 1);
        }
  }
  CHECK(cut > 20);
  CHECK(lora_split({0, 1, 64, 2, 65536, 0}, {64, 1, 8}, 4096, {.arch = 80, .units = 108}).k == 1);
}

TEST_CASE("lora: what is refused leaves the table as it was") {
  const Runtime& runtime = shared_runtime();
  const GptqMatrix source = make_gptq({.k = 256, .n = 64, .group_size = 128});
  const auto matrix = QuantizedMatrix::from_gptq(runtime, {}, source.tensors());
  const auto rejects = [](const Words& words, auto&& call) {
    std::string text;
    try {
      call();
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::kInvalidArgument);
      text = error.what();
    }
    CHECK_MESSAGE(lacking(text, words).empty(), "'" << text << "' lacks" << lacking(text, words));
  };
  rejects({"LoraAdapters", "adapters = 0"}, [&] { LoraAdapters(runtime, matrix, {.adapters = 0}); });
  rejects({"LoraAdapters", "max_rank = 257", "256"}, [&] { LoraAdapters(runtime, matrix, {.max_rank = 257}); });
  rejects({"LoraAdapters", "type", "int32"}, [&] { LoraAdapters(runtime, matrix, {.type = DType::kI32}); });
  rejects({"LoraAdapters", "matrix is empty"}, [&] { LoraAdapters(runtime, {}, {}); });
  rejects({"LoraAdapters::set", "empty"}, [&] { LoraAdapters().set(0, {}); });
  LoraAdapters table(runtime, matrix, {.adapters = 2, .max_rank = 16});
  const LoraCase good(256, 64, DType::kF16, {16, 24});
  table.set(0, tensors(good, 0));
  LoraTensors t = tensors(good, 0);
  rejects({"index = 2", "adapters = 2"}, [&] { table.set(2, t); });
  rejects({"index = -1"}, [&] { table.remove(-1); });
  rejects({"rank is 24", "max_rank = 16"}, [&] { table.set(0, tensors(good, 1)); });
  t.b.cols = 8;
  rejects({"b has shape [64, 8]", "[n = 64, 16]"}, [&] { table.set(0, t); });
  t = tensors(good, 0), t.a.cols = 248;
  rejects({"a has shape [16, 248]", "k = 256"}, [&] { table.set(0, t); });
  t = tensors(good, 0), t.a.dtype = DType::kI64;
  rejects({"a has dtype int64"}, [&] { table.set(0, t); });
  t = tensors(good, 0), t.b.data = nullptr;
  rejects({"b has null data"}, [&] { table.set(0, t); });
  t = tensors(good, 0), t.scale = INFINITY;
  rejects({"scale = inf"}, [&] { table.set(0, t); });
  CHECK(table.rank(0) == 16);

  const MatmulPlan plan(runtime, matrix, {.max_m = 4, .epilogue = {.lora = true}, .lora_rank = 16});
  const MatmulPlan plain(runtime, matrix, {.max_m = 4});
  const HostRows x = random_rows(DType::kF16, 4, 256);
  HostRows out(DType::kF16, 4, 64);
  const std::vector<std::int32_t> rows = {0, -1, 1, 7};
  const auto run = [&](const MatmulPlan& with, const LoraAdapters* adapters, const std::int32_t* of_row) {
    with.run({}, {x.data()}, {out.data()}, 4, {.adapters = adapters, .adapter_of_row = of_row});
  };
  rejects({"MatmulPlan::run", "epilogue.lora"}, [&] { run(plain, &table, rows.data()); });
  rejects({"MatmulPlan::run", "adapters = ", "adapter_of_row"}, [&] { run(plan, &table, nullptr); });
  rejects({"MatmulPlan::run", "adapters = "}, [&] { run(plan, nullptr, rows.data()); });
  const LoraAdapters wide(runtime, matrix, {.adapters = 2, .max_rank = 32}),
      other(runtime, matrix, {.max_rank = 16, .type = DType::kBF16});
  rejects({"max_rank = 32", "lora_rank = 16"}, [&] { run(plan, &wide, rows.data()); });
  rejects({"bf16", "fp16"}, [&] { run(plan, &other, rows.data()); });
  const auto small = QuantizedMatrix::from_gptq(runtime, {}, make_gptq({.k = 128, .n = 64}).tensors());
  const LoraAdapters foreign(runtime, small, {.max_rank = 16});
  rejects({"128 x 64", "256 x 64"}, [&] { run(plan, &foreign, rows.data()); });
  rejects({"lora_rank = 0"}, [&] { MatmulPlan(runtime, matrix, {.epilogue = {.lora = true}, .lora_rank = 0}); });
  CHECK(std::isnan(out.at(0, 0)));
  run(plan, &table, rows.data());
  auto sums = product(x, unpack(source.tensors()));
  good.add(sums, x, {0, -1, -1, -1});
  CHECK(relative_error(out, sums) <= tolerance(DType::kF16));
}

}  // namespace
}  // namespace q4::test
