// What a checkpoint is, in a few lines: q4-info CHECKPOINT.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace q4::tools {

/// Opens the checkpoint and returns {"path", "files": "mapped from ext4", "tool", "group_size", "bits", "packings": {name: matrices}, "matrices",
/// "act_order", "bias", "bytes", "shapes": [{"k", "n", "group_size", "count"}], "unsupported": [{"name", "reason"}]}.
/// bytes: of the codes, scales and zeros of what can be loaded. Throws what Checkpoint::open throws.
nlohmann::json summarize_checkpoint(const std::string& path);
/// The same as text, with an end of line.
std::string summary_text(const nlohmann::json& summary);

}  // namespace q4::tools
