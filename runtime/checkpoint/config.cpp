// The quantization fields of a checkpoint's JSON files.
//
//   field         synonyms                  meaning
//   bits          w_bit, wbits              must be 4
//   group_size    q_group_size              rows of a group, -1: one group
//   quant_method  method                    gptq or awq
//   format        checkpoint_format,        gptq, gptq_v2 (zero = stored), or gemm (AWQ)
//                 version
//   sym           zero_point (negated)      informative: the stored zeros say it
//   desc_act                                informative: g_idx says it
//   pack_dtype                              must be int32
//   dynamic                                 per-module rules; any bits in them must be 4, group sizes come from the
//   shapes
//
// lm_head and modules_to_not_convert say which modules are quantized; the tensors say so too, and are believed.
#include "runtime/checkpoint/config.hpp"

#include <algorithm>
#include <filesystem>
#include <initializer_list>

#include "runtime/base/check.hpp"
#include "runtime/checkpoint/json.hpp"
#include "runtime/checkpoint/names.hpp"

namespace q4::checkpoint {

namespace {

constexpr std::size_t kMaxConfig = 64u << 20;

/// The fields of one object, with the file's name for messages.
struct Fields {
  const Json& json;
  const std::string& path;

  /// The value under the first of `names` that is there and not null; another that contradicts it is an error.
  const Json* find(std::initializer_list<const char*> names) const {
    const Json* found = nullptr;
    const char* found_name = nullptr;
    for (const char* name : names) {
      const auto at = json.find(name);
      if (at == json.end() || at->is_null()) continue;
      if (found != nullptr && *found != *at) {
        fail(ErrorCode::kCorrupt, "Checkpoint::open: {}: {} and {} mean the same and differ; correct one of them", path,
             found_name, name);
      }
      found = &*at;
      found_name = name;
    }
    return found;
  }

  std::optional<std::int64_t> integer(std::initializer_list<const char*> names) const {
    const Json* const value = find(names);
    if (value == nullptr) return std::nullopt;
    if (!value->is_number_integer() || (value->is_number_unsigned() && value->get<std::uint64_t>() > INT64_MAX)) {
      fail(ErrorCode::kCorrupt, "Checkpoint::open: {}: {} is {}, not a whole number", path, *names.begin(),
           value->is_number() ? "another number" : value->type_name());
    }
    return value->get<std::int64_t>();
  }

  std::optional<bool> boolean(const char* name) const {
    const Json* const value = find({name});
    if (value == nullptr) return std::nullopt;
    if (!value->is_boolean()) {
      fail(ErrorCode::kCorrupt, "Checkpoint::open: {}: {} is {}, not true or false", path, name, value->type_name());
    }
    return value->get<bool>();
  }

  /// Lower case; empty if absent.
  std::string text(std::initializer_list<const char*> names) const {
    const Json* const value = find(names);
    if (value == nullptr) return {};
    if (!value->is_string()) {
      fail(ErrorCode::kCorrupt, "Checkpoint::open: {}: {} is {}, not text", path, *names.begin(), value->type_name());
    }
    auto result = value->get<std::string>();
    std::transform(result.begin(), result.end(), result.begin(),
                   [](char c) { return c >= 'A' && c <= 'Z' ? c + 32 : c; });
    return result;
  }
};

template <class... Args>
[[noreturn]] void unsupported(const Fields& fields, fmt::format_string<Args...> text, Args&&... args) {
  fail(ErrorCode::kUnsupported, "Checkpoint::open: {}: {}", fields.path,
       fmt::format(text, std::forward<Args>(args)...));
}

constexpr std::initializer_list<const char*> kBits = {"bits", "w_bit", "wbits"};

void check_bits(const Fields& fields, const std::string& where) {
  const auto bits = fields.integer(kBits);
  if (bits && *bits != 4) {
    unsupported(fields, "{}bits is {}, q4 multiplies by 4-bit weights; quantize the model to 4 bits", where, *bits);
  }
}

void check_dynamic(const Fields& fields) {
  const Json* const dynamic = fields.find({"dynamic"});
  if (dynamic == nullptr || (dynamic->is_boolean() && !dynamic->get<bool>())) return;
  if (!dynamic->is_object()) {
    fail(ErrorCode::kCorrupt, "Checkpoint::open: {}: dynamic is {}, not an object of rules", fields.path,
         dynamic->type_name());
  }
  for (const auto& [pattern, rule] : dynamic->items()) {
    if (pattern.rfind("-:", 0) == 0 || !rule.is_object()) continue;  // modules that are not quantized
    check_bits({rule, fields.path}, fmt::format("dynamic: {}: ", quote(pattern)));
  }
}

/// quant_method and format, which overlap, and the zeros that they imply.
void read_format(const Fields& fields, ClaimedConfig& config) {
  const std::string method = fields.text({"quant_method", "method"});
  if (method == "gptq") config.format = QuantFormat::kGptq;
  if (method == "awq") config.format = QuantFormat::kAwq;
  if (!method.empty() && !config.format) {
    unsupported(fields, "quant_method is {}, q4 reads gptq and awq; convert the checkpoint", quote(method));
  }
  // An AWQ config's "version" and a GPTQ config's "checkpoint_format" are one thing: how the tensors are packed.
  const std::string format = fields.text({"checkpoint_format", "format", "version"});
  if (format.empty()) return;
  if (format != "gptq" && format != "gptq_v2" && format != "gemm") {
    unsupported(
        fields,
        "format (checkpoint_format, version) is {}, q4 reads gptq, gptq_v2 and AWQ's gemm; convert the checkpoint",
        quote(format));
  }
  const QuantFormat implied = format == "gemm" ? QuantFormat::kAwq : QuantFormat::kGptq;
  if (config.format && *config.format != implied) {
    fail(ErrorCode::kCorrupt,
         "Checkpoint::open: {}: quant_method {} and format {} exclude each other; correct one of them", fields.path,
         quote(method), quote(format));
  }
  config.format = implied;
  if (format == "gptq_v2") config.zeros = ZeroFormat::kV2;
}

ClaimedConfig parse_fields(const Fields& fields) {
  ClaimedConfig config;
  config.path = fields.path;
  read_format(fields, config);
  check_bits(fields, "");
  check_dynamic(fields);
  config.group_size = fields.integer({"group_size", "q_group_size"});
  if (config.group_size && *config.group_size != -1 && *config.group_size < 1) {
    fail(ErrorCode::kCorrupt, "Checkpoint::open: {}: group_size is {}, neither -1 (one group) nor at least 1",
         fields.path, *config.group_size);
  }
  config.desc_act = fields.boolean("desc_act").value_or(false);
  config.sym = fields.boolean("sym").value_or(!fields.boolean("zero_point").value_or(false));
  if (const std::string pack = fields.text({"pack_dtype"}); !pack.empty() && pack != "int32") {
    unsupported(fields, "pack_dtype is {}, q4 reads int32; pack the checkpoint again", quote(pack));
  }
  if (fields.boolean("is_marlin_format").value_or(false)) {
    unsupported(fields, "is_marlin_format is true; q4 reads the plain GPTQ packing, convert the checkpoint");
  }
  return config;
}

Json object_of(const std::string& path) {
  Json json = parse_json(without_nonfinite(read_text(path, kMaxConfig)), path);
  if (!json.is_object())
    fail(ErrorCode::kCorrupt, "Checkpoint::open: {}: the file holds {}, not an object", path, json.type_name());
  return json;
}

}  // namespace

ClaimedConfig parse_config(const std::string& json, const std::string& path) {
  return parse_fields({parse_json(json, path), path});
}

std::optional<ClaimedConfig> read_config(const std::string& folder) {
  const std::filesystem::path base(folder);
  std::error_code ignored;
  if (const std::string path = (base / "config.json").string(); std::filesystem::exists(path, ignored)) {
    const Json model = object_of(path);
    // Models with several parts keep the language model's fields one level down.
    for (const char* pointer : {"/quantization_config", "/text_config/quantization_config"}) {
      const Json::json_pointer at(pointer);
      if (!model.contains(at) || model.at(at).is_null()) continue;
      if (!model.at(at).is_object()) {
        fail(ErrorCode::kCorrupt, "Checkpoint::open: {}: quantization_config is {}, not an object", path,
             model.at(at).type_name());
      }
      return parse_fields({model.at(at), path});
    }
  }
  for (const char* name : {"quantize_config.json", "quant_config.json"}) {
    const std::string path = (base / name).string();
    if (std::filesystem::exists(path, ignored)) return parse_fields({object_of(path), path});
  }
  return std::nullopt;
}

}  // namespace q4::checkpoint
