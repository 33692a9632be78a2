// Sorts rows by expert, runs one or two grouped products, and adds each token's slots in order.
#include "runtime/backends/cpu/moe_plan.hpp"

#include <algorithm>
#include <cstring>

#include "runtime/backends/cpu/plan.hpp"
#include "runtime/base/check.hpp"

namespace q4::cpu {
namespace {

constexpr std::size_t kAlign = 256;
constexpr const char* kUsual = "cpu-experts";               // each expert's rows take the path that suits so many
constexpr std::int64_t kPassTokens = 2048;                  // of one pass over the experts, at most
constexpr std::size_t kPassBytes = std::size_t(256) << 20;  // of its workspace, unless one token needs more
constexpr std::int64_t kSumColumns = 512;                   // of one task of the last sum

std::size_t size_of(Element element) { return element == Element::kF32 ? 4 : 2; }

/// Gives out the workspace piece by piece.
class Layout {
 public:
  std::size_t add(std::size_t bytes) {
    const std::size_t at = end_;
    end_ += round_up(bytes, kAlign);
    return at;
  }
  std::size_t end() const { return end_; }

 private:
  std::size_t end_ = 0;
};

template <class T>
T* at(std::byte* workspace, std::size_t place) {
  return reinterpret_cast<T*>(workspace + place);
}

/// The options that both plans share, and their names of tactics.
class Common {
 public:
  Common(const ExpertsPlanOptions& options, const PlanParts& parts)
      : kernels_(parts.kernels), pool_(parts.pool), element_(element_of(options.dtype)) {
    pool_.ready();
  }

 protected:
  /// The path that a tactic forces on every product; none for the usual one. Throws for others.
  static std::optional<Path> forced(const std::string& tactic, const PathRules& rules, const char* call) {
    if (tactic.empty() || tactic == kUsual) return std::nullopt;
    for (const Path path : paths(rules))
      if (tactic == to_string(path)) return path;
    std::string names;
    for (const std::string& name : names_of(rules)) names += (names.empty() ? "" : ", ") + name;
    fail(ErrorCode::kInvalidArgument,
         "{}: tactic \"{}\" is not available on this CPU for these experts; use one of: {}", call, tactic, names);
  }
  static std::vector<Path> paths(const PathRules& rules) {
    std::vector<Path> list;
    for (const Path path : kPaths)
      if (path != Path::kBlas && rules.valid(path)) list.push_back(path);
    return list;
  }
  static std::vector<std::string> names_of(const PathRules& rules) {
    std::vector<std::string> names = {kUsual};
    for (const Path path : paths(rules)) names.emplace_back(to_string(path));
    return names;
  }
  static std::vector<std::string> first(std::string name, std::vector<std::string> names) {
    std::stable_partition(names.begin(), names.end(), [&](const std::string& other) { return other == name; });
    return names;
  }

  Kernels kernels_;
  ThreadPool& pool_;
  Element element_;
  Buffer own_workspace_;
};

/// From the expert of each row (-1: none) to begin [experts + 1] and the rows in order, rows of one expert ascending.
void sort_rows(const std::int32_t* expert, std::int64_t rows, std::int64_t experts, std::int32_t* begin,
               std::int32_t* row) {
  std::fill_n(begin, experts + 1, 0);
  for (std::int64_t r = 0; r < rows; ++r)
    if (expert[r] >= 0) ++begin[expert[r] + 1];
  for (std::int64_t e = 0; e < experts; ++e) begin[e + 1] += begin[e];
  for (std::int64_t r = 0; r < rows; ++r)
    if (expert[r] >= 0) row[begin[expert[r]]++] = std::int32_t(r);
  std::copy_backward(begin, begin + experts, begin + experts + 1);  // each begin had become the next one's
  begin[0] = 0;
}

class CpuMoePlan final : public MoePlanBackend, Common {
 public:
  CpuMoePlan(std::shared_ptr<const CpuExperts> w13, std::shared_ptr<const CpuExperts> w2, const MoeOptions& options,
             const PlanParts& parts)
      : Common(options, parts),
        tactic_(options.tactic.empty() ? kUsual : options.tactic),
        experts_(w13->shape().experts),
        topk_(options.topk),
        map_(options.expert_map),
        first_(w13, kernels_, pool_, element_, {options.activation, options.alpha, options.limit},
               options.batch_invariant, forced(options.tactic, both(*w13, *w2), "MoePlan")),
        second_(w2, kernels_, pool_, element_, {}, options.batch_invariant,
                forced(options.tactic, both(*w13, *w2), "MoePlan")),
        names_(names_of(both(*w13, *w2))) {
    pass_tokens_ = std::min(options.max_tokens, kPassTokens);
    while (pass_tokens_ > 1 && places(pass_tokens_).end > kPassBytes) pass_tokens_ = (pass_tokens_ + 1) / 2;
    if (options.own_workspace) own_workspace_ = touched_buffer(parts.ledger, places(pass_tokens_).end, pool_);
  }

  void run(const MoeCall& call) const override {
    auto* workspace = call.workspace ? static_cast<std::byte*>(call.workspace) : own_workspace_.as<std::byte>();
    for (std::int64_t token = 0; token < call.tokens; token += pass_tokens_)
      run_pass(call, token, std::min(pass_tokens_, call.tokens - token), workspace);
  }
  std::size_t workspace_bytes() const override { return places(pass_tokens_).end; }
  std::string tactic(std::int64_t) const override { return tactic_; }
  std::vector<std::string> tactics(std::int64_t) const override { return first(tactic_, names_); }

 private:
  struct Places {
    std::size_t begin, expert, slot, x_row, hidden, products, product, end;
  };

  /// What both matrices allow.
  PathRules both(const CpuExperts& w13, const CpuExperts& w2) const {
    return {&kernels_, element_, std::min(w13.matrix(0).segment, w2.matrix(0).segment), false, false};
  }

  Places places(std::int64_t tokens) const {
    const auto slots = std::size_t(tokens * topk_);
    Layout layout;
    Places to{};
    to.begin = layout.add(std::size_t(experts_ + 1) * sizeof(std::int32_t));
    to.expert = layout.add(slots * sizeof(std::int32_t));
    to.slot = layout.add(slots * sizeof(std::int32_t));
    to.x_row = layout.add(slots * sizeof(std::int32_t));
    to.hidden = layout.add(slots * std::size_t(first_.columns()) * size_of(element_));
    to.products = layout.add(slots * std::size_t(second_.columns()) * sizeof(float));
    to.product =
        layout.add(std::max(first_.workspace_bytes(std::int64_t(slots)), second_.workspace_bytes(std::int64_t(slots))));
    to.end = layout.end();
    return to;
  }

  std::int32_t place_of(std::int32_t id) const {
    if (id < 0) return -1;
    if (!map_.empty()) return id < std::int64_t(map_.size()) ? map_[std::size_t(id)] : -1;
    return id < experts_ ? id : -1;
  }

  void run_pass(const MoeCall& call, std::int64_t token, std::int64_t tokens, std::byte* workspace) const {
    const Places to = places(tokens);
    const std::int64_t slots = tokens * topk_;
    auto* const begin = at<std::int32_t>(workspace, to.begin);
    auto* const expert = at<std::int32_t>(workspace, to.expert);
    auto* const slot = at<std::int32_t>(workspace, to.slot);
    auto* const x_row = at<std::int32_t>(workspace, to.x_row);
    const std::int32_t* ids = call.ids + token * topk_;
    for (std::int64_t s = 0; s < slots; ++s) expert[s] = place_of(ids[s]);
    sort_rows(expert, slots, experts_, begin, slot);
    for (std::int64_t p = 0; p < begin[experts_]; ++p) x_row[p] = std::int32_t(slot[p] / topk_);
    const auto size = std::int64_t(size_of(element_));
    const auto* x = static_cast<const std::byte*>(call.x) + token * call.x_stride * size;
    const SortedRows rows{begin, tokens == 1};
    const PlacedRows hidden{workspace + to.hidden, first_.columns(), element_, nullptr};
    const PlacedRows products{workspace + to.products, second_.columns(), Element::kF32, slot};
    first_.run(rows, {const_cast<std::byte*>(x), call.x_stride, element_, x_row}, hidden, workspace + to.product);
    second_.run({begin}, hidden, products, workspace + to.product);
    auto* out = static_cast<std::byte*>(call.out) + token * call.out_stride * size;
    add_slots(tokens, expert, call.weights + token * topk_, at<const float>(workspace, to.products), out,
              call.out_stride);
  }

  /// out = the sum over slots in order, of those that have an expert.
  void add_slots(std::int64_t tokens, const std::int32_t* expert, const float* weights, const float* products,
                 std::byte* out, std::int64_t out_stride) const {
    const std::int64_t columns = second_.columns(), pieces = (columns + kSumColumns - 1) / kSumColumns;
    const auto add = [&](std::int64_t task, int) {
      const std::int64_t token = task / pieces, from = task % pieces * kSumColumns;
      const std::int64_t end = std::min(columns, from + kSumColumns);
      for (std::int64_t column = from; column < end; column += kTile) {
        float sum[kTile] = {};
        const int count = int(std::min<std::int64_t>(kTile, end - column));
        for (std::int64_t slot = token * topk_; slot < (token + 1) * topk_; ++slot) {
          if (expert[slot] < 0) continue;
          const float weight = weights[slot], *product = products + slot * columns + column;
          for (int i = 0; i < count; ++i) sum[i] += weight * product[i];
        }
        kernels_.store({sum, kTile, 1, count, nullptr,
                        out + (token * out_stride + column) * std::int64_t(size_of(element_)), out_stride, element_});
      }
    };
    constexpr std::int64_t kAlone = 1 << 14;  // additions that are done sooner than threads wake up
    if (tokens * topk_ * columns > kAlone) return pool_.run(tokens * pieces, add);
    for (std::int64_t task = 0; task < tokens * pieces; ++task) add(task, 0);
  }

  std::string tactic_;
  std::int64_t experts_, topk_, pass_tokens_ = 1;
  std::vector<std::int32_t> map_;
  GroupedProduct first_, second_;
  std::vector<std::string> names_;
};

class CpuGroupedPlan final : public GroupedPlanBackend, Common {
 public:
  CpuGroupedPlan(std::shared_ptr<const CpuExperts> experts, const GroupedOptions& options, const PlanParts& parts)
      : Common(options, parts),
        tactic_(options.tactic.empty() ? kUsual : options.tactic),
        experts_(experts->shape().experts),
        product_(
            experts, kernels_, pool_, element_, {options.activation, options.alpha, options.limit},
            options.batch_invariant,
            forced(options.tactic, {&kernels_, element_, experts->matrix(0).segment, false, false}, "GroupedPlan")),
        names_(names_of(product_.rules())) {
    pass_rows_ = std::min(options.max_rows, kPassTokens);
    while (pass_rows_ > 1 && places(pass_rows_).end > kPassBytes) pass_rows_ = (pass_rows_ + 1) / 2;
    if (options.own_workspace) own_workspace_ = touched_buffer(parts.ledger, places(pass_rows_).end, pool_);
  }

  void run(const GroupedCall& call) const override {
    auto* workspace = call.workspace ? static_cast<std::byte*>(call.workspace) : own_workspace_.as<std::byte>();
    for (std::int64_t row = 0; row < call.rows; row += pass_rows_)
      run_pass(call, row, std::min(pass_rows_, call.rows - row), workspace);
  }
  std::size_t workspace_bytes() const override { return places(pass_rows_).end; }
  std::string tactic(std::int64_t) const override { return tactic_; }
  std::vector<std::string> tactics(std::int64_t) const override { return first(tactic_, names_); }

 private:
  struct Places {
    std::size_t begin, expert, row, product, end;
  };
  Places places(std::int64_t rows) const {
    Layout layout;
    Places to{};
    to.begin = layout.add(std::size_t(experts_ + 1) * sizeof(std::int32_t));
    to.expert = layout.add(std::size_t(rows) * sizeof(std::int32_t));
    to.row = layout.add(std::size_t(rows) * sizeof(std::int32_t));
    to.product = layout.add(product_.workspace_bytes(rows));
    to.end = layout.end();
    return to;
  }

  /// The expert of each row, -1 where there is none.
  void find_experts(const GroupedCall& call, std::int64_t first_row, std::int64_t rows, std::int32_t* expert) const {
    if (call.ids) {
      for (std::int64_t r = 0; r < rows; ++r) {
        const std::int32_t id = call.ids[first_row + r];
        expert[r] = id >= 0 && id < experts_ ? id : -1;
      }
      return;
    }
    std::fill_n(expert, rows, -1);
    for (std::int64_t e = 0; e < experts_; ++e) {
      const std::int64_t from = std::max<std::int64_t>(call.offsets[e] - first_row, 0);
      const std::int64_t to = std::min<std::int64_t>(call.offsets[e + 1] - first_row, rows);
      for (std::int64_t r = from; r < to; ++r) expert[r] = std::int32_t(e);
    }
  }

  void run_pass(const GroupedCall& call, std::int64_t first_row, std::int64_t rows, std::byte* workspace) const {
    const Places to = places(rows);
    auto* const begin = at<std::int32_t>(workspace, to.begin);
    auto* const expert = at<std::int32_t>(workspace, to.expert);
    auto* const row = at<std::int32_t>(workspace, to.row);
    find_experts(call, first_row, rows, expert);
    sort_rows(expert, rows, experts_, begin, row);
    const auto size = std::int64_t(size_of(element_));
    const auto* x = static_cast<const std::byte*>(call.x) + first_row * call.x_stride * size;
    auto* out = static_cast<std::byte*>(call.out) + first_row * call.out_stride * size;
    for (std::int64_t r = 0; r < rows; ++r)
      if (expert[r] < 0) std::memset(out + r * call.out_stride * size, 0, std::size_t(product_.columns() * size));
    product_.run({begin}, {const_cast<std::byte*>(x), call.x_stride, element_, row},
                 {out, call.out_stride, element_, row}, workspace + to.product);
  }

  std::string tactic_;
  std::int64_t experts_, pass_rows_ = 1;
  GroupedProduct product_;
  std::vector<std::string> names_;
};

}  // namespace

std::unique_ptr<MoePlanBackend> plan_moe(std::shared_ptr<const CpuExperts> w13, std::shared_ptr<const CpuExperts> w2,
                                         const MoeOptions& options, const PlanParts& parts) {
  return std::make_unique<CpuMoePlan>(std::move(w13), std::move(w2), options, parts);
}

std::unique_ptr<GroupedPlanBackend> plan_grouped(std::shared_ptr<const CpuExperts> experts,
                                                 const GroupedOptions& options, const PlanParts& parts) {
  return std::make_unique<CpuGroupedPlan>(std::move(experts), options, parts);
}

}  // namespace q4::cpu
