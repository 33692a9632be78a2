// Makes a row of the table of kernels from a kernel's Config and its policy.
#pragma once

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/grouped.h"
#include "runtime/choose/kernel.hpp"

namespace q4::choose {

namespace row_detail {

template <class C>
C make_config(const Problem& problem, const Values& values) {
  C config{};
  config.p = problem;
  config.fields([&](const char* name, int& value, auto...) {
    for (const auto& [given, v] : values)
      if (given == name) value = v;
  });
  return config;
}

template <class C>
Values values_of(C config) {
  Values values;
  config.fields([&](const char* name, int& value, auto...) { values.emplace_back(name, value); });
  return values;
}

/// The functions of a Config divide by its tunables and multiply them: zero is allowed where it is one of the values
/// worth trying, no tunable is negative, and none is beyond what a block has of anything.
constexpr int kMostTunable = 4096;
template <class C>
bool in_range(C config) {
  bool good = true;
  config.fields([&](const char*, int& value, auto... candidates) {
    const bool zero = value == 0 && ((candidates == 0) || ...);
    good = good && (value > 0 || zero) && value <= kMostTunable;
  });
  return good;
}

/// Some Configs serve every m, and some size their grid and workspace to the device.
template <class C>
bool serves_rows(const C& config, i64 m) {
  if constexpr (requires { serves(config, m); })
    return serves(config, m);
  else
    return m >= 1;
}
template <class C>
i64 blocks(const C& config, i64 m, const Limits& limits) {
  if constexpr (requires { grid(config, m, limits); })
    return grid(config, m, limits);
  else
    return grid(config, m);
}
template <class C>
i64 workspace(const C& config, i64 m, const Limits& limits) {
  if constexpr (requires { workspace_bytes(config, m, limits); })
    return workspace_bytes(config, m, limits);
  else if constexpr (requires { workspace_bytes(config, m); })
    return workspace_bytes(config, m);
  else
    return 0;
}
// The functions of a Config are found by its namespace, which members of the same names would hide.
template <class C>
int threads_of(const C& config) {
  return threads(config);
}
template <class C>
int shared_bytes_of(const C& config) {
  return shared_bytes(config);
}
// In functions of their own: g++ 13 takes no `requires` on a local inside a lambda.
template <class C>
int cluster_of(const C& config) {
  if constexpr (requires { cluster(config); })
    return cluster(config);
  else
    return 1;
}
template <class C>
int tile_rows_of(const C& config) {
  if constexpr (requires { tile_rows(config); })
    return tile_rows(config);
  else
    return 0;
}
template <class C>
BoundKernel::LoraWithin lora_within_of(const C& config, const LoraLoad& load, const Limits& limits) {
  if constexpr (requires { lora_blocks(config, load, limits); }) {
    const int count = lora_blocks(config, load, limits);
    BoundKernel::LoraWithin within{count, count ? lora_grid(config, load, limits) : 0, lora_bytes(config, load)};
    if constexpr (requires { lora_first(config, load, count); }) within.first = lora_first(config, load, count);
    return within;
  } else {
    return {};
  }
}
template <class C>
const char* arguments_of(const C& config, const char* plain) {
  if constexpr (requires { config.p.grouped; })
    if (config.p.grouped) return is_routed(config.p) ? "RoutedArgs" : "GroupedArgs";
  return plain;
}
template <class C>
int resident_blocks(const C& config) {
  if constexpr (requires { blocks_per_unit(config); })
    return blocks_per_unit(config);
  else
    return 1;
}

/// Spaces of up to this many Configs are walked whole; of a larger one, the neighbours of the default: it, and each
/// Config that differs from it in one tunable or in two.
constexpr std::size_t kWholeSpace = 256;

template <class C>
std::vector<Values> walk_space(const C& base, i64 m, const Limits& limits) {
  C config = base;
  std::vector<std::vector<int>> choices;
  std::vector<int> start;
  std::size_t whole = 1;
  config.fields([&](const char*, int& value, auto... candidates) {
    choices.push_back({static_cast<int>(candidates)...});
    start.push_back(value);
    whole *= std::max<std::size_t>(1, choices.back().size());
  });
  std::vector<Values> found;
  std::vector<int> now = start;
  const auto consider = [&] {
    std::size_t field = 0;
    config.fields([&](const char*, int& value, auto...) { value = now[field++]; });
    if (!valid(config, limits) || !serves_rows(config, m)) return;
    auto values = values_of(config);
    if (std::find(found.begin(), found.end(), values) == found.end()) found.push_back(std::move(values));
  };
  consider();
  const auto walk = [&](auto&& self, std::size_t field, std::size_t changes) -> void {
    if (field == choices.size()) return consider();
    self(self, field + 1, changes);
    if (changes == 0) return;
    for (const int candidate : choices[field]) {
      if (candidate == start[field]) continue;
      now[field] = candidate;
      self(self, field + 1, changes - 1);
    }
    now[field] = start[field];
  };
  walk(walk, 0, whole <= kWholeSpace ? choices.size() : 2);
  return found;
}

template <class P>
constexpr bool kTensorMaps = requires(typename P::Config c, i64 m) {
  P::boxes(c, m);
};

}  // namespace row_detail

/// `P` is a kernel's policy: its Config, the names in the generated source, and the choices of its host.
template <class P>
class BoundConfig : public BoundKernel {
 public:
  using C = typename P::Config;
  BoundConfig(const C& config, const Limits& limits) : config_(config), limits_(limits) {}

  int threads() const override { return row_detail::threads_of(config_); }
  int shared_bytes() const override { return row_detail::shared_bytes_of(config_); }
  int cluster() const override { return row_detail::cluster_of(config_); }
  bool serves(std::int64_t m) const override { return row_detail::serves_rows(config_, m); }
  std::int64_t grid(std::int64_t m) const override { return row_detail::blocks(config_, m, limits_); }
  std::int64_t workspace_bytes(std::int64_t m) const override { return row_detail::workspace(config_, m, limits_); }
  TensorBoxes boxes(std::int64_t m) const override {
    if constexpr (row_detail::kTensorMaps<P>)
      return P::boxes(config_, m);
    else
      return {};
  }
  int tile_rows() const override { return row_detail::tile_rows_of(config_); }
  LoraWithin lora_within(const LoraLoad& load) const override {
    return row_detail::lora_within_of(config_, load, limits_);
  }
  jit::Source source() const override {
    std::vector<std::string> parameters = {row_detail::arguments_of(config_, P::arguments)};
    if constexpr (row_detail::kTensorMaps<P>) parameters.insert(parameters.end(), 2, "TensorMap");
    return jit::generate(P::name, P::header, P::type, jit::initializer(config_), parameters, threads(),
                         row_detail::resident_blocks(config_));
  }

 private:
  const C config_;
  const Limits limits_;
};

template <class P>
class Row : public Kernel {
 public:
  using C = typename P::Config;
  static constexpr bool kNormalizes = requires { P::normalizes; };
  Row()
      : Kernel(
            P::name, row_detail::kTensorMaps<P>, requires { P::overlaps; }) {}

  const char* header() const override { return P::header; }
  Values fields() const override { return row_detail::values_of(C{}); }
  std::shared_ptr<const BoundKernel> bind(const Problem& problem, const Values& values,
                                          const Limits& limits) const override {
    const C config = row_detail::make_config<C>(problem, values);
    if (!row_detail::in_range(config) || !valid(config, limits)) return nullptr;
    if (problem.grouped && !row_detail::tile_rows_of(config)) return nullptr;
    if (problem.norm && !kNormalizes) return nullptr;
    return std::make_shared<const BoundConfig<P>>(config, limits);
  }
  std::optional<Values> defaults(const Problem& problem, std::int64_t m, const Limits& limits) const override {
    if (problem.norm && !kNormalizes) return std::nullopt;
    const std::optional<C> config = P::defaults(problem, m, limits);
    if (!config || !valid(*config, limits) || !row_detail::serves_rows(*config, m)) return std::nullopt;
    return row_detail::values_of(*config);
  }
  std::optional<Values> invariant(const Problem& problem, const Limits& limits) const override {
    if (problem.norm && !kNormalizes) return std::nullopt;
    if constexpr (requires { P::invariant(problem, limits); }) {
      const C config = P::invariant(problem, limits);
      if (valid(config, limits)) return row_detail::values_of(config);
    }
    return std::nullopt;
  }
  std::vector<Values> space(const Problem& problem, std::int64_t m, const Limits& limits) const override {
    if constexpr (requires { P::searched(limits); })
      if (!P::searched(limits)) return {};
    const std::optional<C> base = P::defaults(problem, m, limits);
    C config = base ? *base : C{};
    config.p = problem;
    return row_detail::walk_space(config, m, limits);
  }
  bool gathers(const Problem& problem, std::int64_t m, const Limits& limits) const override {
    if constexpr (requires { P::gathers(problem, m, limits); })
      return P::gathers(problem, m, limits);
    else
      return false;
  }
  bool copies(const Problem& problem, std::int64_t m) const override {
    if constexpr (requires { P::copies(problem, m); })
      return P::copies(problem, m);
    else
      return false;
  }
};

}  // namespace q4::choose
