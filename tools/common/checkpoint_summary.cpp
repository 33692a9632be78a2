// Counts a checkpoint's matrices by packing and shape, and lists what would not load.
#include "tools/common/checkpoint_summary.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <q4/checkpoint.hpp>
#include <q4/error.hpp>
#include <tuple>

#include "runtime/checkpoint/file_bytes.hpp"
#include "tools/common/common.hpp"

namespace q4::tools {

nlohmann::json summarize_checkpoint(const std::string& path) {
  const Checkpoint checkpoint = Checkpoint::open(path);
  std::map<std::string, int> packings;
  std::map<std::tuple<std::int64_t, std::int64_t, std::int64_t>, int> shapes;
  nlohmann::json unsupported = nlohmann::json::array();
  std::int64_t bytes = 0;
  int loadable = 0, act_order = 0, bias = 0, other_groups = 0;
  const std::int64_t said = checkpoint.config().group_size;
  for (const MatrixEntry& entry : checkpoint.matrices()) {
    std::string reason = entry.unsupported;
    try {
      if (reason.empty()) act_order += checkpoint.act_order(entry.name);
    } catch (const Error& error) { reason = error.what(); }
    if (!reason.empty()) {
      unsupported.push_back({{"name", entry.name}, {"reason", reason}});
      continue;
    }
    ++loadable;
    bias += entry.has_bias;
    other_groups += said == -1 ? entry.groups != 1 : entry.group_size != std::min(said, entry.k);
    ++packings[entry.packing];
    ++shapes[{entry.k, entry.n, entry.group_size}];
    bytes += entry.k * entry.n / 2 + entry.groups * entry.n * 5 / 2;
  }
  nlohmann::json by_shape = nlohmann::json::array();
  for (const auto& [shape, count] : shapes) {
    const auto& [k, n, group_size] = shape;
    by_shape.push_back({{"k", k}, {"n", n}, {"group_size", group_size}, {"count", count}});
  }
  return {{"path", path},
          {"files", checkpoint::how_read(path)},
          {"tool", checkpoint.config().tool},
          {"group_size", checkpoint.config().group_size},
          {"other_groups", other_groups},
          {"bits", 4},
          {"packings", packings},
          {"matrices", loadable},
          {"act_order", act_order},
          {"bias", bias},
          {"bytes", bytes},
          {"shapes", by_shape},
          {"unsupported", unsupported}};
}

std::string summary_text(const nlohmann::json& summary) {
  const auto number = [&](const char* name) { return summary.at(name).get<std::int64_t>(); };
  const auto text_of = [](const nlohmann::json& text) { return without_controls(text.get<std::string>()); };
  const std::string tool = text_of(summary.at("tool"));
  std::string text = fmt::format("checkpoint: {}, {}\n", summary.at("path").get<std::string>(),
                                 summary.at("files").get<std::string>());
  if (number("matrices") == 0 && summary.at("unsupported").empty())
    return text + "  no quantized matrix in it (no tensor's name ends in .qweight or .weight_packed)\n";
  for (const auto& [packing, count] : summary.at("packings").items())
    text += fmt::format("  format: {}{}, {} matrices of 4 bits\n", packing, tool.empty() ? "" : " (" + tool + ")",
                        count.get<std::int64_t>());
  text +=
      fmt::format("  group size {}, act-order in {}, bias in {} of {} matrices, {:.1f} MB packed\n",
                  number("group_size") == -1 ? "-1 (one group)" : std::to_string(number("group_size")),
                  number("act_order"), number("bias"), number("matrices"), static_cast<double>(number("bytes")) / 1e6);
  for (const nlohmann::json& shape : summary.at("shapes"))
    text += fmt::format("  {:>6} x {:<6} group {:<5} {:>6} matrices\n", shape.at("k").get<std::int64_t>(),
                        shape.at("n").get<std::int64_t>(), shape.at("group_size").get<std::int64_t>(),
                        shape.at("count").get<std::int64_t>());
  if (number("other_groups") > 0)
    text += fmt::format("  {} of them have other groups than the configuration says; the tensors count\n",
                        number("other_groups"));
  if (summary.at("unsupported").empty()) return text + "  every quantized matrix can be loaded\n";
  text += fmt::format("  {} cannot be loaded:\n", summary.at("unsupported").size());
  for (const nlohmann::json& matrix : summary.at("unsupported"))
    text += fmt::format("    {}: {}\n", text_of(matrix.at("name")), text_of(matrix.at("reason")));
  return text;
}

}  // namespace q4::tools
