// Random mixtures of experts against fp64, and what must hold between two ways to the same result: property.hpp.
#include "property.hpp"

#include <map>
#include <numeric>

#include "moe_case.hpp"
#include "runtime/backends/cpu/kernels.hpp"

namespace q4::test {
namespace {

enum class Relation {
  kNone,
  kMapped,     ///< the experts behind an expert_map, in another order
  kHoles,      ///< slots of no expert
  kInvariant,  ///< a token's bits do not depend on the other tokens
  kUpdated,    ///< experts that were others before
  kSorted,     ///< a grouped product by ids and by offsets: the same bits, and what a plan of each expert gives
};

std::vector<Choice> choices(bool cpu) {
  const auto only_cpu = [cpu](std::vector<std::int64_t> values) {
    return cpu ? values : std::vector<std::int64_t>(values.begin(), values.begin() + 1);
  };
  std::vector<std::int64_t> types = {int(DType::kF16), int(DType::kBF16)};
  if (cpu) types.push_back(int(DType::kF32));
  return {
      {"experts", {1, 2, 3, 5, 8, 17}},
      {"topk", {1, 2, 3, 4, 8}},
      {"k", {8, 16, 32, 64, 72, 128, 200, 264}},
      {"width", {8, 16, 24, 32, 64, 72, 136}},
      {"n", {8, 16, 24, 64, 72, 136, 200}},
      {"activation", {0, 1, 2, 3, 4}},
      {"group", {-1, 64, 32, 8, 24, 128}},
      {"order", {int(ActOrder::kNone), int(ActOrder::kTrivial), int(ActOrder::kPermuted)}},
      {"zeros", {int(ZeroFormat::kV1), int(ZeroFormat::kV2)}},
      {"bias", {0, 1}},
      {"type", types},
      {"tokens", {1, 2, 3, 5, 8, 17, 33, 70}},
      {"spare", {0, 1, 30}},
      {"pad", {0, 8}},
      {"relation", {0, 1, 2, 3, 4, 5}},
      {"threads", only_cpu({1, 2, 3})},
      {"best_isa", only_cpu({1, 0})},
  };
}

/// Of `out` from `exact`, beyond what a layer may be. Usual elements are of 10 and more; where gates and sums cancel, the
/// limit is that of elements of 1.
std::string difference(const HostRows& out, const std::vector<double>& exact, DType type, Device device) {
  double far = 0, norm = 0;
  for (std::int64_t r = 0, i = 0; r < out.rows(); ++r)
    for (std::int64_t c = 0; c < out.cols(); ++c, ++i) {
      const double e = exact[static_cast<std::size_t>(i)], d = out.at(r, c) - e;
      far += d * d, norm += e * e + 1;
    }
  // GPUs round the product of each slot too.
  const double limit = moe_limit(type) * (device.kind == BackendKind::kCpu ? 1 : 1.5);
  if (!(std::sqrt(far) <= limit * std::sqrt(norm)))
    return fmt::format("{} from fp64, of {}: at most {} of it", std::sqrt(far), std::sqrt(norm), limit);
  return out.padding_intact() ? "" : "what is between the rows of out was written";
}

/// One grouped product by ids, by offsets, and by a plan of each expert.
std::string check_grouped(const Runtime& runtime, Device where, const MoeWeights& w, const QuantizedExperts& w2,
                          DType type, std::int64_t rows) {
  GroupedOptions options;
  options.dtype = type, options.max_rows = rows;
  const GroupedPlan plan(runtime, w2, options);
  const HostRows x = random_rows(type, rows, w.spec.width, w.spec.seed);
  Random random(w.spec.seed);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(rows)), offsets(static_cast<std::size_t>(w.spec.experts + 1));
  for (auto& id : ids) id = static_cast<std::int32_t>(random.below(w.spec.experts + 2)) - 1;
  std::ranges::sort(ids);  // -1, the experts, one that is none
  for (std::size_t e = 0; e < offsets.size(); ++e)
    offsets[e] = static_cast<std::int32_t>(std::ranges::lower_bound(ids, std::int32_t(e)) - ids.begin());
  HostRows by_id(type, rows, w.spec.n), sorted(type, rows, w.spec.n);
  auto device = runtime.impl().open(where);
  const Uploaded on_x(device, x.data(), x.bytes()), on_out(device, by_id.data(), by_id.bytes());
  const Uploaded on_ids(device, ids.data(), ids.size() * 4), on_offsets(device, offsets.data(), offsets.size() * 4);
  const auto read = [&](HostRows& out) {
    device->synchronize();
    device->copy(out.data(), on_out.get(), out.bytes(), CopyKind::kToHost);
    device->copy(on_out.get(), sorted.data(), sorted.bytes(), CopyKind::kToDevice);  // the poison again
  };
  plan.run({}, {on_x.get()}, static_cast<const std::int32_t*>(on_ids.get()), {on_out.get()}, rows);
  read(by_id);
  plan.run_sorted({}, {on_x.get()}, static_cast<const std::int32_t*>(on_offsets.get()), {on_out.get()}, rows);
  read(sorted);
  if (std::memcmp(by_id.data(), sorted.data(), sorted.bytes()) != 0) return "run_sorted() gives other bits than run()";
  std::vector<double> exact(static_cast<std::size_t>(rows * w.spec.n));
  for (std::size_t r = 0; r < ids.size(); ++r) {
    const auto e = static_cast<std::size_t>(ids[r]);
    if (ids[r] < 0 || ids[r] >= w.spec.experts) continue;
    const auto y = expert_product(row_of(x, static_cast<std::int64_t>(r)), w.dense2[e], w.w2[e]);
    std::ranges::copy(y, exact.begin() + static_cast<std::ptrdiff_t>(r) * w.spec.n);
  }
  return difference(by_id, exact, type, where);
}

std::string check_moe(const RandomProblem& p, const Runtime& runtime, Device device) {
  const auto relation = static_cast<Relation>(p["relation"]);
  MoeSpec spec{.experts = p["experts"],
               .topk = std::min(p["topk"], p["experts"]),
               .k = p["k"],
               .width = p["width"],
               .n = p["n"]};
  spec.activation = static_cast<MoeActivation>(p["activation"]), spec.group_size = p["group"];
  spec.act_order = static_cast<ActOrder>(p["order"]), spec.zeros = static_cast<ZeroFormat>(p["zeros"]);
  spec.bias = p["bias"] != 0, spec.seed = p.seed;
  if (spec.group_size > std::min(spec.k, spec.width)) spec.group_size = -1;
  const auto type = static_cast<DType>(p["type"]);
  const std::int64_t tokens = p["tokens"], pad = p["pad"];
  const MoeWeights w(spec);
  MoeExperts experts(runtime, device, w);
  if (relation == Relation::kSorted) return check_grouped(runtime, device, w, experts.w2, type, tokens);
  if (relation == Relation::kUpdated) {
    MoeSpec other = spec;
    other.seed += 1000;
    const MoeWeights before(other);
    experts = MoeExperts(runtime, device, before);
    const auto w13 = MoeWeights::tensors(w.w13), w2 = MoeWeights::tensors(w.w2);
    for (std::size_t e = 0; e < w13.size(); ++e) {
      experts.w13.update(static_cast<std::int64_t>(e), w13[e]), experts.w2.update(static_cast<std::int64_t>(e), w2[e]);
      const UnpackedMatrix again = experts.w13.unpack(static_cast<std::int64_t>(e));
      if (again.qweight != w.w13[e].qweight || again.qzeros != w.w13[e].qzeros || again.scales != w.w13[e].scales)
        return "unpack() after update() gives other tensors";
    }
  }
  MoeOptions options = moe_options(spec, type, tokens + p["spare"]);
  Routing routing = random_routing(tokens, spec.topk, spec.experts, p.seed);
  Random random(p.seed + 9);
  if (relation == Relation::kMapped) {  // ids of a model with some more experts, which other ranks have
    options.expert_map.assign(static_cast<std::size_t>(2 * spec.experts), -1);
    for (std::int32_t e = 0; e < spec.experts; ++e)
      options.expert_map[static_cast<std::size_t>(2 * spec.experts - 1 - 2 * e)] = e;
    for (auto& id : routing.ids) id = static_cast<std::int32_t>(random.below(2 * spec.experts));
  }
  if (relation == Relation::kHoles)
    for (auto& id : routing.ids)
      if (random.below(3) == 0) id = random.below(2) ? -1 : static_cast<std::int32_t>(spec.experts);
  if (relation == Relation::kInvariant) options.batch_invariant = true;
  const MoePlan plan(runtime, experts.w13, experts.w2, options);
  const HostRows x = random_rows(type, tokens, spec.k, p.seed + 1, spec.k + pad);
  HostRows out(type, tokens, spec.n, spec.n + pad), again(type, tokens, spec.n, spec.n + pad);
  run_moe(runtime, device, plan, x, routing, out);
  if (const auto text = difference(out, moe_reference(w, x, routing, type, options.expert_map), type, device);
      !text.empty())
    return plan.tactic(tokens) + ": " + text;
  run_moe(runtime, device, plan, x, routing, again);
  if (std::memcmp(out.data(), again.data(), out.bytes()) != 0) return "a second run gives other bits";
  if (relation != Relation::kInvariant) return {};
  const std::int64_t last = tokens - 1;
  HostRows one(type, 1, spec.k), its(type, 1, spec.n);
  for (std::int64_t c = 0; c < spec.k; ++c) one.set(0, c, x.at(last, c));
  options.max_tokens = 1;
  const auto slots = static_cast<std::ptrdiff_t>(spec.topk);
  const Routing of_one{{routing.ids.end() - slots, routing.ids.end()},
                       {routing.weights.end() - slots, routing.weights.end()}};
  run_moe(runtime, device, MoePlan(runtime, experts.w13, experts.w2, options), one, of_one, its);
  for (std::int64_t c = 0; c < spec.n; ++c)
    if (its.at(0, c) != out.at(last, c)) return "the last token alone has other bits";
  return {};
}

TEST_CASE("property: random mixtures of experts on the CPU agree with fp64 and with each other") {
  std::map<std::pair<std::int64_t, std::int64_t>, Runtime> runtimes;
  check_problems(choices(true), 400, [&](const RandomProblem& problem) {
    const auto key = std::pair(problem["best_isa"], problem["threads"]);
    if (!runtimes.count(key))
      runtimes.emplace(key, Runtime({.cache_mode = CacheMode::kOff,
                                     .cpu_threads = static_cast<int>(key.second),
                                     .cpu_isa = key.first ? "" : "portable",
                                     .log = [](LogLevel, const std::string&) {}}));
    return check_moe(problem, runtimes.at(key), {});
  });
}

TEST_CASE("property: random mixtures of experts on a GPU agree with fp64 and with each other") {
  for (const Device device : moe_devices()) {
    if (device.kind == BackendKind::kCpu) continue;
    INFO(device.str());
    check_problems(choices(false), 10,
                   [&](const RandomProblem& problem) { return check_moe(problem, shared_runtime(), device); });
  }
}

}  // namespace
}  // namespace q4::test
