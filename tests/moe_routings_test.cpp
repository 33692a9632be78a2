// Experts of many numbers and kinds under every kind of routing, from no token to thousands, against fp64. It times nothing:
// compute-sanitizer runs it on a GPU (kernels/README.md, grouped).
#include <algorithm>
#include <q4/moe.hpp>

#include "moe_case.hpp"

namespace q4::test {
namespace {

enum class Kind { kUniform, kZipf, kOneHot, kFew, kNobody };

/// As random_routing, but of a kind: expert e of a token is drawn with weight 1 / (e + 1); every slot has one expert; all
/// tokens have the same few; no slot names any.
Routing routing_of(Kind kind, std::int64_t tokens, const MoeSpec& spec, std::uint64_t seed) {
  Routing routing = random_routing(tokens, spec.topk, spec.experts, seed);
  Random random(seed + 1);
  std::vector<double> sums;
  for (std::int64_t e = 0; e < spec.experts; ++e)
    sums.push_back((sums.empty() ? 0 : sums.back()) + 1.0 / double(e + 1));
  const auto hot = static_cast<std::int32_t>(random.below(spec.experts));
  for (std::size_t i = 0; i < routing.ids.size(); ++i) {
    const auto slot = static_cast<std::int64_t>(i) % spec.topk;
    auto& id = routing.ids[i];
    if (kind == Kind::kZipf)  // a token may draw an expert twice
      id = static_cast<std::int32_t>(std::ranges::lower_bound(sums, random.uniform() * sums.back()) - sums.begin());
    if (kind == Kind::kOneHot) id = hot;
    if (kind == Kind::kFew) id = static_cast<std::int32_t>((hot + slot) % spec.experts);
    if (kind == Kind::kNobody) id = i % 2 ? -1 : static_cast<std::int32_t>(spec.experts);
  }
  return routing;
}

/// Tokens that are compared: the first, the last and some between. All would take longer than what is tested.
std::vector<std::int64_t> sampled(std::int64_t tokens, std::uint64_t seed) {
  Random random(seed);
  std::vector<std::int64_t> rows;
  for (std::int64_t i = 0; i < std::min<std::int64_t>(tokens, 12); ++i)
    rows.push_back(i == 0 ? 0 : i == 1 ? tokens - 1 : random.below(tokens));
  return rows;
}

/// Sum of squares of what `rows` of out are beside the exact result, over the exact result's; a NaN makes it NaN.
double error_of(const MoeWeights& w, const HostRows& x, const Routing& routing, const HostRows& out, DType type,
                const std::vector<std::int64_t>& rows) {
  const auto topk = static_cast<std::size_t>(w.spec.topk);
  double far = 0, norm = 0;
  for (const std::int64_t t : rows) {
    HostRows one(type, 1, w.spec.k);
    for (std::int64_t c = 0; c < w.spec.k; ++c) one.set(0, c, x.at(t, c));
    Routing own;
    for (std::size_t s = 0; s < topk; ++s) {
      own.ids.push_back(routing.ids[static_cast<std::size_t>(t) * topk + s]);
      own.weights.push_back(routing.weights[static_cast<std::size_t>(t) * topk + s]);
    }
    const std::vector<double> exact = moe_reference(w, one, own, type);
    for (std::int64_t c = 0; c < w.spec.n; ++c) {
      const double e = exact[static_cast<std::size_t>(c)], d = out.at(t, c) - e;
      far += d * d, norm += e * e;
    }
  }
  return far == 0 ? 0 : std::sqrt(far / norm);
}

bool all_written(const HostRows& out) {
  for (std::int64_t r = 0; r < out.rows(); ++r)
    for (std::int64_t c = 0; c < out.cols(); ++c)
      if (!std::isfinite(out.at(r, c))) return false;
  return true;
}

/// The row of `a` that is furthest from `b`'s, over that row of b, or over what rows of b are on average where that is more.
double worst_row(const HostRows& a, const HostRows& b) {
  std::vector<double> far(static_cast<std::size_t>(a.rows())), norm = far;
  double all = 0, worst = 0;
  for (std::int64_t r = 0; r < a.rows(); ++r)
    for (std::int64_t c = 0; c < a.cols(); ++c) {
      const auto at = static_cast<std::size_t>(r);
      far[at] += std::pow(a.at(r, c) - b.at(r, c), 2), norm[at] += std::pow(b.at(r, c), 2),
          all += std::pow(b.at(r, c), 2);
    }
  for (std::size_t r = 0; r < far.size(); ++r)
    if (far[r] != 0) worst = std::max(worst, far[r] / std::max(norm[r], all / double(far.size())));
  return std::sqrt(worst);
}

/// A sample of tokens against fp64, and on a GPU each token against the CPU, which is quick.
void check_layer(Device device, const MoeWeights& w, const MoeExperts& experts, const MoeExperts& on_cpu, DType type,
                 const std::vector<std::int64_t>& all) {
  const MoeSpec& spec = w.spec;
  const MoeOptions options = moe_options(spec, type, all.back());
  const MoePlan plan(shared_runtime(), experts.w13, experts.w2, options);
  const MoePlan cpu(shared_runtime(), on_cpu.w13, on_cpu.w2, options);
  for (const std::int64_t tokens : all)
    for (const Kind kind : {Kind::kUniform, Kind::kZipf, Kind::kOneHot, Kind::kFew, Kind::kNobody}) {
      if (kind != Kind::kUniform && tokens > 300 && spec.experts < 16) continue;
      INFO(device.str(), " E=", spec.experts, " topk=", spec.topk, " k=", spec.k, " width=", spec.width, " n=", spec.n,
           " group=", spec.group_size, " order=", int(spec.act_order), " ", to_string(type), " tokens=", tokens,
           " routing=", int(kind), " ", tokens ? plan.tactic(tokens) : std::string("nothing"));
      const auto seed = static_cast<std::uint64_t>(tokens * 10) + static_cast<std::uint64_t>(kind);
      const HostRows x = random_rows(type, tokens, spec.k, seed, spec.k + 8);
      const Routing routing = routing_of(kind, tokens, spec, seed);
      HostRows out(type, tokens, spec.n, spec.n + 8), again(type, tokens, spec.n, spec.n + 8);
      run_moe(shared_runtime(), device, plan, x, routing, out);
      const double error = error_of(w, x, routing, out, type, sampled(tokens, seed));
      CHECK_MESSAGE(error <= moe_limit(type), "error ", error);
      CHECK(all_written(out));
      CHECK(out.padding_intact());
      run_moe(shared_runtime(), device, plan, x, routing, again);
      CHECK((out.bytes() == 0 || std::memcmp(out.data(), again.data(), out.bytes()) == 0));
      if (device.kind == BackendKind::kCpu) continue;
      run_moe(shared_runtime(), {}, cpu, x, routing, again);
      const double row = worst_row(out, again);
      CHECK_MESSAGE(row <= 4 * moe_limit(type), "a row is ", row, " from the CPU's");
    }
}

/// One grouped product by ids and by offsets: the same bits, and right.
void check_grouped(Device device, const MoeWeights& w, const MoeExperts& experts, DType type,
                   const std::vector<std::int64_t>& all) {
  GroupedOptions options;
  options.dtype = type, options.max_rows = all.back();
  const GroupedPlan plan(shared_runtime(), experts.w2, options);
  auto backend = shared_runtime().impl().open(device);
  for (const std::int64_t rows : all) {
    INFO(device.str(), " grouped, E=", w.spec.experts, " k=", w.spec.width, " n=", w.spec.n, " ", to_string(type),
         " rows=", rows);
    const HostRows x = random_rows(type, rows, w.spec.width, 3 + static_cast<std::uint64_t>(rows));
    Random random(static_cast<std::uint64_t>(rows) + 5);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(rows));
    std::vector<std::int32_t> offsets(static_cast<std::size_t>(w.spec.experts) + 1);
    for (auto& id : ids) id = static_cast<std::int32_t>(random.below(w.spec.experts + 2)) - 1;
    std::ranges::sort(ids);  // -1, the experts, one that is none
    for (std::size_t e = 0; e < offsets.size(); ++e)
      offsets[e] = static_cast<std::int32_t>(std::ranges::lower_bound(ids, std::int32_t(e)) - ids.begin());
    HostRows by_id(type, rows, w.spec.n), sorted(type, rows, w.spec.n);
    const Uploaded dx(backend, x.data(), x.bytes()), dids(backend, ids.data(), ids.size() * 4);
    const Uploaded doffsets(backend, offsets.data(), offsets.size() * 4);
    const Uploaded done(backend, by_id.data(), by_id.bytes()), dtwo(backend, sorted.data(), sorted.bytes());
    plan.run({}, {dx.get()}, static_cast<const std::int32_t*>(dids.get()), {done.get()}, rows);
    plan.run_sorted({}, {dx.get()}, static_cast<const std::int32_t*>(doffsets.get()), {dtwo.get()}, rows);
    backend->synchronize();
    if (rows == 0) continue;
    backend->copy(by_id.data(), done.get(), by_id.bytes(), CopyKind::kToHost);
    backend->copy(sorted.data(), dtwo.get(), sorted.bytes(), CopyKind::kToHost);
    CHECK(std::memcmp(by_id.data(), sorted.data(), sorted.bytes()) == 0);
    double far = 0, norm = 1e-30;
    for (const std::int64_t r : sampled(rows, 1)) {
      const std::int32_t id = ids[static_cast<std::size_t>(r)];
      const auto e = static_cast<std::size_t>(id);
      std::vector<double> exact(static_cast<std::size_t>(w.spec.n));
      if (id >= 0 && id < w.spec.experts) exact = expert_product(row_of(x, r), w.dense2[e], w.w2[e]);
      for (std::int64_t c = 0; c < w.spec.n; ++c) {
        const double d = by_id.at(r, c) - exact[static_cast<std::size_t>(c)];
        far += d * d, norm += exact[static_cast<std::size_t>(c)] * exact[static_cast<std::size_t>(c)];
      }
    }
    CHECK(std::sqrt(far / norm) <= moe_limit(type));
  }
}

void check_routings(MoeSpec spec, const std::vector<std::int64_t>& tokens) {
  const MoeWeights w(spec);
  const MoeExperts on_cpu(shared_runtime(), {}, w);
  for (const Device device : moe_devices()) {
    const MoeExperts experts(shared_runtime(), device, w);
    for (const DType type : {DType::kF16, DType::kBF16}) {
      check_layer(device, w, experts, on_cpu, type, tokens);
      check_grouped(device, w, experts, type, tokens);
    }
  }
}

constexpr auto kPermuted = ActOrder::kPermuted;

TEST_CASE("moe routings: few experts and many tokens") {
  check_routings({.experts = 8, .topk = 2, .k = 512, .width = 256, .n = 512, .group_size = 128},
                 {0, 1, 2, 3, 8, 17, 64, 130, 300, 1000});
  check_routings({.experts = 8, .topk = 2, .k = 256, .width = 128, .n = 256, .act_order = kPermuted, .seed = 2},
                 {0, 1, 5, 16, 33, 100, 700});
}

TEST_CASE("moe routings: up to 384 experts and 4096 tokens") {
  MoeSpec spec{.experts = 128, .topk = 8, .k = 128, .width = 64, .n = 128, .group_size = 64};
  check_routings(spec, {0, 1, 4, 16, 64, 257, 1024, 4096});
  spec.experts = 384, spec.group_size = 32, spec.act_order = kPermuted, spec.zeros = ZeroFormat::kV2, spec.seed = 4;
  check_routings(spec, {0, 1, 3, 17, 200, 4096});
}

TEST_CASE("moe routings: one to eight slots, odd shapes, groups of 32 and both formats of zeros") {
  for (std::int64_t topk = 1; topk <= 8; ++topk) {
    MoeSpec spec{.experts = 9 + topk, .topk = topk, .k = 256, .width = 72, .n = 200, .group_size = 32};
    spec.zeros = topk % 2 ? ZeroFormat::kV1 : ZeroFormat::kV2, spec.bias = topk % 3 == 0;
    spec.act_order = topk % 4 == 3 ? kPermuted : ActOrder::kNone, spec.seed = static_cast<std::uint64_t>(topk);
    if (topk % 4 == 3) spec.width = 64;
    check_routings(spec, {0, 1, 7, 40, 333});
  }
  check_routings({.experts = 1, .topk = 1, .k = 128, .width = 64, .n = 64}, {0, 1, 15, 65, 2048});
}

}  // namespace
}  // namespace q4::test
