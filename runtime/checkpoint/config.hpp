// The quantization fields of a checkpoint's JSON files, in all the spellings that quantizers write.
#pragma once

#include <cstdint>
#include <optional>
#include <q4/checkpoint.hpp>
#include <string>
#include <vector>

#include "runtime/checkpoint/pattern.hpp"

namespace q4::checkpoint {

/// How the tensors of a matrix are laid out.
enum class Packing : std::uint8_t { kGptq, kAwqGemm, kAwqGemv, kAwqGemvFast, kMarlin, kCompressed };
const char* to_string(Packing packing);

/// What a configuration says of some modules: those that `pattern` matches.
struct ModuleRule {
  Pattern pattern;
  std::optional<std::int64_t> bits;
  bool excluded = false;  ///< says that they are not quantized
};

/// What a checkpoint says of itself. Absent fields are absent: shapes decide what they can.
struct ClaimedConfig {
  std::string path;  ///< the file (and, below the top, where in it), or several joined by "and"
  std::string tool;  ///< quant_method, and the version that the tool says
  std::optional<Packing> packing;
  std::optional<ZeroFormat> zeros;  ///< kV1 or kV2
  /// v1 zeros were made by subtracting 1 from each nibble of a whole word at once, as GPTQModel does (its
  /// convert_gptq_v2_to_v1_format_module): a zero of 0 borrows from the column after it.
  bool borrows = false;
  std::optional<std::int64_t> bits, group_size;
  std::optional<bool> desc_act, sym, static_groups;
  std::vector<ModuleRule> rules;  ///< the first that matches counts

  /// Act-order whose rows only a g_idx puts into groups.
  bool needs_g_idx() const { return desc_act.value_or(false) && !static_groups.value_or(false); }
  /// Bits that the configuration gives the module; nothing: it does not say.
  std::optional<std::int64_t> bits_of(const std::string& module) const;
  /// Whether some rule that matches the module, or the configuration as a whole, gives it so many bits. The order of
  /// rules is lost with that of a JSON object's members: where they overlap, the tensors decide.
  bool may_have(const std::string& module, std::int64_t count) const;
};

/// Everything that config.json (quantization_config at any depth), quantize_config.json, quantization_config.json and
/// quant_config.json in `folder` say, merged. Throws kCorrupt for what contradicts itself or each other, with the names
/// of both, kUnsupported for what q4 does not read.
std::optional<ClaimedConfig> read_config(const std::string& folder);

/// The same for one object of quantization fields, found at `path`.
ClaimedConfig parse_config(const std::string& json, const std::string& path);

}  // namespace q4::checkpoint
