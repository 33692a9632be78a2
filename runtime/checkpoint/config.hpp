// The quantization fields of a checkpoint's JSON files, in all the spellings that AutoGPTQ, GPTQModel and AutoAWQ
// write.
#pragma once

#include <cstdint>
#include <optional>
#include <q4/checkpoint.hpp>
#include <string>

namespace q4::checkpoint {

/// What a checkpoint says of itself. Absent fields are absent: shapes decide what they can.
struct ClaimedConfig {
  std::string path;  ///< the file that was read
  std::optional<QuantFormat> format;
  std::optional<std::int64_t> group_size;
  bool desc_act = false;
  bool sym = true;
  ZeroFormat zeros = ZeroFormat::kAuto;
};

/// The first of config.json (quantization_config), quantize_config.json and quant_config.json in `folder` that speaks
/// of quantization. Throws kCorrupt for what contradicts itself, kUnsupported for what q4 does not compute.
std::optional<ClaimedConfig> read_config(const std::string& folder);

/// The same for one object of quantization fields, found in the file `path`.
ClaimedConfig parse_config(const std::string& json, const std::string& path);

}  // namespace q4::checkpoint
