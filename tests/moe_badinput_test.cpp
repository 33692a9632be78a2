// Bad input to experts and their plans: each is an error that names call, argument, value and limit.
#include <q4/moe.hpp>

#include <cmath>
#include <limits>

#include "bad_input.hpp"
#include "checkpoint_maker.hpp"
#include "moe_case.hpp"
#include "rejects.hpp"

namespace q4::test {
namespace {

const Device kHere;  // the CPU

struct Fixture {
  Runtime runtime;
  MoeWeights w{MoeSpec{.experts = 4, .topk = 2}};
  MoeExperts experts{runtime, kHere, w};
  std::vector<GptqTensors> tensors = MoeWeights::tensors(w.w2);
};

TEST_CASE_FIXTURE(Fixture, "experts reject bad tensors, and name the expert") {
  const MatrixSpec spec = bad_input_spec();
  const GptqMatrix good = make_gptq(spec);
  for (auto& bad : bad_tensors()) {
    std::vector<GptqTensors> three(3, good.tensors());
    bad.spoil(three[2]);
    bad.words.insert(bad.words.end(), {"QuantizedExperts::from_gptq", "expert 2"});
    rejects(bad.what, bad.code, bad.words, [&] { QuantizedExperts::from_gptq(runtime, kHere, three); });
    std::vector<GptqTensors> two(2, good.tensors());
    auto updated = QuantizedExperts::from_gptq(runtime, kHere, two);
    GptqTensors tensors = good.tensors();
    bad.spoil(tensors);
    bad.words[bad.words.size() - 2] = "QuantizedExperts::update", bad.words.back() = "expert 1";
    rejects(bad.what, bad.code, bad.words, [&] { updated.update(1, tensors); });
    CHECK(updated.unpack(1).qweight == good.qweight);
  }
}

TEST_CASE_FIXTURE(Fixture, "experts must agree") {
  const auto with = [&](MatrixSpec spec, const Words& words) {
    const GptqMatrix other = make_gptq(spec);
    auto some = tensors;
    some[3] = other.tensors();
    Words all = words;
    all.insert(all.end(), {"from_gptq", "expert 3"});
    rejects(words[0], all, [&] { QuantizedExperts::from_gptq(runtime, kHere, some); });
    auto updated = QuantizedExperts::from_gptq(runtime, kHere, tensors);
    all[all.size() - 2] = "update";
    rejects(words[0], all, [&] { updated.update(3, other.tensors()); });
  };
  const MatrixSpec same = w.w2[0].spec;
  auto spec = same;
  spec.k = 128, with(spec, {"k", "128", "64"});
  spec = same, spec.n = 64, with(spec, {"n", "64", "128"});
  spec = same, spec.group_size = 64, with(spec, {"groups", "1", "2"});
  spec = same, spec.bias = true, with(spec, {"bias", "true", "false"});
  rejects("none", {"from_gptq", "0 experts"},
          [&] { QuantizedExperts::from_gptq(runtime, kHere, std::span<const GptqTensors>()); });
  spec = same, spec.n = 24;
  const GptqMatrix odd = make_gptq(spec);
  const std::vector<GptqTensors> one = {odd.tensors()};
  rejects("gate_up of an odd n", {"from_gptq", "n = 24", "16"},
          [&] { QuantizedExperts::from_gptq(runtime, kHere, one, {.gate_up = true}); });
  auto updated = QuantizedExperts::from_gptq(runtime, kHere, tensors);
  rejects("no such expert", {"update", "expert = 4", "[0, 4)"}, [&] { updated.update(4, tensors[0]); });
  rejects("no such expert", {"unpack", "expert = -1", "[0, 4)"}, [&] { (void)updated.unpack(-1); });
  rejects("another format", {"update", "AWQ"}, [&] {
    const AwqMatrix awq = to_awq(w.w2[0]);
    updated.update(0, awq.tensors());
  });
  spec = w.w13[0].spec, spec.act_order = ActOrder::kPermuted;
  const GptqMatrix ordered = make_gptq(spec);
  rejects("act-order where there was none", {"update", "expert 0", "load them all again"},
          [&] { experts.w13.update(0, ordered.tensors()); });
  CHECK_THROWS_WITH_AS((void)QuantizedExperts().k(), doctest::Contains("empty"), Error);
}

TEST_CASE_FIXTURE(Fixture, "tensors [E, ...] must divide") {
  GptqTensors stacked = tensors[0];
  const auto with = [&](const std::string& what, const Words& words, auto&& spoil, std::int64_t experts = 2) {
    GptqTensors bad = stacked;
    spoil(bad);
    rejects(what, words, [&] { QuantizedExperts::from_stacked(runtime, kHere, experts, bad); });
  };
  with("rows of qweight", {"from_stacked", "qweight", "7 rows", "2 experts"}, [](auto& t) { t.qweight.rows = 7; });
  with("rows of qzeros", {"from_stacked", "qzeros", "3 rows", "2 experts"}, [](auto& t) { t.qzeros.rows = 3; });
  with("rows of scales", {"from_stacked", "scales", "5 rows", "2 experts"}, [](auto& t) { t.scales.rows = 5; });
  with("null", {"from_stacked", "scales", "null"}, [](auto& t) { t.scales.data = nullptr; });
  with(
      "experts", {"from_stacked", "experts = 0"}, [](auto&) {}, 0);
  std::vector<std::int32_t> g_idx(64);
  with("g_idx", {"from_stacked", "g_idx", "[1, 64]", "32"}, [&](auto& t) {
    t.g_idx = TensorView{g_idx.data(), DType::kI32, 1, 64};
  });
  with("bias", {"from_stacked", "bias", "[1, 64]", "128"}, [&](auto& t) {
    t.bias = TensorView{g_idx.data(), DType::kF32, 1, 64};
  });
  constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
  with("rows", {"from_stacked", "qweight", std::to_string(kMost - 1)}, [](auto& t) { t.qweight.rows = kMost - 1; });
  with("a row stride", {"from_stacked", "scales", "row stride"}, [](auto& t) { t.scales.row_stride = kMost; });
}

TEST_CASE_FIXTURE(Fixture, "patterns that find no experts") {
  const TempFolder folder;
  std::vector<FileTensor> all;
  for (const int e : {0, 1, 3})
    for (const auto& t : file_tensors("experts." + std::to_string(e) + ".up", w.w2[0])) all.push_back(t);
  MatrixSpec spec = w.w2[0].spec;
  spec.act_order = ActOrder::kPermuted;
  for (const auto& t : file_tensors("experts.0.gate", make_gptq(spec))) all.push_back(t);
  write_safetensors(folder / "model.safetensors", all);
  const Checkpoint checkpoint = Checkpoint::open(folder.path());
  const auto with = [&](const std::string& what, ErrorCode code, const Words& words, ExpertNames names) {
    rejects(what, code, words, [&] { QuantizedExperts::load(runtime, kHere, checkpoint, names); });
  };
  constexpr auto kBad = ErrorCode::kInvalidArgument, kNone = ErrorCode::kNotFound;
  with("no pattern", kBad, {"load", "0 patterns"}, {});
  with("three patterns", kBad, {"load", "3 patterns"}, {.patterns = {"a{}", "b{}", "c{}"}});
  with("no place for the number", kBad, {"load", "experts.0.up", "{}"}, {.patterns = {"experts.0.up"}});
  with("two places", kBad, {"load", "{}.{}"}, {.patterns = {"experts.{}.{}"}});
  with("a negative first", kBad, {"load", "first = -1"}, {.patterns = {"experts.{}.up"}, .first = -1});
  with("a count below -1", kBad, {"load", "count = -2"}, {.patterns = {"experts.{}.up"}, .count = -2});
  with("none", kNone, {"expert.0.up"}, {.patterns = {"expert.{}.up"}});
  with("a hole", kNone, {"experts.2.up"}, {.patterns = {"experts.{}.up"}, .count = 4});
  with("gate and up in different orders", ErrorCode::kUnsupported, {"load: expert 0", "act-order"},
       {.patterns = {"experts.{}.gate", "experts.{}.up"}, .count = 1});
  CHECK(QuantizedExperts::load(runtime, kHere, checkpoint, {.patterns = {"experts.{}.up"}}).experts() == 2);
}

TEST_CASE_FIXTURE(Fixture, "MoePlan rejects experts and options that do not fit") {
  const MoeOptions good = moe_options(w.spec, DType::kF16, 4);
  const auto with = [&](const std::string& what, const Words& words, auto&& spoil) {
    MoeOptions options = good;
    spoil(options);
    Words all = words;
    all.push_back("MoePlan");
    rejects(what, all, [&] { MoePlan(runtime, experts.w13, experts.w2, options); });
  };
  with("topk", {"topk = 0", "[1, 32]"}, [](auto& o) { o.topk = 0; });
  with("topk", {"topk = 33", "[1, 32]"}, [](auto& o) { o.topk = 33; });
  with("max_tokens", {"max_tokens = 0", "1"}, [](auto& o) { o.max_tokens = 0; });
  with("max_tokens", {"max_tokens", "1073741823", "topk = 2"}, [](auto& o) { o.max_tokens = INT32_MAX; });
  with("dtype", {"dtype is int32", "fp16"}, [](auto& o) { o.dtype = DType::kI32; });
  with("activation", {"activation = 9"}, [](auto& o) { o.activation = static_cast<MoeActivation>(9); });
  with("no activation", {"activation is none", "gate_up"}, [](auto& o) { o.activation = MoeActivation::kNone; });
  with("limit", {"limit = 0", "swiglu_clamp"},
       [](auto& o) { o.activation = MoeActivation::kSwigluClamp, o.limit = 0; });
  with("limit", {"limit = nan"}, [](auto& o) { o.activation = MoeActivation::kSwigluClamp, o.limit = NAN; });
  with("expert_map", {"expert_map[1] = 4", "[0, 4)"}, [](auto& o) { o.expert_map = {0, 4}; });
  with("expert_map", {"expert_map[0] = -2"}, [](auto& o) { o.expert_map = {-2}; });
  with("tactic", {"tactic \"fast\""}, [](auto& o) { o.tactic = "fast"; });

  rejects("w13 without gate_up", {"MoePlan", "silu_mul", "gate_up"}, [&] {
    MoePlan(runtime, QuantizedExperts::from_gptq(runtime, kHere, MoeWeights::tensors(w.w13)), experts.w2, good);
  });
  rejects("w2 with gate_up", {"MoePlan", "w2", "gate_up"}, [&] {
    MoePlan(runtime, experts.w13, QuantizedExperts::from_gptq(runtime, kHere, tensors, {.gate_up = true}), good);
  });
  rejects("fewer experts", {"MoePlan", "4 experts", "3"}, [&] {
    tensors.pop_back();
    MoePlan(runtime, experts.w13, QuantizedExperts::from_gptq(runtime, kHere, tensors), good);
  });
  rejects("another width", {"MoePlan", "k = 128", "64"}, [&] {
    const MoeWeights other(MoeSpec{.width = 128});
    MoePlan(runtime, experts.w13, MoeExperts(runtime, kHere, other).w2, good);
  });
  rejects("another Runtime", {"MoePlan", "Runtimes"}, [&] {
    const Runtime second;
    MoePlan(runtime, experts.w13, MoeExperts(second, kHere, w).w2, good);
  });
  CHECK_THROWS_WITH_AS(MoePlan(runtime, QuantizedExperts(), experts.w2, good), doctest::Contains("empty"), Error);
  CHECK_THROWS_WITH_AS((void)MoePlan().topk(), doctest::Contains("empty"), Error);
}

/// Arguments of one MoePlan::run.
struct MoeArguments {
  ConstRows x;
  const std::int32_t* ids;
  const float* weights;
  Rows out;
  std::int64_t tokens;
};

TEST_CASE_FIXTURE(Fixture, "MoePlan::run rejects bad arguments and writes nothing") {
  const MoePlan plan(runtime, experts.w13, experts.w2, moe_options(w.spec, DType::kF16, 4));
  const HostRows x = random_rows(DType::kF16, 4, 128);
  HostRows out(DType::kF16, 4, 128);
  const HostRows poison = out;
  const Routing routing = random_routing(4, 2, 4);
  const MoeArguments good{{x.data()}, routing.ids.data(), routing.weights.data(), {out.data()}, 4};
  const auto with = [&](const std::string& what, const Words& words, auto&& spoil) {
    MoeArguments a = good;
    spoil(a);
    Words all = words;
    all.push_back("MoePlan::run");
    rejects(what, all, [&] { plan.run({}, a.x, a.ids, a.weights, a.out, a.tokens); });
    CHECK(std::memcmp(out.data(), poison.data(), out.bytes()) == 0);
  };
  with("negative tokens", {"tokens = -1", "[0, max_tokens = 4]"}, [](auto& a) { a.tokens = -1; });
  with("too many tokens", {"tokens = 5", "[0, max_tokens = 4]"}, [](auto& a) { a.tokens = 5; });
  with("null x", {"x is null"}, [](auto& a) { a.x.data = nullptr; });
  with("null ids", {"topk_ids is null"}, [](auto& a) { a.ids = nullptr; });
  with("null weights", {"topk_weights is null"}, [](auto& a) { a.weights = nullptr; });
  with("null out", {"out is null"}, [](auto& a) { a.out.data = nullptr; });
  with("misaligned x", {"x", "align"}, [](auto& a) { a.x.data = shifted(a.x.data, 1); });
  with("misaligned ids", {"topk_ids", "align"},
       [](auto& a) { a.ids = static_cast<const std::int32_t*>(shifted(a.ids, 2)); });
  with("misaligned weights", {"topk_weights", "align"},
       [](auto& a) { a.weights = static_cast<const float*>(shifted(a.weights, 1)); });
  with("stride of x", {"x", "stride 120"}, [](auto& a) { a.x.row_stride = 120; });
  with("stride of out", {"out", "stride 8"}, [](auto& a) { a.out.row_stride = 8; });
  with("out is x", {"out overlaps x"}, [](auto& a) { a.x.data = a.out.data; });
  with("out is the ids", {"out overlaps topk_ids"},
       [](auto& a) { a.ids = static_cast<const std::int32_t*>(a.out.data); });
  with("out is the weights", {"out overlaps topk_weights"},
       [](auto& a) { a.weights = static_cast<const float*>(a.out.data); });
  rejects("misaligned workspace", {"MoePlan::run", "workspace", "256"}, [&] {
    plan.run({}, good.x, good.ids, good.weights, good.out, 4, const_cast<void*>(shifted(out.data(), 4)));
  });
  rejects("null workspace", {"MoePlan::run", "workspace is null"},
          [&] { plan.run({}, good.x, good.ids, good.weights, good.out, 4, nullptr); });
  rejects("tactic of no tokens", {"MoePlan::tactic", "tokens = 0"}, [&] { (void)plan.tactic(0); });
  rejects("tactics of too many", {"MoePlan::tactics", "tokens = 5"}, [&] { (void)plan.tactics(5); });
  MoeOptions options = moe_options(w.spec, DType::kF16, 4);
  options.own_workspace = false;
  const MoePlan bare(runtime, experts.w13, experts.w2, options);
  rejects("no workspace", {"MoePlan::run", "own_workspace = false"},
          [&] { bare.run({}, good.x, good.ids, good.weights, good.out, 4); });
}

TEST_CASE_FIXTURE(Fixture, "GroupedPlan rejects bad options and arguments") {
  GroupedOptions options;
  options.max_rows = 4;
  rejects("no activation", {"GroupedPlan", "activation is none", "gate_up"},
          [&] { GroupedPlan(runtime, experts.w13, options); });
  options.activation = MoeActivation::kSiluMul;
  rejects("an activation", {"GroupedPlan", "silu_mul", "gate_up"}, [&] { GroupedPlan(runtime, experts.w2, options); });
  options.max_rows = 0;
  rejects("max_rows", {"GroupedPlan", "max_rows = 0"}, [&] { GroupedPlan(runtime, experts.w13, options); });
  options.max_rows = 4;
  const GroupedPlan plan(runtime, experts.w13, options);
  const HostRows x = random_rows(DType::kF16, 4, 128);
  HostRows out(DType::kF16, 4, 64);
  const std::int32_t ids[5] = {};
  rejects("rows", {"GroupedPlan::run", "rows = 5", "max_rows = 4"},
          [&] { plan.run({}, {x.data()}, ids, {out.data()}, 5); });
  rejects("null ids", {"GroupedPlan::run", "expert_ids is null"},
          [&] { plan.run({}, {x.data()}, nullptr, {out.data()}, 4); });
  rejects("null offsets", {"GroupedPlan::run_sorted", "offsets is null"},
          [&] { plan.run_sorted({}, {x.data()}, nullptr, {out.data()}, 4); });
  rejects("null x", {"GroupedPlan::run", "x is null"}, [&] { plan.run({}, {}, ids, {out.data()}, 4); });
  rejects("out is the ids", {"GroupedPlan::run", "out overlaps expert_ids"},
          [&] { plan.run({}, {x.data()}, static_cast<const std::int32_t*>(out.data()), {out.data()}, 4); });
  CHECK_THROWS_WITH_AS(GroupedPlan().run({}, {}, ids, {}, 0), doctest::Contains("empty"), Error);
}

}  // namespace
}  // namespace q4::test
