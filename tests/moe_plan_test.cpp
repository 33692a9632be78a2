// MoePlan and GroupedPlan against fp64: every activation, type, group and order, and every kind of routing.
#include <q4/moe.hpp>

#include <limits>

#include "moe_case.hpp"

namespace q4::test {
namespace {

std::vector<DType> types_of(Device device) {
  if (device.kind == BackendKind::kCpu) return {DType::kF16, DType::kBF16, DType::kF32};
  return {DType::kF16, DType::kBF16};
}

void check_result(const HostRows& out, const std::vector<double>& expected, DType type) {
  const double error = relative_error(out, expected);
  CHECK_MESSAGE(error <= moe_limit(type), "error ", error);
  CHECK(out.padding_intact());
}

void check_moe(Device device, const MoeSpec& spec, const std::vector<std::int64_t>& tokens) {
  const Runtime& runtime = shared_runtime();
  const MoeWeights w(spec);
  const MoeExperts experts(runtime, device, w);
  for (const DType type : types_of(device))
    for (const std::int64_t m : tokens) {
      INFO(device.str(), " E=", spec.experts, " topk=", spec.topk, " k=", spec.k, " width=", spec.width, " n=", spec.n,
           " group=", spec.group_size, " order=", int(spec.act_order), " ", to_string(spec.activation), " ",
           to_string(type), " m=", m);
      const MoePlan plan(runtime, experts.w13, experts.w2, moe_options(spec, type, m));
      const HostRows x = random_rows(type, m, spec.k, 5, spec.k + 8);
      const Routing routing = random_routing(m, spec.topk, spec.experts, static_cast<std::uint64_t>(m));
      HostRows out(type, m, spec.n, spec.n + 16);
      run_moe(runtime, device, plan, x, routing, out);
      check_result(out, moe_reference(w, x, routing, type), type);
    }
}

TEST_CASE("moe: agrees with fp64 for every activation") {
  for (const Device device : moe_devices())
    for (const auto activation : {MoeActivation::kNone, MoeActivation::kSiluMul, MoeActivation::kGeluMul,
                                  MoeActivation::kGeluTanhMul, MoeActivation::kSwigluClamp})
      for (const bool bias : {false, true}) {
        MoeSpec spec;
        spec.activation = activation, spec.bias = bias, spec.seed = 10 + std::uint64_t(activation);
        check_moe(device, spec, {1, 7});
      }
}

TEST_CASE("moe: agrees with fp64 for groups, orders and shapes") {
  for (const Device device : moe_devices()) {
    std::uint64_t seed = 100;
    for (const std::int64_t group :
         {std::int64_t{8}, std::int64_t{24}, std::int64_t{64}, std::int64_t{128}, std::int64_t{-1}})
      for (const auto order : {ActOrder::kNone, ActOrder::kTrivial, ActOrder::kPermuted}) {
        MoeSpec spec{.experts = 3, .topk = 2, .k = 264, .width = 72, .n = 136};
        spec.group_size = group, spec.act_order = group == -1 ? ActOrder::kNone : order, spec.seed = ++seed;
        spec.zeros = seed % 2 ? ZeroFormat::kV1 : ZeroFormat::kV2;
        check_moe(device, spec, {1, 5, 40});
      }
    check_moe(device, {.experts = 5, .topk = 1, .k = 512, .width = 200, .n = 1032}, {3, 33});
  }
}

TEST_CASE("moe: agrees with fp64 for numbers of experts and slots") {
  for (const Device device : moe_devices()) {
    for (std::int64_t topk = 1; topk <= 8; ++topk)
      check_moe(device, {.experts = 9, .topk = topk, .k = 64, .width = 32, .n = 64}, {1, 6});
    check_moe(device, {.experts = 1, .topk = 1, .k = 64, .width = 32, .n = 64}, {1, 19, 300});
    check_moe(device, {.experts = 384, .topk = 8, .k = 32, .width = 16, .n = 32}, {1, 17, 200});
    check_moe(device, {.experts = 40, .topk = 32, .k = 32, .width = 16, .n = 32}, {2});
  }
}

/// One plan for several routings of 64 tokens.
struct Routed {
  explicit Routed(Device device, MoeSpec with = {}, bool invariant = false)
      : spec(with), device(device), w(spec), experts(shared_runtime(), device, w) {
    MoeOptions options = moe_options(spec, DType::kF16, 64);
    options.batch_invariant = invariant;
    plan = MoePlan(shared_runtime(), experts.w13, experts.w2, options);
  }
  HostRows run(const HostRows& x, const Routing& routing) const {
    HostRows out(DType::kF16, x.rows(), spec.n);
    run_moe(shared_runtime(), device, plan, x, routing, out);
    return out;
  }
  MoeSpec spec;
  Device device;
  MoeWeights w;
  MoeExperts experts;
  MoePlan plan;
};

TEST_CASE("moe: one hot expert, experts without tokens, one expert in several slots") {
  for (const Device device : moe_devices()) {
    const Routed moe(device, {.experts = 6, .topk = 2});
    const HostRows x = random_rows(DType::kF16, 64, moe.spec.k);
    for (const std::int32_t hot : {0, 3, 5}) {
      Routing routing = random_routing(64, 2, 6);
      for (auto& id : routing.ids) id = hot;
      check_result(moe.run(x, routing), moe_reference(moe.w, x, routing, DType::kF16), DType::kF16);
      for (std::size_t s = 0; s < routing.ids.size(); s += 2) routing.ids[s] = 2;  // two of six experts
      check_result(moe.run(x, routing), moe_reference(moe.w, x, routing, DType::kF16), DType::kF16);
    }
  }
}

TEST_CASE("moe: ids that name no expert add nothing, and their weights are not used") {
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  for (const Device device : moe_devices()) {
    const Routed moe(device);
    const HostRows x = random_rows(DType::kF16, 5, moe.spec.k);
    Routing routing = random_routing(5, 2, 4);
    const std::int32_t none[] = {-1, 4, INT32_MAX, INT32_MIN, 1 << 20};
    for (std::size_t t = 0; t < 5; ++t) routing.ids[2 * t + t % 2] = none[t], routing.weights[2 * t + t % 2] = kNaN;
    routing.ids[0] = routing.ids[1] = -7, routing.weights[1] = kNaN;  // a token without any slot
    const HostRows out = moe.run(x, routing);
    for (std::size_t s = 0; s < routing.ids.size(); ++s)
      if (routing.ids[s] < 0 || routing.ids[s] >= 4) routing.weights[s] = 0;
    check_result(out, moe_reference(moe.w, x, routing, DType::kF16), DType::kF16);
    for (std::int64_t c = 0; c < moe.spec.n; ++c) CHECK(out.at(0, c) == 0);
  }
}

TEST_CASE("moe: a NaN or an infinity in a weight or a row of x stays in its token") {
  for (const Device device : moe_devices()) {
    const Routed moe(device);
    HostRows x = random_rows(DType::kF16, 4, moe.spec.k);
    Routing routing = random_routing(4, 2, 4);
    const HostRows before = moe.run(x, routing);
    routing.weights[2] = std::numeric_limits<float>::quiet_NaN();
    x.set(2, 17, std::numeric_limits<double>::quiet_NaN());
    const HostRows out = moe.run(x, routing);
    for (std::int64_t c = 0; c < moe.spec.n; ++c) {
      CHECK(out.at(0, c) == before.at(0, c));
      CHECK(std::isnan(out.at(1, c)));
      CHECK(std::isnan(out.at(2, c)));
      CHECK(out.at(3, c) == before.at(3, c));
    }
  }
}

TEST_CASE("moe: no tokens, and passes over more tokens than one workspace serves") {
  for (const Device device : moe_devices()) {
    const Routed moe(device);
    HostRows nothing(DType::kF16, 0, moe.spec.n);
    moe.plan.run({}, {}, nullptr, nullptr, {}, 0);
    check_moe(device, {.experts = 4, .topk = 2, .k = 32, .width = 16, .n = 16}, {5000});
  }
}

TEST_CASE("moe: expert_map names local experts by the model's numbers") {
  for (const Device device : moe_devices()) {
    const MoeSpec spec{.experts = 4, .topk = 3};
    const MoeWeights w(spec);
    const MoeExperts experts(shared_runtime(), device, w);
    MoeOptions options = moe_options(spec, DType::kF16, 16);
    options.expert_map = {-1, 2, -1, 0, 1, -1, 3, -1, -1, -1};
    const MoePlan plan(shared_runtime(), experts.w13, experts.w2, options);
    const HostRows x = random_rows(DType::kF16, 16, spec.k);
    Routing routing = random_routing(16, 3, 10);
    routing.ids[4] = 10, routing.ids[9] = -1;
    HostRows out(DType::kF16, 16, spec.n);
    run_moe(shared_runtime(), device, plan, x, routing, out);
    check_result(out, moe_reference(w, x, routing, DType::kF16, options.expert_map), DType::kF16);
  }
}

TEST_CASE("moe: batch_invariant gives a token the same bits alone and among others") {
  for (const Device device : moe_devices()) {
    const Routed moe(device, {.experts = 3, .topk = 2, .k = 256, .width = 128, .n = 128}, true);
    const HostRows x = random_rows(DType::kF16, 64, moe.spec.k);
    const Routing routing = random_routing(64, 2, 3);
    const HostRows all = moe.run(x, routing), again = moe.run(x, routing);
    CHECK(std::memcmp(all.data(), again.data(), all.bytes()) == 0);
    for (const std::int64_t t : {0, 13, 63}) {
      HostRows one(DType::kF16, 1, moe.spec.k);
      for (std::int64_t c = 0; c < moe.spec.k; ++c) one.set(0, c, x.at(t, c));
      const auto at = static_cast<std::size_t>(2 * t);
      const HostRows alone =
          moe.run(one, {{routing.ids[at], routing.ids[at + 1]}, {routing.weights[at], routing.weights[at + 1]}});
      for (std::int64_t c = 0; c < moe.spec.n; ++c) CHECK(alone.at(0, c) == all.at(t, c));
    }
  }
}

TEST_CASE("moe: a workspace of the caller's, and every tactic") {
  for (const Device device : moe_devices()) {
    const MoeSpec spec{.experts = 4, .topk = 2, .k = 256, .width = 64, .n = 64};
    const MoeWeights w(spec);
    const MoeExperts experts(shared_runtime(), device, w);
    const HostRows x = random_rows(DType::kF16, 24, spec.k);
    const Routing routing = random_routing(24, 2, 4);
    const auto expected = moe_reference(w, x, routing, DType::kF16);
    MoeOptions options = moe_options(spec, DType::kF16, 24);
    const auto tactics = MoePlan(shared_runtime(), experts.w13, experts.w2, options).tactics(24);
    CHECK(!tactics.empty());
    options.own_workspace = false;
    for (const auto& tactic : tactics) {
      CAPTURE(tactic);
      options.tactic = tactic;
      const MoePlan plan(shared_runtime(), experts.w13, experts.w2, options);
      CHECK(plan.tactic(24) == tactic);
      auto backend = shared_runtime().impl().open(device);
      const Buffer workspace(backend, plan.workspace_bytes() + 1);
      backend->fill(workspace.get(), 0, plan.workspace_bytes());
      const Uploaded dx(backend, x.data(), x.bytes()), ids(backend, routing.ids.data(), routing.ids.size() * 4);
      const Uploaded weights(backend, routing.weights.data(), routing.weights.size() * 4);
      HostRows out(DType::kF16, 24, spec.n);
      const Uploaded dout(backend, out.data(), out.bytes());
      plan.run({}, {dx.get()}, static_cast<const std::int32_t*>(ids.get()), static_cast<const float*>(weights.get()),
               {dout.get()}, 24, workspace.get());
      backend->synchronize();
      backend->copy(out.data(), dout.get(), out.bytes(), CopyKind::kToHost);
      check_result(out, expected, DType::kF16);
    }
  }
}

TEST_CASE("moe: a captured graph replays with the routing and x that are there then") {
  bool captured = false;
  for (const Device device : moe_devices())
    for (const std::int64_t tokens : {3, 40, 300}) {
      const MoeSpec spec{.experts = 8, .topk = 4, .k = 256, .width = 128, .n = 256};
      const MoeWeights w(spec);
      const MoeExperts experts(shared_runtime(), device, w);
      const MoePlan plan(shared_runtime(), experts.w13, experts.w2, moe_options(spec, DType::kF16, tokens));
      auto backend = shared_runtime().impl().open(device);
      HostRows x = random_rows(DType::kF16, tokens, spec.k), out(DType::kF16, tokens, spec.n);
      Routing routing = random_routing(tokens, spec.topk, spec.experts, 1);
      const Uploaded dx(backend, x.data(), x.bytes()), dout(backend, out.data(), out.bytes());
      const Uploaded ids(backend, routing.ids.data(), routing.ids.size() * 4);
      const Uploaded weights(backend, routing.weights.data(), routing.weights.size() * 4);
      const auto graph = backend->capture([&](void* stream) {
        for (int run = 0; run < 2; ++run)  // the second finds the workspace as the first left it
          plan.run({stream}, {dx.get()}, static_cast<const std::int32_t*>(ids.get()),
                   static_cast<const float*>(weights.get()), {dout.get()}, tokens);
      });
      if (!graph) break;
      captured = true;
      for (std::uint64_t replay = 2; replay < 8; ++replay) {
        routing = random_routing(tokens, spec.topk, replay % 3 ? spec.experts : spec.topk, replay);  // or half of them
        if (replay == 5) std::fill(routing.ids.begin(), routing.ids.end(), 6);                       // one hot expert
        if (replay == 6) std::fill(routing.ids.begin() + 4, routing.ids.end(), -1);                  // one token
        x = random_rows(DType::kF16, tokens, spec.k, replay);
        out = HostRows(DType::kF16, tokens, spec.n);  // poison
        backend->copy(dx.get(), x.data(), x.bytes(), CopyKind::kToDevice);
        backend->copy(dout.get(), out.data(), out.bytes(), CopyKind::kToDevice);
        backend->copy(ids.get(), routing.ids.data(), routing.ids.size() * 4, CopyKind::kToDevice);
        backend->copy(weights.get(), routing.weights.data(), routing.weights.size() * 4, CopyKind::kToDevice);
        graph->replay();
        backend->synchronize();
        backend->copy(out.data(), dout.get(), out.bytes(), CopyKind::kToHost);
        INFO(device.str(), " tokens ", tokens, " replay ", replay);
        check_result(out, moe_reference(w, x, routing, DType::kF16), DType::kF16);
      }
    }
  if (!captured) skip("graphs of experts: no GPU that captures");
}

// ---- GroupedPlan ----------------------------------------------------------------------------------------------------

std::vector<double> grouped_reference(const MoeWeights& w, const HostRows& x, const std::vector<std::int32_t>& expert) {
  std::vector<double> out;
  const auto n = static_cast<std::size_t>(w.spec.width);
  for (std::int64_t r = 0; r < x.rows(); ++r) {
    const std::int32_t e = expert[static_cast<std::size_t>(r)];
    const auto row = e >= 0 && e < w.spec.experts ? hidden(w, e, row_of(x, r)) : std::vector<double>(n);
    out.insert(out.end(), row.begin(), row.end());
  }
  return out;
}

void check_grouped(Device device, const MoeSpec& spec) {
  const MoeWeights w(spec);
  const MoeExperts experts(shared_runtime(), device, w);
  auto backend = shared_runtime().impl().open(device);
  Random random(5);
  for (const std::int64_t rows : {1, 9, 100}) {
    GroupedOptions options;
    options.activation = spec.activation, options.max_rows = rows;
    const GroupedPlan plan(shared_runtime(), experts.w13, options);
    std::vector<std::int32_t> ids;
    for (std::int64_t r = 0; r < rows; ++r)
      ids.push_back(static_cast<std::int32_t>(random.below(spec.experts + 2)) - 1);
    const HostRows x = random_rows(DType::kF16, rows, spec.k);
    const Uploaded dx(backend, x.data(), x.bytes()), dids(backend, ids.data(), ids.size() * 4);
    const auto result = [&](auto&& run) {
      HostRows out(DType::kF16, rows, spec.width, spec.width + 8);
      const Uploaded dout(backend, out.data(), out.bytes());
      run(Rows{dout.get(), out.row_stride()});
      backend->synchronize();
      backend->copy(out.data(), dout.get(), out.bytes(), CopyKind::kToHost);
      return out;
    };
    INFO(device.str(), " ", to_string(spec.activation), " rows=", rows);
    check_result(
        result([&](Rows out) { plan.run({}, {dx.get()}, static_cast<const std::int32_t*>(dids.get()), out, rows); }),
        grouped_reference(w, x, ids), DType::kF16);
    // Sorted: some rows before the first offset and after the last one, and an expert without rows.
    std::sort(ids.begin(), ids.end());
    std::vector<std::int32_t> offsets;
    for (std::int64_t e = 0; e <= spec.experts; ++e)
      offsets.push_back(static_cast<std::int32_t>(std::lower_bound(ids.begin(), ids.end(), e) - ids.begin()));
    const Uploaded doffsets(backend, offsets.data(), offsets.size() * 4);
    check_result(result([&](Rows out) {
                   plan.run_sorted({}, {dx.get()}, static_cast<const std::int32_t*>(doffsets.get()), out, rows);
                 }),
                 grouped_reference(w, x, ids), DType::kF16);
  }
}

TEST_CASE("grouped: agrees with fp64 by ids and by offsets, with and without an activation") {
  for (const Device device : moe_devices()) {
    check_grouped(device, {.experts = 5, .activation = MoeActivation::kNone});
    check_grouped(device, {.experts = 5, .k = 264, .width = 72});
    check_grouped(device, {.experts = 5, .act_order = ActOrder::kPermuted, .bias = true});
  }
}

}  // namespace
}  // namespace q4::test
