// The rows, and what turns a Config type into one.
#include "runtime/jit/kernel_table.hpp"

#include <algorithm>
#include <charconv>

#include "kernels/batch_config.h"
#include "kernels/decode_default.h"
#include "kernels/gemv.h"
#include "kernels/pack.h"
#include "kernels/prefill_config.h"
#include "kernels/read.h"
#include "kernels/reconstruct.h"
#include "kernels/remap.h"
#include "kernels/tile.h"
#include "runtime/base/check.hpp"

namespace q4::jit {
namespace {

/// What a row needs besides the Config: its default, and the names in the generated source.
template <class C>
struct Traits;

template <>
struct Traits<GemvConfig> {
  static constexpr const char *name = "gemv", *header = "gemv.h", *type = "GemvConfig";
  static std::optional<GemvConfig> defaults(const Problem& p, i64 m, const Limits& limits) {
    return gemv_default(p, m, limits);
  }
  /// fp32: a half2 lane that overflows would repeat its neighbours' rows too.
  static GemvConfig invariant(const Problem& p, const Limits&) {
    return {.p = p, .half2 = 0, .rows = 4, .tiles = 2, .warps = 8};
  }
  /// From memory, in every block: worth it for one short row (8192 lost on an H200).
  static bool gathers(const Problem& p, i64 m, const Limits&) { return m == 1 && p.k <= 6144; }
};

template <>
struct Traits<DecodeConfig> {
  static constexpr const char *name = "decode", *header = "decode.h", *type = "DecodeConfig";
  static std::optional<DecodeConfig> defaults(const Problem& p, i64 m, const Limits& limits) {
    // From nine rows on Hopper's wgmma is faster (kernels/README.md).
    if (m > (limits.arch == 90 ? 8 : 16)) return std::nullopt;
    return decode_default(p, static_cast<int>(m), limits);
  }
  static bool serves(const DecodeConfig& c, i64 m) { return q4::serves(c, m); }
  static bool gathers(const Problem& p, i64 m, const Limits& limits) { return decode_gathers(p, m, limits); }
  static constexpr bool overlaps = true;
};

template <>
struct Traits<PrefillConfig> {
  static constexpr const char *name = "prefill", *header = "prefill.h", *type = "PrefillConfig";
  static std::optional<PrefillConfig> defaults(const Problem& p, i64 m, const Limits& limits) {
    return prefill_default(p, static_cast<int>(m), limits);
  }
  static PrefillConfig invariant(const Problem& p, const Limits& limits) {
    return prefill_default(p, 64, limits, true);
  }
  static TensorBoxes boxes(const PrefillConfig& c, i64 m) { return {x_box_rows(c, m), c.rows, kStripColumns}; }
  static constexpr bool overlaps = true;  // x comes after the wait, and all that is written after x
  /// Tensor copies of rows that straddle lines ask the L2 for twice as many. Few rows cost less than the copy, and
  /// behind several waves of tiles it hides (H200: worth 7 to 40% from m = 32 to 256 at n = 8192 and to 512 at 4096).
  static bool copies(const Problem& p, i64 m) { return m > 16 && m * p.n <= 1 << 21; }
};

template <>
struct Traits<TileConfig> {
  static constexpr const char *name = "tile", *header = "tile.h", *type = "TileConfig";
  static std::optional<TileConfig> defaults(const Problem& p, i64 m, const Limits& limits) {
    if (m < 16) return std::nullopt;
    return tile_default(p, m, limits);
  }
  static TileConfig invariant(const Problem& p, const Limits&) { return {.p = p, .half2 = !p.bf16, .rows = 64}; }
};

template <>
struct Traits<BatchConfig> {
  static constexpr const char *name = "batch", *header = "batch.h", *type = "BatchConfig";
  static std::optional<BatchConfig> defaults(const Problem& p, i64 m, const Limits& limits) {
    return batch_default(p, m, limits);
  }
  static BatchConfig invariant(const Problem& p, const Limits& limits) { return batch_default(p, 64, limits, true); }
  static bool serves(const BatchConfig& c, i64 m) { return q4::serves(c, m); }
  /// Hopper's wgmma does the same work faster: not worth the tuner's time there.
  static bool searched(const Limits& limits) { return limits.arch != 90; }
  static constexpr bool overlaps = true;
};

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

template <class C>
bool serves(const C& config, i64 m) {
  if constexpr (requires { Traits<C>::serves(config, m); })
    return Traits<C>::serves(config, m);
  else
    return m >= 1;
}

/// Some kernels size their grid and workspace to the device.
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

// In functions of their own: g++ 13 takes no `requires` on a local inside a lambda.
template <class C>
int cluster_of(const C& config) {
  if constexpr (requires { cluster(config); })
    return cluster(config);
  else
    return 1;
}
template <class C>
int resident_blocks(const C& config) {
  if constexpr (requires { blocks_per_unit(config); })
    return blocks_per_unit(config);
  else
    return 1;
}

/// Spaces of up to this many configs are walked whole; of a larger one, the neighbours of the default: it, and each
/// config that differs from it in one tunable or in two.
constexpr std::size_t kWholeSpace = 256;

template <class C>
std::vector<Values> space(const Problem& problem, i64 m, const Limits& limits) {
  if constexpr (requires { Traits<C>::searched(limits); })
    if (!Traits<C>::searched(limits)) return {};
  const auto base = Traits<C>::defaults(problem, m, limits);
  C config = base ? *base : C{};
  config.p = problem;
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
    if (!valid(config, limits) || !serves(config, m)) return;
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

template <class C>
constexpr bool kTensorMaps = requires(C c, i64 m) {
  Traits<C>::boxes(c, m);
};

template <class C>
MatmulKernel row() {
  using T = Traits<C>;
  MatmulKernel kernel{};
  kernel.name = T::name;
  kernel.tensor_maps = kTensorMaps<C>;
  kernel.overlaps = requires { T::overlaps; };
  kernel.fields = [] { return values_of(C{}); };
  kernel.defaults = [](const Problem& p, std::int64_t m, const Limits& limits) -> std::optional<Values> {
    const auto config = T::defaults(p, m, limits);
    if (!config || !valid(*config, limits) || !serves(*config, m)) return std::nullopt;
    return values_of(*config);
  };
  kernel.invariant = [](const Problem& p, const Limits& limits) -> std::optional<Values> {
    if constexpr (requires { T::invariant(p, limits); }) {
      const C config = T::invariant(p, limits);
      if (valid(config, limits)) return values_of(config);
    }
    return std::nullopt;
  };
  kernel.space = [](const Problem& p, std::int64_t m, const Limits& limits) { return space<C>(p, m, limits); };
  kernel.gathers = [](const Problem& p, std::int64_t m, const Limits& limits) {
    if constexpr (requires { T::gathers(p, m, limits); })
      return T::gathers(p, m, limits);
    else
      return false;
  };
  kernel.copies = [](const Problem& p, std::int64_t m) {
    if constexpr (requires { T::copies(p, m); })
      return T::copies(p, m);
    else
      return false;
  };
  kernel.valid = [](const Problem& p, const Values& v, const Limits& limits) {
    return valid(make_config<C>(p, v), limits);
  };
  kernel.serves = [](const Problem& p, const Values& v, std::int64_t m) { return serves(make_config<C>(p, v), m); };
  kernel.grid = [](const Problem& p, const Values& v,
                   const Limits& limits) -> std::function<std::int64_t(std::int64_t)> {
    return
        [config = make_config<C>(p, v), limits](std::int64_t m) -> std::int64_t { return blocks(config, m, limits); };
  };
  kernel.shape = [](const Problem& p, const Values& v, std::int64_t m, const Limits& limits) {
    const C config = make_config<C>(p, v);
    return KernelShape{threads(config), shared_bytes(config), cluster_of(config), workspace(config, m, limits)};
  };
  kernel.source = [](const Problem& p, const Values& v) {
    const C config = make_config<C>(p, v);
    std::vector<std::string> parameters = {"MatmulArgs"};
    if constexpr (kTensorMaps<C>) parameters.insert(parameters.end(), 2, "TensorMap");
    return generate(T::name, T::header, T::type, initializer(config), parameters, threads(config),
                    resident_blocks(config));
  };
  kernel.boxes = [](const Problem& p, const Values& v) -> std::function<TensorBoxes(std::int64_t)> {
    if constexpr (kTensorMaps<C>)
      return [config = make_config<C>(p, v)](std::int64_t m) { return T::boxes(config, m); };
    else
      return {};
  };
  return kernel;
}

}  // namespace

const std::vector<MatmulKernel>& matmul_kernels() {
  static const std::vector<MatmulKernel> kernels = {row<DecodeConfig>(), row<PrefillConfig>(), row<BatchConfig>(),
                                                    row<TileConfig>(), row<GemvConfig>()};
  return kernels;
}

const MatmulKernel* find_matmul_kernel(std::string_view name) {
  for (const auto& kernel : matmul_kernels())
    if (name == kernel.name) return &kernel;
  return nullptr;
}

Values parse_values(const MatmulKernel& kernel, std::string_view text) {
  Values values = kernel.fields();
  while (!text.empty()) {
    const auto end = std::min(text.find(' '), text.size());
    const auto item = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (item.empty()) continue;
    const auto equals = item.find('=');
    int number = 0;
    const bool parsed =
        equals != item.npos &&
        std::from_chars(item.data() + equals + 1, item.data() + item.size(), number).ptr == item.data() + item.size();
    const auto field =
        std::find_if(values.begin(), values.end(), [&](const auto& v) { return v.first == item.substr(0, equals); });
    check(parsed && field != values.end(), "tactic: '{}' is no field=value of kernel {}; its fields: {}", item,
          kernel.name, to_text(values));
    field->second = number;
  }
  return values;
}

Source pack_source(bool awq) {
  return generate("pack", "pack.h", "PackConfig", initializer(PackConfig{awq}), {"PackArgs"}, pack_threads(), 1);
}
Source read_source(int threads, int loads) {
  return generate("read", "read.h", "ReadConfig", initializer(ReadConfig{threads, loads}), {"ReadArgs"}, threads, 1);
}
Source remap_source(bool staged) {
  const RemapConfig config{remap_threads(staged), staged};
  return generate("remap", "remap.h", "RemapConfig", initializer(config), {"RemapArgs"}, config.threads, 2);
}
Source reconstruct_source(const Problem& problem) {
  const ReconstructConfig config{problem};
  return generate("reconstruct", "reconstruct.h", "ReconstructConfig", initializer(config), {"ReconstructArgs"},
                  threads(config), 1);
}

}  // namespace q4::jit
