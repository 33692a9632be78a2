// Warm-up of layers of experts on the fake driver's GPU: what it compiles is what plans take and what packs hold.
#include <limits>
#include <q4/q4.hpp>
#include <set>

#include "cache_support.hpp"
#include "fake_gpu.hpp"
#include "moe_case.hpp"
#include "tools/cache/cross.hpp"

namespace q4::cache {
namespace {

TEST_CASE("warmup: of layers of experts, after which their plans compile nothing, also when sealed") {
  if (compiler_absent("warmup of experts")) return;
  TempFolder s;
  const int status = on_fake_gpu([&] {
    int variant = 0;
    for (const bool act_order : {false, true}) {
      const auto activation = act_order ? MoeActivation::kNone : MoeActivation::kSiluMul;
      test::MoeSpec spec{.experts = 4, .topk = 2, .k = 256, .width = 128, .n = 64, .activation = activation};
      spec.group_size = 64, spec.act_order = act_order ? test::ActOrder::kPermuted : test::ActOrder::kNone;
      spec.bias = act_order;
      WarmupExperts layer{.experts = spec.experts, .k = spec.k, .width = spec.width, .n = spec.n};
      layer.group_size = spec.group_size, layer.act_order = act_order, layer.bias = spec.bias;
      layer.plan = test::moe_options(spec, act_order ? DType::kBF16 : DType::kF16, act_order ? 3 : 8);
      const std::string folder = s / std::to_string(++variant);
      const Runtime first(in(folder));
      const auto made = first.warmup_experts({layer, layer}, {});
      Q4_CHILD_CHECK(made.complete() && made.count(CacheLayer::kCompiler) == made.kernels.size());
      Q4_CHILD_CHECK(made.kernels.size() >= 6);  // packing, products, sum
      KernelCache nothing({.mode = CacheMode::kOff}, nullptr);
      tools::CrossCompiler cross(tools::parse_targets("sm_90a/132")[0], nothing);
      std::set<std::string> built;  // what q4-cache build would put into a pack
      for (const auto& source : cross.sources(layer)) built.insert(tools::key_of("sm_90a", source).digest());
      for (const auto& event : made.kernels) Q4_CHILD_CHECK(built.contains(event.key));
      const Runtime second(in(folder));
      Q4_CHILD_CHECK(second.warmup_experts({layer}, {}).count(CacheLayer::kUserFolder) == made.kernels.size());
      const test::MoeWeights w(spec);
      const test::MoeExperts experts(second, kGpu, w);
      const MoePlan plan(second, experts.w13, experts.w2, layer.plan);
      const auto after = second.cache_counters();
      Q4_CHILD_CHECK(after.compiled == 0 && after.failed == 0 && after.user_folder == made.kernels.size());
    }
    return 0;
  });
  CHECK(status == 0);
}

TEST_CASE("warmup: layers of experts that no plan accepts, and the CPU") {
  const Runtime runtime;
  const WarmupExperts good{.experts = 4, .k = 64, .width = 32};
  WarmupOptions cpu;
  cpu.device = Device{};
  CHECK(runtime.warmup_experts({good}, cpu).kernels.empty());
  const auto refused = [&](WarmupExperts bad, const char* what) {
    const auto text = error_of([&] { (void)runtime.warmup_experts({bad}, cpu); }, ErrorCode::kInvalidArgument);
    CHECK_MESSAGE(contains(text, what), text);
  };
  auto bad = good;
  bad.experts = 0, refused(bad, "experts = 0");
  bad = good, bad.width = 30, refused(bad, "n = 60");
  bad = good, bad.width = std::numeric_limits<std::int64_t>::max(), refused(bad, "width = 9223372036854775807");
  bad = good, bad.width = 0, refused(bad, "width = 0");
  bad = good, bad.plan.topk = 33, refused(bad, "topk = 33");
  bad = good, bad.plan.max_tokens = 0, refused(bad, "max_tokens = 0");
  bad = good, bad.plan.expert_map = {4}, refused(bad, "expert_map[0] = 4");
}

}  // namespace
}  // namespace q4::cache
