// Mixtures of experts on interpreted AMD GPUs: router, gathers, grouped gemv and combine, as hipRTC or clang compile
// them, through the public API against fp64.
#include "interpreted.hpp"
#include "moe_case.hpp"

namespace q4::test {
namespace {

void check_experts(const char* target) {
  const auto info = device(target);
  if (!info) return;
  const Environment here = stand_in();
  for (const bool ordered : {false, true}) {
    MoeSpec spec{.experts = 5, .topk = 3, .k = 136, .width = 48, .n = 72};
    spec.activation = ordered ? MoeActivation::kSwigluClamp : MoeActivation::kSiluMul;
    spec.act_order = ordered ? ActOrder::kPermuted : ActOrder::kNone, spec.bias = ordered;
    const DType type = ordered ? DType::kBF16 : DType::kF16;
    const MoeWeights w(spec);
    const MoeExperts experts(interpreted(), info->device, w);
    for (const std::int64_t tokens : {1, 23}) {  // one warp routes, then a block
      const MoePlan plan(interpreted(), experts.w13, experts.w2, moe_options(spec, type, tokens));
      const HostRows x = random_rows(type, tokens, spec.k, 5, spec.k + 8);
      Routing routing = random_routing(tokens, spec.topk, spec.experts);
      routing.ids[1] = -1, routing.ids.back() = 900;
      HostRows out(type, tokens, spec.n, spec.n + 16);
      run_moe(interpreted(), info->device, plan, x, routing, out);
      INFO(std::string(target), " tokens=", tokens, " ", plan.tactic(tokens));
      CHECK(relative_error(out, moe_reference(w, x, routing, type)) <= moe_limit(type));
      CHECK(out.padding_intact());
    }
  }
}

TEST_CASE("interpreted gfx90a: layers of experts agree with fp64") { check_experts("gfx90a"); }
TEST_CASE("interpreted gfx1100: layers of experts agree with fp64") { check_experts("gfx1100"); }

}  // namespace
}  // namespace q4::test
