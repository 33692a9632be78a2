// Epilogues through plans, on every device that is there: against fp64, and what plans refuse.
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <cstring>

#include "bad_input.hpp"
#include "epilogue_reference.hpp"
#include "on_device.hpp"
#include "runtime/choose/choose.hpp"
#include "runtime/tuning_format.hpp"
#include "whole.hpp"

namespace q4::test {
namespace {

constexpr Limits kH200{.arch = 90, .units = 132, .shared_bytes = 232448};

MatrixSpec gate_up_spec(std::int64_t k = 384, std::int64_t n = 208) {
  return {.k = k, .n = n, .group_size = 64, .bias = true};
}

/// out = plan(x) with a residual, in place or apart, on the plan's device.
void run_plan(Device device, const MatmulPlan& plan, const HostRows& x, const HostRows* residual, bool in_place,
              HostRows& out) {
  auto backend = shared_runtime().impl().open(device);
  const Buffer on_x(backend, x.bytes() + 16), on_out(backend, out.bytes() + 16);
  const Buffer on_residual(backend, (residual ? residual->bytes() : 0) + 16);
  backend->copy(on_x.get(), x.data(), x.bytes(), CopyKind::kToDevice);
  if (residual && in_place)
    for (int r = 0; r < out.rows(); ++r)
      for (int c = 0; c < out.cols(); ++c) out.set(r, c, residual->at(r, c));
  backend->copy(on_out.get(), out.data(), out.bytes(), CopyKind::kToDevice);
  RunInputs inputs;
  if (residual && !in_place) {
    backend->copy(on_residual.get(), residual->data(), residual->bytes(), CopyKind::kToDevice);
    inputs.residual = {on_residual.get(), residual->row_stride()};
  } else if (residual) {
    inputs.residual = {on_out.get(), out.row_stride()};
  }
  plan.run({}, {on_x.get(), x.row_stride()}, {on_out.get(), out.row_stride()}, x.rows(), inputs);
  backend->synchronize();
  backend->copy(out.data(), on_out.get(), out.bytes(), CopyKind::kToHost);
}

void check_epilogue(Device device, const QuantizedMatrix& matrix, const PlainMatrix& plain, PlanOptions options,
                    std::int64_t m) {
  options.max_m = m;
  const MatmulPlan plan(shared_runtime(), matrix, options);
  const DType type = options.activation;
  const std::int64_t outs = plan.out_columns();
  CHECK(outs == (multiplies(options.epilogue.activation) ? plain.n / 2 : plain.n));
  const HostRows x = random_rows(type, m, plain.k, static_cast<std::uint64_t>(m + 3));
  const HostRows residual = random_rows(type, m, outs, 5, outs + 8);
  HostRows out(type, m, outs, outs + 16);
  const HostRows* given = options.epilogue.residual ? &residual : nullptr;
  run_plan(device, plan, x, given, m % 2 == 0, out);
  const double error = relative_error(out, finished(product(x, plain), m, plain.n, options.epilogue.activation, given));
  INFO(device.str(), " m=", m, " ", to_string(type), " ", plan.tactic(m));
  // An activation of gate and up sees the sums' errors twice, a square of the gate three times.
  const double times = options.epilogue.activation == Activation::kRelu2Mul ? 2
                       : multiplies(options.epilogue.activation)            ? 1.5
                                                                            : 1;
  CHECK(error <= times * tolerance(type));
  CHECK(out.padding_intact());
}

const Activation kAll[] = {Activation::kNone,        Activation::kSilu,    Activation::kGeluTanh,
                           Activation::kGelu,        Activation::kRelu2,   Activation::kSiluMul,
                           Activation::kGeluTanhMul, Activation::kGeluMul, Activation::kRelu2Mul};

TEST_CASE("epilogue: every activation, with and without a residual, agrees with fp64 on every device") {
  for (const auto& info : ready_devices())
    for (const bool awq : {false, true}) {
      const GptqMatrix source = make_gptq(gate_up_spec());
      const AwqMatrix other = to_awq(source);
      const PlainMatrix plain = unpack(source.tensors());
      const auto load = [&](bool gate_up) {
        const MatrixOptions options{.gate_up = gate_up};
        return awq ? QuantizedMatrix::from_awq(shared_runtime(), info.device, other.tensors(), options)
                   : QuantizedMatrix::from_gptq(shared_runtime(), info.device, source.tensors(), options);
      };
      const QuantizedMatrix pairs = load(true), whole = load(false);
      CHECK((pairs.gate_up() && !whole.gate_up()));
      for (const Activation activation : kAll)
        for (const bool residual : {false, true})
          for (const auto type : {DType::kF16, DType::kBF16, DType::kF32}) {
            if (type == DType::kF32 && !traits_of(info.device).fp32_activations) continue;
            PlanOptions options;
            options.activation = type, options.epilogue = {activation, residual};
            for (const std::int64_t m : awq ? std::vector<std::int64_t>{5} : std::vector<std::int64_t>{1, 2, 19, 70})
              check_epilogue(info.device, multiplies(activation) ? pairs : whole, plain, options, m);
          }
    }
}

TEST_CASE("epilogue: every tactic has it") {
  for (const auto& info : ready_devices()) {
    const GptqMatrix source =
        make_gptq({.k = 512, .n = 192, .group_size = 64, .act_order = ActOrder::kPermuted, .bias = true});
    const PlainMatrix plain = unpack(source.tensors());
    const auto matrix = QuantizedMatrix::from_gptq(shared_runtime(), info.device, source.tensors(), {.gate_up = true});
    for (const std::int64_t m : {1, 12, 70}) {
      PlanOptions options;
      options.max_m = m, options.epilogue = {Activation::kSiluMul, true};
      const auto tactics = MatmulPlan(shared_runtime(), matrix, options).tactics(m);
      const std::size_t step = tactics.size() / 12 + 1;
      for (std::size_t i = static_cast<std::size_t>(m) % step; i < tactics.size(); i += step) {
        CHECK(tactics[i].find("+silu_mul+residual") != std::string::npos);
        options.tactic = tactics[i];
        check_epilogue(info.device, matrix, plain, options, m);
      }
    }
  }
}

TEST_CASE("epilogue: a matrix loaded with gate_up gives its tensors back, and takes others") {
  for (const auto& info : ready_devices()) {
    MatrixSpec spec{.k = 264, .n = 144, .group_size = 128, .act_order = ActOrder::kPermuted, .bias = true};
    const GptqMatrix source = make_gptq(spec);
    spec.seed = 2;
    const GptqMatrix other = make_gptq(spec);
    auto matrix = QuantizedMatrix::from_gptq(shared_runtime(), info.device, source.tensors(), {.gate_up = true});
    const auto same = [](const UnpackedMatrix& u, const GptqMatrix& g) {
      bool bias = u.bias.size() == g.bias.size();
      for (std::size_t i = 0; i < u.bias.size() && bias; ++i) bias = u.bias[i] == half_value(g.bias[i]);
      return u.qweight == g.qweight && u.qzeros == g.qzeros && u.scales == g.scales && u.g_idx == g.g_idx && bias;
    };
    CHECK(same(matrix.unpack(), source));
    matrix.update(other.tensors());
    CHECK(same(matrix.unpack(), other));
    PlanOptions options;
    options.epilogue.activation = Activation::kSiluMul;
    check_epilogue(info.device, matrix, unpack(other.tensors()), options, 3);
    const AwqMatrix awq = to_awq(make_gptq({.k = 128, .n = 80, .group_size = 64}));
    const auto again =
        QuantizedMatrix::from_awq(shared_runtime(), info.device, awq.tensors(), {.gate_up = true}).unpack();
    CHECK((again.qweight == awq.qweight && again.qzeros == awq.qzeros && again.scales == awq.scales));
  }
}

TEST_CASE("epilogue: infinities and NaNs of x") {
  const GptqMatrix source = make_gptq({.k = 128, .n = 64, .group_size = 64});
  const auto matrix = QuantizedMatrix::from_gptq(shared_runtime(), {}, source.tensors());
  HostRows x = random_rows(DType::kF16, 3, 128), out(DType::kF16, 3, 64);
  x.set(0, 5, INFINITY), x.set(1, 7, NAN);
  const auto sums = product(x, unpack(source.tensors()));
  for (const Activation activation : {Activation::kGelu, Activation::kRelu2}) {
    const MatmulPlan plan(shared_runtime(), matrix, {.max_m = 3, .epilogue = {activation, false}});
    plan.run({}, {x.data()}, {out.data()}, 3);
    for (int c = 0; c < 64; ++c) {
      const double sum = sums[static_cast<std::size_t>(c)], got = out.at(0, c);
      CHECK((sum > 0 ? got == INFINITY : std::isnan(sum) ? std::isnan(got) : got == 0));
      CHECK(std::isnan(out.at(1, c)));
      CHECK(std::isfinite(out.at(2, c)));
    }
  }
}

TEST_CASE("epilogue: a gate and an up of their own, fused") {
  const GptqMatrix gate = make_gptq({.k = 128, .n = 48, .group_size = 64}),
                   up = make_gptq({.k = 128, .n = 48, .group_size = 64, .seed = 2});
  const AwqMatrix awq_gate = to_awq(gate), awq_up = to_awq(up);
  for (const auto& info : ready_devices())
    for (const bool awq : {false, true}) {
      const std::vector<GptqTensors> both = {gate.tensors(), up.tensors()};
      const std::vector<AwqTensors> awq_both = {awq_gate.tensors(), awq_up.tensors()};
      const auto fused = awq ? QuantizedMatrix::fuse_awq(shared_runtime(), info.device, awq_both, {.gate_up = true})
                             : QuantizedMatrix::fuse_gptq(shared_runtime(), info.device, both, {.gate_up = true});
      CHECK(fused.gate_up());
      const PlainMatrix plain = plain_of(fused), gates = unpack(gate.tensors()), ups = unpack(up.tensors());
      for (std::int64_t c = 0; c < 48; ++c)
        CHECK((plain.weight(7, c) == gates.weight(7, c) && plain.weight(9, 48 + c) == ups.weight(9, c)));
      check_epilogue(info.device, fused, plain, {.epilogue = {Activation::kSiluMul, true}}, 5);
    }
}

TEST_CASE("epilogue: what is refused, and why") {
  const Runtime& runtime = shared_runtime();
  const GptqMatrix source = make_gptq({.k = 128, .n = 72, .group_size = 64}), wide = make_gptq({.k = 128, .n = 64});
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
  rejects({"from_gptq", "gate_up", "n = 72", "multiple of 8"},
          [&] { QuantizedMatrix::from_gptq(runtime, {}, source.tensors(), {.gate_up = true}); });
  const auto plain = QuantizedMatrix::from_gptq(runtime, {}, wide.tensors());
  const auto pairs = QuantizedMatrix::from_gptq(runtime, {}, wide.tensors(), {.gate_up = true});
  rejects({"MatmulPlan", "silu_mul", "gate_up = false", "load it with gate_up"}, [&] {
    MatmulPlan(runtime, plain, {.epilogue = {Activation::kSiluMul, false}});
  });
  rejects({"MatmulPlan", "none", "gate_up = true", "silu_mul"}, [&] { MatmulPlan(runtime, pairs, {}); });
  rejects({"epilogue.activation", "77"}, [&] {
    MatmulPlan(runtime, plain, {.epilogue = {static_cast<Activation>(77), false}});
  });
  const MatmulPlan with(runtime, plain, {.max_m = 4, .epilogue = {Activation::kNone, true}});
  const MatmulPlan without(runtime, plain, {.max_m = 4});
  const HostRows x = random_rows(DType::kF16, 4, 128);
  HostRows out(DType::kF16, 4, 64), residual = random_rows(DType::kF16, 4, 64);
  const auto run = [&](const MatmulPlan& plan, ConstRows rows) {
    plan.run({}, {x.data()}, {out.data()}, 4, {.residual = rows});
  };
  rejects({"MatmulPlan::run", "residual", "null"}, [&] { run(with, {}); });
  rejects({"MatmulPlan::run", "residual", "epilogue.residual"}, [&] { run(without, {residual.data()}); });
  rejects({"residual", "row stride 8", "64"}, [&] { run(with, {residual.data(), 8}); });
  rejects({"residual", "aligned"}, [&] { run(with, {shifted(residual.data(), 1)}); });
  rejects({"residual", "overlaps out", "row stride"}, [&] { run(with, {shifted(out.data(), 16)}); });
  CHECK(std::isnan(out.at(0, 0)));  // nothing was written
  run(with, {out.data()});
  run(with, {residual.data()});
  CHECK_FALSE(std::isnan(out.at(3, 63)));
  CHECK_THROWS_AS(MatmulPlan(runtime, plain, {.max_m = 4, .tactic = "cpu-direct+silu math=fp32"}), Error);
}

TEST_CASE("epilogue: the text of a tactic, and choices on a GPU") {
  MatrixShape shape = matrix_shape(4096, 28672, 128, false, false, false);
  shape.gate_up = true;
  PlanOptions options;
  options.max_m = 4096, options.epilogue = {Activation::kSiluMul, true};
  for (const auto& choice : choose::choose(shape, options, {"cuda:0", "sm_90a", kH200}, nullptr)) {
    const std::string text = choice.tactic.str();
    CHECK(text.find("+silu_mul+residual ") != std::string::npos);
    const auto parsed = choose::Tactic::parse(text);
    REQUIRE(parsed);
    CHECK(*parsed == choice.tactic);
    CHECK(choice.kernel->source().text.find(".activation=1,.gated=1,.residual=1") != std::string::npos);
  }
  // Nowhere the BLAS, which rounds before an epilogue could follow: not by default, by a record, or by request.
  const choose::Gpu datacenter{"cuda:0", "sm_100a", {.arch = 100, .units = 148, .shared_bytes = 232448}};
  shape.gate_up = false, options.epilogue = {Activation::kNone, true};
  TuningRecord record;
  record.reconstruct_from = 2, record.buckets = {{1, "decode+residual tiles=2", 1, 1, 1, 1, 0}};
  for (const auto* tuned : {static_cast<const TuningRecord*>(nullptr), static_cast<const TuningRecord*>(&record)})
    for (const auto& choice : choose::choose(shape, options, datacenter, tuned)) CHECK(!choice.blas());
  options.epilogue = {};
  const auto plain = choose::choose(shape, options, datacenter, nullptr);
  CHECK(std::any_of(plain.begin(), plain.end(), [](const auto& c) { return c.blas(); }));
  options.epilogue.residual = true;
  for (const char* tactic :
       {"reconstruct+blas", "gemv+silu half2=1", "gemv+residual+silu half2=1", "gemv+nothing half2=1"}) {
    options.tactic = tactic;
    CHECK_THROWS_AS(choose::choose(shape, options, datacenter, nullptr), Error);
  }
  for (const char* tactic : {"gemv half2=1", "gemv+residual half2=1"}) {
    options.tactic = tactic;
    CHECK(choose::choose(shape, options, datacenter, nullptr)[0].tactic.epilogue == options.epilogue);
  }
}

TEST_CASE("epilogue: a tuning record says which, and is found by it") {
  TuningRecord record;
  record.key = {"GPU", "sm_90a", 132, 4096, 4096, 128, false, DType::kF16, "cold", "k", "silu_mul+residual"};
  record.buckets = {{1, "decode+silu_mul+residual tiles=2", 3, 3, 3, 4, 0}};
  const std::string line = to_line(record);
  CHECK(line.find(R"("epilogue":"silu_mul+residual")") != std::string::npos);
  CHECK(from_line(line) == record);
  REQUIRE(key_of_line(line));
  CHECK(*key_of_line(line) == record.key);
  TuningDb db;
  db.add(record);
  CHECK(db.find(record.key) != nullptr);
  TuningKey plain = record.key;
  plain.epilogue.clear();
  CHECK(db.find(plain) == nullptr);
  record.key = plain, record.buckets[0].tactic = "decode tiles=2";
  CHECK(to_line(record).find("epilogue") == std::string::npos);
  db.add(record);
  CHECK(db.find(plain)->buckets[0].tactic == "decode tiles=2");
  CHECK(db.size() == 2);
}

}  // namespace
}  // namespace q4::test
