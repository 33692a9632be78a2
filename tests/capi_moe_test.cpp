// Mixtures of experts through the C ABI: the same results as C++, and errors that name what was wrong.
#include <q4/moe.h>

#include "capi_support.hpp"
#include "checkpoint_maker.hpp"
#include "moe_case.hpp"

namespace q4::test {
namespace {

/// C tensors of a list of matrices.
struct CExperts {
  explicit CExperts(const std::vector<GptqMatrix>& matrices) : store(matrices.size()) {
    for (std::size_t i = 0; i < matrices.size(); ++i) {
      auto tensors = matrices[i].tensors();
      tensors.zeros = ZeroFormat::kV1;
      to_c(tensors, store[i]);
      pointers.push_back(&store[i].all);
    }
  }
  std::vector<CTensors> store;
  std::vector<const q4_tensors*> pointers;
};

struct MoeFixture {
  MoeWeights w{MoeSpec{.experts = 4, .topk = 2, .act_order = ActOrder::kPermuted, .bias = true}};
  CExperts c13{w.w13}, c2{w.w2};
  q4_runtime* runtime = nullptr;
  q4_experts w13 = 0, w2 = 0;
  HostRows x = random_rows(DType::kF16, 6, 128), out{DType::kF16, 6, 128};
  Routing routing = random_routing(6, 2, 4);

  MoeFixture() {
    Q4_REQUIRE_OK(q4_runtime_create(nullptr, &runtime));
    q4_experts_options options = {};
    options.size = sizeof options, options.gate_up = 1;
    Q4_REQUIRE_OK(q4_experts_from_gptq(runtime, kHere, c13.pointers.data(), 4, &options, &w13));
    Q4_REQUIRE_OK(q4_experts_from_gptq(runtime, kHere, c2.pointers.data(), 4, nullptr, &w2));
  }
  ~MoeFixture() { q4_runtime_destroy(runtime); }
  static q4_moe_options options() {
    q4_moe_options options = {};
    options.size = sizeof options;
    options.max_rows = 6, options.topk = 2, options.activation = Q4_MOE_SILU_MUL;
    return options;
  }
  q4_status run(q4_moe_plan plan, void* workspace = nullptr) {
    return q4_moe_plan_run(runtime, plan, nullptr, x.data(), 0, routing.ids.data(), routing.weights.data(), out.data(),
                           0, 6, workspace);
  }
  void check(const std::vector<std::int32_t>& map = {}) {
    CHECK(relative_error(out, moe_reference(w, x, routing, DType::kF16, map)) <= tolerance(DType::kF16));
    out.poison();
  }
};

TEST_CASE_FIXTURE(MoeFixture, "the C ABI: experts say what they are, and give their tensors back") {
  q4_experts_info info = {};
  info.size = sizeof info;
  Q4_REQUIRE_OK(q4_experts_get(runtime, w13, &info));
  CHECK((info.experts == 4 && info.k == 128 && info.n == 128 && info.group_size == 32 && info.groups == 4));
  CHECK((info.act_order == 1 && info.has_bias == 1 && info.gate_up == 1 && info.awq == 0));
  CHECK(info.bytes > 4 * 128 * 128 / 2);
  std::vector<std::uint32_t> qweight(16 * 128), qzeros(4 * 16);
  std::vector<std::int32_t> g_idx(128);
  std::vector<float> bias(128);
  q4_unpacked to = {};
  to.size = sizeof to, to.qweight = qweight.data(), to.qzeros = qzeros.data();
  to.g_idx = g_idx.data(), to.bias = bias.data();
  Q4_REQUIRE_OK(q4_experts_update(runtime, w13, 2, c13.pointers[1], nullptr));
  Q4_REQUIRE_OK(q4_experts_unpack(runtime, w13, 2, &to));
  CHECK(qweight == w.w13[1].qweight);
  CHECK(qzeros == w.w13[1].qzeros);
  CHECK(g_idx == w.w13[1].g_idx);
  CHECK(bias[5] == half_value(w.w13[1].bias[5]));
  rejects({"q4_experts_unpack", "expert = 4", "[0, 4)"}, q4_experts_unpack(runtime, w13, 4, &to));
  rejects({"q4_experts_update", "expert = -1"}, q4_experts_update(runtime, w13, -1, c13.pointers[0], nullptr));
  Q4_REQUIRE_OK(q4_experts_destroy(runtime, w13));
  rejects({"q4_experts_get", "experts", "destroyed"}, q4_experts_get(runtime, w13, &info));
}

TEST_CASE_FIXTURE(MoeFixture, "the C ABI: a layer of experts gives what C++ gives") {
  q4_moe_options with = options();
  q4_moe_plan plan = 0;
  Q4_REQUIRE_OK(q4_moe_plan_create(runtime, w13, w2, &with, &plan));
  Q4_REQUIRE_OK(run(plan));
  check();
  char text[200];
  Q4_REQUIRE_OK(q4_moe_plan_tactic(runtime, plan, 6, text, sizeof text, nullptr));
  CHECK(std::string(text) == "cpu-experts");

  with.caller_workspace = 1;
  q4_moe_plan bare = 0;
  Q4_REQUIRE_OK(q4_moe_plan_create(runtime, w13, w2, &with, &bare));
  rejects({"q4_moe_plan_run", "own_workspace = false"}, run(bare));
  std::size_t bytes = 0;
  Q4_REQUIRE_OK(q4_moe_plan_workspace_bytes(runtime, bare, &bytes));
  std::vector<std::byte> memory(bytes + 256);
  void* start = memory.data();
  std::size_t space = memory.size();
  std::align(256, bytes, start, space);
  Q4_REQUIRE_OK(run(bare, start));
  check();

  const std::int32_t map[] = {3, -1, 0, 2};
  with = options(), with.expert_map = map, with.expert_map_count = 4;
  q4_moe_plan mapped = 0;
  Q4_REQUIRE_OK(q4_moe_plan_create(runtime, w13, w2, &with, &mapped));
  Q4_REQUIRE_OK(run(mapped));
  check({3, -1, 0, 2});

  Q4_REQUIRE_OK(q4_experts_destroy(runtime, w13));  // plans keep their weights
  Q4_REQUIRE_OK(run(plan));
  check();
  Q4_REQUIRE_OK(q4_moe_plan_destroy(runtime, plan));
  rejects({"q4_moe_plan_run", "plan", "destroyed"}, run(plan));
  rejects({"q4_moe_plan_run", "plan", "another kind"}, run(w2));
}

TEST_CASE_FIXTURE(MoeFixture, "the C ABI: a grouped product, by ids and by offsets") {
  q4_moe_options with = options();
  with.topk = 0;
  q4_grouped_plan plan = 0;
  Q4_REQUIRE_OK(q4_grouped_plan_create(runtime, w13, &with, &plan));
  const std::int32_t ids[] = {0, 0, 1, 3, 3, 3}, offsets[] = {0, 2, 3, 3, 6};
  HostRows by_ids(DType::kF16, 6, 64), by_offsets(DType::kF16, 6, 64);
  const auto grouped = [&](const std::int32_t* i, const std::int32_t* o, HostRows& to) {
    return q4_grouped_plan_run(runtime, plan, nullptr, x.data(), 0, i, o, to.data(), 0, 6, nullptr);
  };
  Q4_REQUIRE_OK(grouped(ids, nullptr, by_ids));
  Q4_REQUIRE_OK(grouped(nullptr, offsets, by_offsets));
  std::vector<double> expected;
  for (std::int64_t r = 0; r < 6; ++r)
    for (const double value : hidden(w, ids[r], row_of(x, r))) expected.push_back(value);
  CHECK(relative_error(by_ids, expected) <= tolerance(DType::kF16));
  CHECK(relative_error(by_offsets, expected) <= tolerance(DType::kF16));
  std::size_t bytes = 0;
  Q4_REQUIRE_OK(q4_grouped_plan_workspace_bytes(runtime, plan, &bytes));
  CHECK(bytes > 0);
  rejects({"q4_grouped_plan_run", "both given"}, grouped(ids, offsets, by_ids));
  rejects({"q4_grouped_plan_run", "both null"}, grouped(nullptr, nullptr, by_ids));
  with.topk = 2;
  rejects({"q4_grouped_plan_create", "topk is 2"}, q4_grouped_plan_create(runtime, w13, &with, &plan));
  Q4_REQUIRE_OK(q4_grouped_plan_destroy(runtime, plan));
}

TEST_CASE_FIXTURE(MoeFixture, "the C ABI: experts of AWQ, of tensors [E, ...] and of a checkpoint") {
  MatrixSpec spec{.k = 64, .n = 32, .group_size = 32};
  const GptqMatrix plain = make_gptq(spec);
  const AwqMatrix awq = to_awq(plain);
  CTensors c;
  to_c(awq.tensors(), c);
  const q4_tensors* two[] = {&c.all, &c.all};
  q4_experts experts = 0;
  Q4_REQUIRE_OK(q4_experts_from_awq(runtime, kHere, two, 2, nullptr, &experts));
  c.all.zeros = Q4_ZEROS_V1;
  rejects({"q4_experts_from_awq", "zeros"}, q4_experts_from_awq(runtime, kHere, two, 2, nullptr, &experts));

  // Two experts of 32 rows each: what was one matrix of 64.
  CTensors stacked;
  to_c(plain.tensors(), stacked);
  Q4_REQUIRE_OK(q4_experts_from_stacked(runtime, kHere, 2, &stacked.all, nullptr, &experts));
  q4_experts_info info = {};
  info.size = sizeof info;
  Q4_REQUIRE_OK(q4_experts_get(runtime, experts, &info));
  CHECK((info.experts == 2 && info.k == 32 && info.groups == 1));
  rejects({"q4_experts_from_stacked", "3 experts", "qweight"},
          q4_experts_from_stacked(runtime, kHere, 3, &stacked.all, nullptr, &experts));

  const TempFolder folder;
  std::vector<FileTensor> all = file_tensors("e.0.up", plain);
  for (const auto& t : file_tensors("e.1.up", plain)) all.push_back(t);
  write_safetensors(folder / "model.safetensors", all);
  q4_checkpoint checkpoint = 0;
  Q4_REQUIRE_OK(q4_checkpoint_open(runtime, folder.path().c_str(), &checkpoint));
  const char* pattern = "e.{}.up";
  Q4_REQUIRE_OK(q4_experts_from_checkpoint(runtime, kHere, checkpoint, &pattern, 1, 0, -1, nullptr, &experts));
  Q4_REQUIRE_OK(q4_experts_get(runtime, experts, &info));
  CHECK((info.experts == 2 && info.k == 64));
  rejects("a missing expert", Q4_NOT_FOUND, {"q4_experts_from_checkpoint", "e.2.up"},
          q4_experts_from_checkpoint(runtime, kHere, checkpoint, &pattern, 1, 0, 3, nullptr, &experts));
}

TEST_CASE_FIXTURE(MoeFixture, "the C ABI: bad arguments of experts and their plans") {
  q4_experts experts = 0;
  q4_moe_plan plan = 0;
  rejects({"q4_experts_from_gptq", "runtime is null"},
          q4_experts_from_gptq(nullptr, kHere, c2.pointers.data(), 4, nullptr, &experts));
  rejects({"q4_experts_from_gptq", "experts is null"},
          q4_experts_from_gptq(runtime, kHere, c2.pointers.data(), 4, nullptr, nullptr));
  rejects({"q4_experts_from_gptq", "tensors is null", "4"},
          q4_experts_from_gptq(runtime, kHere, nullptr, 4, nullptr, &experts));
  rejects({"q4_experts_from_gptq", "0 experts"}, q4_experts_from_gptq(runtime, kHere, nullptr, 0, nullptr, &experts));
  c2.pointers[1] = nullptr;
  rejects({"q4_experts_from_gptq", "tensors[1] is null"},
          q4_experts_from_gptq(runtime, kHere, c2.pointers.data(), 4, nullptr, &experts));
  rejects({"q4_moe_plan_create", "w13", "no handle"}, q4_moe_plan_create(runtime, 0, w2, nullptr, &plan));
  const auto with = [&](const Words& words, auto&& spoil) {
    q4_moe_options bad = options();
    spoil(bad);
    rejects(words, q4_moe_plan_create(runtime, w13, w2, &bad, &plan));
  };
  with({"q4_moe_plan_create", "options.activation is 5", "0 to 4"}, [](auto& o) { o.activation = 5; });
  with({"q4_moe_plan_create", "options.dtype is 9"}, [](auto& o) { o.dtype = 9; });
  with({"q4_moe_plan_create", "topk = -1"}, [](auto& o) { o.topk = -1; });
  with({"q4_moe_plan_create", "max_tokens = -1"}, [](auto& o) { o.max_rows = -1; });
  with({"q4_moe_plan_create", "expert_map is null", "4"}, [](auto& o) { o.expert_map_count = 4; });
  with({"q4_moe_plan_create", "limit = 0"}, [](auto& o) { o.activation = Q4_MOE_SWIGLU_CLAMP, o.alpha = 1; });
  with({"q4_moe_plan_create", "size is 3"}, [](auto& o) { o.size = 3; });
  CHECK(plan == 0);
}

}  // namespace
}  // namespace q4::test
