// The quantization fields of a checkpoint's JSON files.
//
//   field           synonyms            meaning
//   bits            w_bit, wbits        of the matrices for which no rule says something else
//   group_size      q_group_size        rows of a group, -1: one group
//   quant_method    method              gptq, awq, auto-round, compressed-tensors
//   format          checkpoint_format,  gptq, gptq_v2 (zero = stored), gptq_p, marlin; AWQ's gemm, gemv, gemv_fast,
//                   version             exllama, ipex; pack-quantized, mixed-precision
//   packing_format                      AutoRound: auto_round:auto_gptq, :gptqmodel, :auto_awq, :llm_compressor
//   sym             zero_point (not)    only matters where zeros are not stored
//   desc_act            actorder        informative, as g_idx says it: but then there must be one, unless static_groups
//   dynamic, extra_config               rules for single modules
//   config_groups                       compressed-tensors: rules for classes of modules
//
// lm_head, ignore and modules_to_not_convert say which modules are quantized; the tensors say so too, and are believed.
#include "runtime/checkpoint/config.hpp"

#include <algorithm>
#include <filesystem>

#include "runtime/checkpoint/fields.hpp"
#include "runtime/checkpoint/names.hpp"

namespace q4::checkpoint {

namespace {

constexpr FieldNames kBits = {"bits", "w_bit", "wbits"};

struct Format {
  const char* name;
  Packing packing;
  std::optional<ZeroFormat> zeros;
};

constexpr Format kFormats[] = {
    {"gptq", Packing::kGptq, ZeroFormat::kV1},
    {"gptq_v2", Packing::kGptq, ZeroFormat::kV2},
    {"gptq_p", Packing::kGptq, ZeroFormat::kV2},
    {"marlin", Packing::kMarlin, {}},
    {"gemm", Packing::kAwqGemm, {}},
    {"exllama", Packing::kAwqGemm, {}},
    {"exllamav2", Packing::kAwqGemm, {}},
    {"ipex", Packing::kAwqGemm, {}},
    {"gemv", Packing::kAwqGemv, {}},
    {"gemv_fast", Packing::kAwqGemvFast, {}},
    {"llm-awq", Packing::kAwqGemvFast, {}},
    {"llm_awq", Packing::kAwqGemvFast, {}},
    {"pack-quantized", Packing::kCompressed, {}},
    {"mixed-precision", Packing::kCompressed, {}},
    {"auto_round", Packing::kGptq, ZeroFormat::kV2},
    {"auto_round:gptqmodel", Packing::kGptq, ZeroFormat::kV2},
    {"auto_round:auto_gptq", Packing::kGptq, ZeroFormat::kV1},
    {"auto_round:gptq", Packing::kGptq, ZeroFormat::kV1},
    {"auto_round:auto_awq", Packing::kAwqGemm, {}},
    {"auto_round:awq", Packing::kAwqGemm, {}},
    {"auto_round:llm_compressor", Packing::kCompressed, {}},
};

bool is_awq(Packing packing) {
  return packing == Packing::kAwqGemm || packing == Packing::kAwqGemv || packing == Packing::kAwqGemvFast;
}

/// Whether this method writes this packing.
bool fits(const std::string& method, Packing packing) {
  if (method == "gptq") return packing == Packing::kGptq || packing == Packing::kMarlin;
  if (method == "awq") return is_awq(packing) || packing == Packing::kMarlin;
  if (method == "compressed-tensors") return packing == Packing::kCompressed;
  return true;
}

/// quant_method in one spelling; empty if absent.
std::string read_method(const Fields& fields) {
  const std::string method = fields.text({"quant_method", "method"}).value_or("");
  if (method.empty() || method == "gptq" || method == "awq" || method == "compressed-tensors") return method;
  if (method == "gptqmodel" || method == "gptq_marlin") return "gptq";
  if (method == "compressed_tensors" || method == "sparseml") return "compressed-tensors";  // its first name
  if (method == "awq_marlin") return "awq";
  if (method == "marlin") return method;
  if (method == "auto-round" || method == "auto_round" || method == "intel/auto-round") return "auto-round";
  fields.unsupported(
      "quant_method is {}, q4 reads gptq, awq, auto-round and compressed-tensors; quantize the model with one of them",
      quote(method));
}

/// AutoRound may name a kernel behind the packing: "auto_round:auto_gptq:exllamav2".
void cut_kernel(std::string& packing) {
  const std::size_t last = packing.rfind(':');
  if (last == std::string::npos) return;
  const std::string kernel = packing.substr(last + 1);
  if (kernel == "exllamav2" || kernel == "triton" || kernel == "tritonv2" || kernel == "marlin") packing.erase(last);
}

/// AutoRound before 0.5 has no packing_format: its backend says who packed, as in "gptq:exllamav2", which AutoGPTQ did, and
/// "auto_round:exllamav2", with zeros as they are. Symmetric zeros, 8 or 7, say that by themselves.
void read_backend(const Fields& fields, ClaimedConfig& config) {
  const std::string backend = fields.text({"backend"}).value_or("");
  if (backend.find("awq") != std::string::npos) config.packing = Packing::kAwqGemm;
  const bool own = backend.rfind("auto_round", 0) == 0 && backend.find("gptq") == std::string::npos;
  if (own && !config.packing && !fields.boolean({"sym"}).value_or(true)) config.zeros = ZeroFormat::kV2;
}

/// The fields that name the packing overlap: each is looked up, and they must agree.
void read_packing(const Fields& fields, ClaimedConfig& config) {
  const std::string method = read_method(fields);
  const bool compressed = method == "compressed-tensors";
  const char* first = nullptr;
  for (const char* field : {"checkpoint_format", "format", "version", "packing_format"}) {
    if (compressed && field != std::string("format")) continue;  // version is the library's
    auto value = fields.text({field});
    const bool round = field == std::string("packing_format");  // AutoRound's
    if (!value || (round && *value == "auto")) continue;
    if (round) cut_kernel(*value);
    const auto* const known =
        std::find_if(std::begin(kFormats), std::end(kFormats), [&](const Format& f) { return f.name == *value; });
    if (known == std::end(kFormats)) {
      fields.unsupported(
          "{} is {}, q4 reads gptq, gptq_v2, AWQ's gemm, gemv and gemv_fast, marlin, pack-quantized and AutoRound's "
          "packings of these; convert the checkpoint",
          field, quote(*value));
    }
    if (!fits(method, known->packing))
      fields.corrupt("quant_method {} and {} {} exclude each other; correct one of them", quote(method), field,
                     quote(*value));
    if (first != nullptr && (config.packing != known->packing || config.zeros != known->zeros))
      fields.corrupt("{} and {} mean the same and differ; correct one of them", first, field);
    first = field;
    config.packing = known->packing;
    config.zeros = known->zeros;
  }
  if (fields.boolean({"is_marlin_format"}).value_or(false) || method == "marlin") config.packing = Packing::kMarlin;
  if (config.packing) return;
  if (method == "gptq") config.packing = Packing::kGptq;
  if (method == "awq") config.packing = Packing::kAwqGemm;
  if (compressed) config.packing = Packing::kCompressed;
  if (method == "auto-round" && fields.find({"packing_format"}) == nullptr) read_backend(fields, config);
}

/// GPTQModel: {"+:expression" or "-:expression": {"bits": 8, ...}}
void read_dynamic(const Fields& fields, ClaimedConfig& config) {
  const Json* const dynamic = fields.object("dynamic");
  if (dynamic == nullptr) return;
  for (const auto& [key, rule] : dynamic->items()) {
    const bool excluded = key.rfind("-:", 0) == 0;
    const std::string expression = excluded || key.rfind("+:", 0) == 0 ? key.substr(2) : key;
    std::optional<std::int64_t> bits;
    if (!rule.is_object() && !rule.is_null())
      fields.corrupt("dynamic: {} is {}, not an object; correct it", quote(key), shown(rule));
    if (!excluded && rule.is_object()) bits = Fields{rule, fields.path}.integer(kBits);
    config.rules.push_back({{expression, Pattern::Kind::kMatch, fields.path, "dynamic"}, bits, excluded});
  }
}

/// AutoRound: {"name or expression": {"bits": 8, ...}}
void read_extra_config(const Fields& fields, ClaimedConfig& config) {
  const Json* const extra = fields.object("extra_config");
  if (extra == nullptr) return;
  for (const auto& [key, rule] : extra->items()) {
    if (!rule.is_object()) fields.corrupt("extra_config: {} is {}, not an object; correct it", quote(key), shown(rule));
    const bool name = key.find_first_of("*+?[](){}|^$\\") == std::string::npos;
    const auto kind = name ? Pattern::Kind::kName : Pattern::Kind::kSearch;
    config.rules.push_back({{key, kind, fields.path, "extra_config"}, Fields{rule, fields.path}.integer(kBits), false});
  }
}

/// compressed-tensors: {"group_0": {"targets": ["Linear", "re:expression", "name"], "weights": {"num_bits": 4, ...}}}
void read_config_groups(const Fields& fields, ClaimedConfig& config) {
  const Json* const groups = fields.object("config_groups");
  if (groups == nullptr) return;
  std::vector<ModuleRule> classes;  // count after names and expressions
  for (const auto& [key, group] : groups->items()) {
    const std::string path = fields.path + ": config_groups." + key;
    if (!group.is_object())
      fields.corrupt("config_groups: {} is {}, not an object; correct it", quote(key), shown(group));
    const Fields of_group{group, path};
    const Json* const weights = of_group.object("weights");
    if (weights == nullptr) continue;
    const Fields of_weights{*weights, path};
    const auto bits = of_weights.integer({"num_bits"});
    const auto group_size = of_weights.integer({"group_size"});
    const auto sym = of_weights.boolean({"symmetric"});
    if (groups->size() == 1) {
      config.group_size = group_size, config.sym = sym, config.bits = bits;
      const Json* const order = of_weights.find({"actorder"});  // true in old files
      if (order != nullptr) config.desc_act = *order == "group" || *order == true;
    }
    const Json* const targets = of_group.array("targets");
    for (const Json& target : targets == nullptr ? Json::array() : *targets) {
      if (!target.is_string()) of_group.corrupt("targets holds {}, not text; correct it", shown(target));
      const auto text = target.get<std::string>();
      if (text.rfind("re:", 0) == 0)
        config.rules.push_back({{text.substr(3), Pattern::Kind::kMatch, path, "targets"}, bits, false});
      else if (text.empty() || text[0] < 'A' || text[0] > 'Z')  // else a class of modules: "Linear"
        config.rules.push_back({{text, Pattern::Kind::kName, path, "targets"}, bits, false});
      else
        classes.push_back({{".*", Pattern::Kind::kMatch, path, "targets"}, bits, false});
    }
  }
  // Two classes of modules: which one a module is of, its tensors do not say.
  if (classes.size() == 1) config.rules.push_back(std::move(classes[0]));
}

/// "gptq gptqmodel:7.7.0": for people, so that any type but text is passed over.
std::string read_tool(const Fields& fields) {
  std::string tool = fields.text({"quant_method", "method"}).value_or("");
  const Json* version = fields.find({"autoround_version"});
  if (version == nullptr && tool == "compressed-tensors") version = fields.find({"version"});
  if (const Json* const meta = fields.find({"meta"}); meta != nullptr && meta->is_object()) {
    const auto quantizer = meta->find("quantizer");
    if (quantizer != meta->end())
      version = quantizer->is_array() && !quantizer->empty() ? &quantizer->front() : &*quantizer;
  }
  if (version != nullptr && version->is_string()) tool += (tool.empty() ? "" : " ") + version->get<std::string>();
  return tool;
}

/// Whether GPTQModel is among meta.quantizer: "gptqmodel:7.7.0", or a list of such.
bool by_gptqmodel(const Fields& fields) {
  const Json* const meta = fields.find({"meta"});
  if (meta == nullptr || !meta->is_object() || !meta->contains("quantizer")) return false;
  const Json& quantizer = meta->at("quantizer");
  const auto named = [](const Json& one) {
    return one.is_string() && lower(one.get<std::string>()).rfind("gptqmodel", 0) == 0;
  };
  return named(quantizer) || (quantizer.is_array() && std::any_of(quantizer.begin(), quantizer.end(), named));
}

ClaimedConfig parse_fields(const Fields& fields) {
  ClaimedConfig config;
  config.path = fields.path;
  config.tool = read_tool(fields);
  read_packing(fields, config);
  config.bits = fields.integer(kBits);
  config.group_size = fields.integer({"group_size", "q_group_size"});
  config.desc_act = fields.boolean({"desc_act"});
  config.static_groups = fields.boolean({"static_groups"});
  config.sym = fields.boolean({"sym"});
  if (const auto zero_point = fields.boolean({"zero_point"}); zero_point && !config.sym) config.sym = !*zero_point;
  config.borrows = by_gptqmodel(fields) && config.zeros == ZeroFormat::kV1 && !config.sym.value_or(true);
  read_dynamic(fields, config);
  read_extra_config(fields, config);
  read_config_groups(fields, config);
  if (config.bits && (*config.bits < 1 || *config.bits > 64))
    fields.corrupt("bits is {}, neither 4 nor another width from 1 to 64; correct it", *config.bits);
  if (config.group_size && *config.group_size != -1 && *config.group_size < 1)
    fields.corrupt("group_size is {}, neither -1 (one group) nor at least 1; correct it", *config.group_size);
  if (const auto type = fields.text({"data_type"}); type && type->rfind("int", 0) != 0)
    fields.unsupported("data_type is {}, q4 multiplies by 4-bit integers; quantize the model to int", quote(*type));
  if (const auto pack = fields.text({"pack_dtype"});
      pack && *pack != "int8" && *pack != "int16" && *pack != "int32" && *pack != "int64")
    fields.unsupported("pack_dtype is {}, q4 reads int8, int16, int32 and int64; pack the checkpoint again",
                       quote(*pack));
  return config;
}

Json object_of(const std::string& path) {
  Json json = parse_json(without_nonfinite(read_text(path, kMaxConfig)), path);
  if (!json.is_object())
    fail(ErrorCode::kCorrupt, "Checkpoint::open: {}: the file holds {}, not an object; fetch it again", path,
         shown(json));
  return json;
}

/// Every quantization_config at any depth below `json`: models of several parts keep them in text_config, llm_config,
/// thinker_config.text_config and so on.
void find_nested(const Json& json, const std::string& path, std::vector<ClaimedConfig>& found) {
  for (const auto& [key, value] : json.items()) {
    const std::string here = path + (path.back() == '.' ? "" : ": ") + key;
    const bool wanted = key == "quantization_config" || key == "compression_config";
    if (wanted && !value.is_null()) {
      if (!value.is_object())
        fail(ErrorCode::kCorrupt, "Checkpoint::open: {}: quantization_config is {}, not an object; correct it", path,
             shown(value));
      found.push_back(parse_fields({value, here}));
    } else if (value.is_object()) {
      find_nested(value, here + ".", found);
    }
  }
}

template <class Value>
void merge_field(const char* name, std::optional<Value>& into, const std::optional<Value>& from,
                 const ClaimedConfig& first, const ClaimedConfig& second, std::string (*text)(const Value&)) {
  if (into && from && *into != *from) {
    fail(ErrorCode::kCorrupt,
         "Checkpoint::open: {} and {} contradict each other: {} is {} and {}; remove the one that is not this "
         "checkpoint's, or correct it",
         first.path, second.path, name, text(*into), text(*from));
  }
  if (!into) into = from;
}

ClaimedConfig merge(ClaimedConfig first, const ClaimedConfig& second) {
  const auto number = [](const std::int64_t& value) { return std::to_string(value); };
  merge_field<Packing>("the packing", first.packing, second.packing, first, second,
                       [](const Packing& packing) { return std::string(to_string(packing)); });
  merge_field<ZeroFormat>("the format of zeros", first.zeros, second.zeros, first, second, [](const ZeroFormat& zeros) {
    return std::string(zeros == ZeroFormat::kV2 ? "gptq_v2" : "gptq (v1)");
  });
  merge_field<std::int64_t>("bits", first.bits, second.bits, first, second, number);
  merge_field<std::int64_t>("group_size", first.group_size, second.group_size, first, second, number);
  if (!first.desc_act) first.desc_act = second.desc_act;
  if (!first.sym) first.sym = second.sym;
  if (!first.static_groups) first.static_groups = second.static_groups;
  first.borrows |= second.borrows;
  if (first.tool.empty()) first.tool = second.tool;
  if (first.rules.empty()) first.rules = second.rules;
  first.path += " and " + second.path;
  return first;
}

}  // namespace

const char* to_string(Packing packing) {
  constexpr const char* kNames[] = {"GPTQ", "AWQ gemm", "AWQ gemv", "AWQ gemv_fast", "Marlin", "compressed-tensors"};
  return kNames[static_cast<std::size_t>(packing)];
}

std::optional<std::int64_t> ClaimedConfig::bits_of(const std::string& module) const {
  for (const ModuleRule& rule : rules) {
    if (rule.pattern.matches(module)) return rule.bits ? rule.bits : bits;
  }
  return bits;
}

bool ClaimedConfig::may_have(const std::string& module, std::int64_t count) const {
  if (!bits && rules.empty()) return true;
  return bits == count || std::any_of(rules.begin(), rules.end(), [&](const ModuleRule& rule) {
           return rule.bits == count && rule.pattern.matches(module);
         });
}

ClaimedConfig parse_config(const std::string& json, const std::string& path) {
  return parse_fields({parse_json(json, path), path});
}

std::optional<ClaimedConfig> read_config(const std::string& folder) {
  const std::filesystem::path base(folder);
  std::vector<ClaimedConfig> found;
  for (const char* name : {"config.json", "quantize_config.json", "quantization_config.json", "quant_config.json"}) {
    const std::string path = (base / name).string();
    std::error_code ignored;
    // A link that leads nowhere is not an absent file: what it would say may matter.
    if (std::filesystem::symlink_status(path, ignored).type() == std::filesystem::file_type::not_found) continue;
    const Json json = object_of(path);
    find_nested(json, path, found);
    if (name != std::string("config.json")) found.push_back(parse_fields({json, path}));
  }
  if (found.empty()) return std::nullopt;
  ClaimedConfig merged = std::move(found[0]);
  for (std::size_t i = 1; i < found.size(); ++i) merged = merge(std::move(merged), found[i]);
  return merged;
}

}  // namespace q4::checkpoint
