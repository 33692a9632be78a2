// Writes quantization_config: one group size for most matrices, and rules for the others.
#include "tools/convert/config.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <q4/version.hpp>

#include "runtime/base/check.hpp"
#include "runtime/checkpoint/json.hpp"

namespace q4::tools::convert {

namespace {

using Json = nlohmann::ordered_json;
using Names = std::vector<std::string>;

constexpr std::size_t kMaxConfig = std::size_t{64} << 20;

bool is_digit(char c) { return c >= '0' && c <= '9'; }

/// An expression for the name, whole numbers between dots being any number where `numbers`.
std::string expression(const std::string& name, bool numbers) {
  std::string text;
  for (std::size_t at = 0; at < name.size();) {
    std::size_t end = at;
    while (end < name.size() && is_digit(name[end])) ++end;
    const bool whole = end > at && (at == 0 || name[at - 1] == '.') && (end == name.size() || name[end] == '.');
    if (numbers && whole) {
      text += "\\d+";
      at = end;
      continue;
    }
    if (std::string_view("\\^$.|?*+()[]{}").find(name[at]) != std::string_view::npos) text += '\\';
    text += name[at++];
  }
  return "^" + text + "$";
}

/// Expressions that match `names` and none of `others`: one for all layers where that is so.
Names expressions(const Names& names, const Names& others) {
  std::map<std::string, Names> by_shape;  // what looks the same but for numbers
  for (const std::string& name : names) by_shape[expression(name, true)].push_back(name);
  for (const std::string& name : others) {
    const auto at = by_shape.find(expression(name, true));
    if (at == by_shape.end()) continue;
    const Names single = std::move(at->second);
    by_shape.erase(at);
    for (const std::string& one : single) by_shape[expression(one, false)] = {one};
  }
  Names result;
  for (const auto& [text, matched] : by_shape)
    result.push_back(matched.size() == 1 ? expression(matched[0], false) : text);
  return result;
}

bool is_head(const std::string& name) { return name == "lm_head" || name.ends_with(".lm_head"); }

/// Modules with a weight of two dimensions that is not one of the matrices: what a reader must not take for quantized.
/// lm_head is among them where it is tied, and so not stored at all.
Names dense_modules(const Source& source) {
  constexpr std::string_view kWeight = ".weight";
  Names names;
  const auto& matrices = source.matrices();
  const bool quantized =
      std::any_of(matrices.begin(), matrices.end(), [](const auto& m) { return is_head(m.entry.name); });
  const bool stored = std::any_of(source.others().begin(), source.others().end(),
                                  [](const std::string& name) { return name.ends_with("lm_head.weight"); });
  if (!quantized && !stored) names.push_back("lm_head");
  for (const std::string& name : source.others()) {
    const bool weight = name.size() > kWeight.size() && name.ends_with(kWeight);
    if (weight && source.files().tensors.at(name).tensor->shape.size() == 2)
      names.push_back(name.substr(0, name.size() - kWeight.size()));
  }
  return names;
}

Names matrix_names(const Source& source) {
  Names names;
  for (const auto& matrix : source.matrices()) names.push_back(matrix.entry.name);
  return names;
}

/// Whether group_size `said` means this matrix's groups.
bool means(std::int64_t said, const Plan& plan) {
  return said == -1 ? plan.groups == 1 : (plan.k + said - 1) / said == plan.groups;
}

/// The group size that most matrices have; -1 where all have one group.
std::int64_t common_group_size(const Source& source) {
  std::map<std::int64_t, int> count;
  for (const Plan& plan : source.plans())
    if (plan.groups > 1) ++count[plan.group_size];
  if (count.empty()) return -1;
  return std::max_element(count.begin(), count.end(), [](const auto& a, const auto& b) { return a.second < b.second; })
      ->first;
}

Json meta() { return {{"quantizer", Json::array({std::string("q4:") + version()})}}; }

Json gptq(Format format, const Source& source) {
  const auto& plans = source.plans();
  const std::int64_t common = common_group_size(source);
  const auto any = [&](auto&& of) { return std::any_of(plans.begin(), plans.end(), of); };
  Json config = {{"quant_method", "gptq"},
                 {"bits", 4},
                 {"group_size", common},
                 {"desc_act", any([](const Plan& p) { return p.act_order; })},
                 {"sym", !any([](const Plan& p) { return !p.symmetric; })},
                 {"checkpoint_format", to_string(format)},
                 {"pack_dtype", "int32"},
                 {"lm_head", false},
                 {"meta", meta()}};
  Json dynamic = Json::object();
  std::map<std::int64_t, Names> other_sizes;
  for (std::size_t i = 0; i < plans.size(); ++i) {
    const std::string& name = source.matrices()[i].entry.name;
    if (is_head(name)) config["lm_head"] = true;
    if (!means(common, plans[i])) other_sizes[plans[i].groups == 1 ? -1 : plans[i].group_size].push_back(name);
  }
  for (const auto& [size, names] : other_sizes) {
    Names rest;
    for (const std::string& name : matrix_names(source))
      if (std::find(names.begin(), names.end(), name) == names.end()) rest.push_back(name);
    for (const std::string& text : expressions(names, rest)) dynamic["+:" + text] = {{"group_size", size}};
  }
  for (const std::string& text : expressions(dense_modules(source), matrix_names(source)))
    dynamic["-:" + text] = Json::object();
  if (!dynamic.empty()) config["dynamic"] = std::move(dynamic);
  return config;
}

Json awq(const Source& source) {
  return {{"quant_method", "awq"}, {"bits", 4},         {"group_size", common_group_size(source)},
          {"zero_point", true},    {"version", "gemm"}, {"modules_to_not_convert", dense_modules(source)},
          {"meta", meta()}};
}

Json compressed_tensors(const Source& source) {
  using Kind = std::tuple<std::int64_t, bool, bool>;  // group size or -1, symmetric, act-order
  std::map<Kind, Names> kinds;
  const std::int64_t common = common_group_size(source);
  for (std::size_t i = 0; i < source.plans().size(); ++i) {
    const Plan& plan = source.plans()[i];
    const std::int64_t size = plan.groups == 1 ? -1 : means(common, plan) ? common : plan.group_size;
    kinds[{size, plan.symmetric, plan.act_order}].push_back(source.matrices()[i].entry.name);
  }
  Json groups = Json::object();
  for (const auto& [kind, names] : kinds) {
    const auto& [size, symmetric, act_order] = kind;
    Json targets = Json::array();
    if (kinds.size() == 1) {
      targets.push_back("Linear");
    } else {
      Names rest;
      for (const auto& [other, others] : kinds)
        if (other != kind) rest.insert(rest.end(), others.begin(), others.end());
      for (const std::string& text : expressions(names, rest)) targets.push_back("re:" + text);
    }
    Json weights = {{"num_bits", 4},
                    {"type", "int"},
                    {"symmetric", symmetric},
                    {"strategy", size == -1 ? "channel" : "group"},
                    {"group_size", size == -1 ? Json() : Json(size)},
                    {"actorder", act_order ? Json("group") : Json()},
                    {"dynamic", false},
                    {"block_structure", nullptr},
                    {"observer", "minmax"},
                    {"observer_kwargs", Json::object()}};
    groups[fmt::format("group_{}", groups.size())] = {{"targets", std::move(targets)},
                                                      {"weights", std::move(weights)},
                                                      {"input_activations", nullptr},
                                                      {"output_activations", nullptr},
                                                      {"format", "pack-quantized"}};
  }
  Json ignore = Json::array();
  for (const std::string& text : expressions(dense_modules(source), matrix_names(source)))
    ignore.push_back("re:" + text);
  return {{"quant_method", "compressed-tensors"}, {"format", "pack-quantized"},  {"quantization_status", "compressed"},
          {"config_groups", std::move(groups)},   {"ignore", std::move(ignore)}, {"kv_cache_scheme", nullptr},
          {"global_compression_ratio", nullptr}};
}

/// Removes every quantization_config below `json`; true if there was one.
bool remove_nested(Json& json) {
  bool removed = json.erase("quantization_config") + json.erase("compression_config") != 0;
  for (auto& [key, value] : json.items())
    if (value.is_object()) removed |= remove_nested(value);
  return removed;
}

/// Python's NaN and Infinity, which JSON has not, as texts that come back out of write().
constexpr std::pair<const char*, const char*> kNonfinite[] = {
    {"-Infinity", "q4-convert:-inf"}, {"Infinity", "q4-convert:inf"}, {"NaN", "q4-convert:nan"}};

Json read(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::symlink_status(path, ignored).type() == std::filesystem::file_type::not_found)
    return Json::object();
  const std::string text = checkpoint::read_text(path, kMaxConfig);
  checkpoint::parse_json(checkpoint::without_nonfinite(text), path);  // strict; throws
  const std::string quoted = checkpoint::replace_nonfinite(text, [](std::string_view word) {
    for (const auto& [name, stands] : kNonfinite)
      if (word == name) return fmt::format("\"{}\"", stands);
    return std::string("null");
  });
  Json json = Json::parse(quoted);
  if (!json.is_object()) fail(ErrorCode::kCorrupt, "{}: the file holds {}, not an object", path, json.type_name());
  return json;
}

std::string write(const Json& json) {
  std::string text = json.dump(2) + "\n";
  for (const auto& [name, stands] : kNonfinite) {
    const std::string quoted = fmt::format("\"{}\"", stands);
    for (std::size_t at; (at = text.find(quoted)) != std::string::npos;) text.replace(at, quoted.size(), name);
  }
  return text;
}

}  // namespace

std::string config_refusal(Format format, const Source& source) {
  if (format != Format::kAwq) return "";
  const std::int64_t common = common_group_size(source);
  for (std::size_t i = 0; i < source.plans().size(); ++i) {
    const Plan& plan = source.plans()[i];
    if (!means(common, plan)) {
      return fmt::format(
          "{}: its group size is {} and that of most others {}, but AWQ's configuration has one; convert to gptq_v2 or "
          "compressed-tensors",
          checkpoint::quote(source.matrices()[i].entry.name), plan.group_size, common);
    }
  }
  return "";
}

std::string config_text(Format format, const Source& source) {
  Json config = read((std::filesystem::path(source.folder()) / "config.json").string());
  remove_nested(config);
  config["quantization_config"] = format == Format::kAwq                 ? awq(source)
                                  : format == Format::kCompressedTensors ? compressed_tensors(source)
                                                                         : gptq(format, source);
  return write(config);
}

}  // namespace q4::tools::convert
