// Which fields of a config.json mean which matrix. A new model of a known architecture is a row of the table.
#include "tools/common/model_config.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "runtime/base/check.hpp"
#include "runtime/checkpoint/config.hpp"
#include "runtime/checkpoint/json.hpp"
#include "runtime/checkpoint/names.hpp"

namespace q4::tools {
namespace {

using checkpoint::quote;
using Json = nlohmann::json;

/// Which layers have experts instead of a dense gate, up and down.
enum class Mixture : std::uint8_t {
  kNone,
  kAll,        ///< every layer
  kStep,       ///< by decoder_sparse_step, those of mlp_only_layers excepted
  kAfter,      ///< from first_k_dense_replace on, every moe_layer_freq-th
  kInterleave  ///< every interleave_moe_layer_step-th, or those of moe_layers
};

/// A model type of transformers. Names of fields are null where the architecture has no such thing.
struct Family {
  const char* type;
  bool qkv_bias = false;      ///< what `attention_bias` says where it is absent
  std::int64_t head_dim = 0;  ///< where the config does not say; 0: hidden_size / num_attention_heads
  bool latent = false;        ///< DeepSeek's attention, with projections to a latent space and back
  Mixture mixture = Mixture::kNone;
  const char* experts = nullptr;  ///< the field with their number
  const char* expert_inner = nullptr;
  const char* shared_inner = nullptr;  ///< rows of the expert that every token passes through
  const char* shared_count = nullptr;  ///< of `expert_inner` rows each
  const char* dense_inner = "intermediate_size";
  bool expert_bias = false;
  MoeActivation expert_activation = MoeActivation::kSiluMul;
  bool output_bias = false;  ///< o has a bias where q, k and v have one
};

constexpr Family kFamilies[] = {
    {.type = "llama", .output_bias = true},
    {.type = "mistral"},
    {.type = "ministral"},
    {.type = "qwen2", .qkv_bias = true},
    {.type = "qwen2_vl_text", .qkv_bias = true},
    {.type = "qwen2_5_vl_text", .qkv_bias = true},
    {.type = "qwen3", .head_dim = 128, .output_bias = true},
    {.type = "gemma", .head_dim = 256, .output_bias = true},
    {.type = "gemma2", .head_dim = 256, .output_bias = true},
    {.type = "gemma3_text", .head_dim = 256, .output_bias = true},
    {.type = "phi3"},
    {.type = "mixtral", .mixture = Mixture::kAll, .experts = "num_local_experts", .expert_inner = "intermediate_size"},
    {.type = "qwen2_moe",
     .qkv_bias = true,
     .mixture = Mixture::kStep,
     .experts = "num_experts",
     .expert_inner = "moe_intermediate_size",
     .shared_inner = "shared_expert_intermediate_size"},
    {.type = "qwen3_moe",
     .head_dim = 128,
     .mixture = Mixture::kStep,
     .experts = "num_experts",
     .expert_inner = "moe_intermediate_size",
     .output_bias = true},
    {.type = "deepseek_v2",
     .latent = true,
     .mixture = Mixture::kAfter,
     .experts = "n_routed_experts",
     .expert_inner = "moe_intermediate_size",
     .shared_count = "n_shared_experts"},
    {.type = "deepseek_v3",
     .latent = true,
     .mixture = Mixture::kAfter,
     .experts = "n_routed_experts",
     .expert_inner = "moe_intermediate_size",
     .shared_count = "n_shared_experts"},
    {.type = "kimi_k2",
     .latent = true,
     .mixture = Mixture::kAfter,
     .experts = "n_routed_experts",
     .expert_inner = "moe_intermediate_size",
     .shared_count = "n_shared_experts"},
    {.type = "gpt_oss",
     .qkv_bias = true,
     .head_dim = 64,
     .mixture = Mixture::kAll,
     .experts = "num_local_experts",
     .expert_inner = "intermediate_size",
     .expert_bias = true,
     .expert_activation = MoeActivation::kSwigluClamp,
     .output_bias = true},
    {.type = "llama4_text",
     .mixture = Mixture::kInterleave,
     .experts = "num_local_experts",
     .expert_inner = "intermediate_size",
     .shared_inner = "intermediate_size",
     .dense_inner = "intermediate_size_mlp",
     .output_bias = true},
};

/// Fields of a config, with their types checked.
class Config {
 public:
  Config(const Json& json, std::string where) : json_(json), where_(std::move(where)) {}

  template <class... Args>
  [[noreturn]] void corrupt(fmt::format_string<Args...> text, Args&&... args) const {
    fail(ErrorCode::kCorrupt, "{}: {}", where_, fmt::format(text, std::forward<Args>(args)...));
  }
  const Json* find(const char* name) const {
    const auto at = json_.find(name);
    return at == json_.end() || at->is_null() ? nullptr : &*at;
  }
  std::optional<std::int64_t> number(const char* name, std::int64_t least = 1) const {
    constexpr std::int64_t kLargest = 1 << 24;
    const Json* const value = find(name);
    if (value == nullptr) return std::nullopt;
    if (!value->is_number_integer()) corrupt("{} is {}, not a whole number; correct it", name, value->dump());
    if ((value->is_number_unsigned() && value->get<std::uint64_t>() > kLargest) || value->get<std::int64_t>() < least)
      corrupt("{} is {}, not from {} to {}; correct it", name, value->dump(), least, kLargest);
    return value->get<std::int64_t>();
  }
  std::int64_t need(const char* name) const {
    if (const auto value = number(name)) return *value;
    corrupt(
        "{} is missing, which this model type needs; fetch the file again, or give its shapes to q4-bench and "
        "q4-autotune with --shapes",
        name);
  }
  bool flag(const char* name, bool otherwise) const {
    const Json* const value = find(name);
    if (value != nullptr && !value->is_boolean())
      corrupt("{} is {}, not true or false; correct it", name, value->dump());
    return value == nullptr ? otherwise : value->get<bool>();
  }
  /// Whether `layer` is in the list `name`; false where there is none.
  bool lists(const char* name, std::int64_t layer) const {
    const Json* const list = find(name);
    if (list == nullptr) return false;
    if (!list->is_array()) corrupt("{} is {}, not a list; correct it", name, list->type_name());
    return std::any_of(list->begin(), list->end(), [&](const Json& one) {
      if (!one.is_number_integer()) corrupt("{} holds {}, not a number; correct it", name, one.dump());
      return one.get<std::int64_t>() == layer;
    });
  }

 private:
  const Json& json_;
  std::string where_;
};

class Derivation {
 public:
  Derivation(const Config& config, const Family& family, const ModelShapeOptions& options)
      : config_(config), family_(family), options_(options) {}

  /// Of matmuls().
  std::optional<ModelExperts> experts() const { return experts_; }
  std::vector<ModelMatmul> matmuls() {
    layers_ = config_.need("num_hidden_layers");
    hidden_ = config_.need("hidden_size");
    heads_ = config_.need("num_attention_heads");
    family_.latent ? latent_attention() : attention();
    std::int64_t sparse = 0;
    for (std::int64_t layer = 0; layer < layers_; ++layer) sparse += has_experts(layer);
    if (sparse < layers_) gated("", config_.need(family_.dense_inner), layers_ - sparse, dense_bias());
    if (sparse > 0) mixture(sparse);
    return std::move(list_);
  }

 private:
  /// This rank's part of `whole`, which is what `field` says.
  std::int64_t part(std::int64_t whole, const char* field) const {
    const int ranks = options_.tensor_parallel;
    check(whole % ranks == 0, "--tp {}: {} = {} does not divide by it; choose another number of ranks", ranks, field,
          whole);
    return whole / ranks;
  }
  void add(const std::string& label, std::int64_t k, std::int64_t n, std::int64_t count, bool bias = false,
           bool expert = false) {
    if (k % 8 != 0 || n % 8 != 0)
      config_.corrupt("{} is {} x {} for a rank of {}: q4 multiplies by sizes that are multiples of 8", label, k, n,
                      options_.tensor_parallel);
    list_.push_back({label, k, n, bias, expert, count});
  }

  void attention() {
    const std::int64_t kv_heads = config_.number("num_key_value_heads").value_or(heads_);
    std::int64_t head_dim = config_.number("head_dim").value_or(family_.head_dim);
    if (head_dim == 0) {
      if (hidden_ % heads_ != 0)
        config_.corrupt("head_dim is missing, and hidden_size = {} does not divide by num_attention_heads = {}",
                        hidden_, heads_);
      head_dim = hidden_ / heads_;
    }
    const int ranks = options_.tensor_parallel;
    const std::int64_t q = part(heads_, "num_attention_heads") * head_dim;
    check(kv_heads % ranks == 0 || ranks % kv_heads == 0,
          "--tp {}: num_key_value_heads = {} neither divides by it nor into it; choose another number of ranks", ranks,
          kv_heads);
    const std::int64_t kv = std::max<std::int64_t>(1, kv_heads / ranks) * head_dim;
    const bool bias = config_.flag("attention_bias", config_.flag("qkv_bias", family_.qkv_bias));
    if (options_.fused) {
      add("qkv", hidden_, q + 2 * kv, layers_, bias);
    } else {
      add("q", hidden_, q, layers_, bias);
      add("k", hidden_, kv, layers_, bias);
      add("v", hidden_, kv, layers_, bias);
    }
    add("o", q, hidden_, layers_, bias && family_.output_bias);
  }

  /// The projections to the latent space are whole on every rank.
  void latent_attention() {
    const std::int64_t heads = part(heads_, "num_attention_heads"), nope = config_.need("qk_nope_head_dim"),
                       rope = config_.need("qk_rope_head_dim"), v = config_.need("v_head_dim"),
                       kv_rank = config_.need("kv_lora_rank");
    const auto q_rank = config_.number("q_lora_rank");
    const bool bias = config_.flag("attention_bias", false);
    if (q_rank && options_.fused) {
      add("q_a kv_a", hidden_, *q_rank + kv_rank + rope, layers_, bias);
    } else {
      if (q_rank) add("q_a", hidden_, *q_rank, layers_, bias);
      add("kv_a", hidden_, kv_rank + rope, layers_, bias);
    }
    add(q_rank ? "q_b" : "q", q_rank.value_or(hidden_), heads * (nope + rope), layers_);
    add("kv_b", kv_rank, heads * (nope + v), layers_);
    add("o", heads * v, hidden_, layers_, bias);
  }

  bool dense_bias() const { return config_.flag("mlp_bias", false); }

  void gated(const std::string& prefix, std::int64_t inner, std::int64_t count, bool bias, bool expert = false) {
    const std::int64_t n = part(inner, prefix.empty() ? family_.dense_inner : "the inner size of experts");
    if (options_.fused) {
      add(prefix + "gate_up", hidden_, 2 * n, count, bias, expert);
    } else {
      add(prefix + "gate", hidden_, n, count, bias, expert);
      add(prefix + "up", hidden_, n, count, bias, expert);
    }
    add(prefix + "down", n, hidden_, count, bias, expert);
  }

  bool has_experts(std::int64_t layer) const {
    switch (family_.mixture) {
      case Mixture::kNone:
        return false;
      case Mixture::kAll:
        return true;
      case Mixture::kStep:
        return (layer + 1) % config_.number("decoder_sparse_step").value_or(1) == 0 &&
               !config_.lists("mlp_only_layers", layer) && config_.number(family_.experts, 0).value_or(1) > 0;
      case Mixture::kAfter:
        return config_.find(family_.experts) != nullptr &&
               layer >= config_.number("first_k_dense_replace", 0).value_or(0) &&
               layer % config_.number("moe_layer_freq").value_or(1) == 0;
      case Mixture::kInterleave:
        if (config_.find("moe_layers") != nullptr) return config_.lists("moe_layers", layer);
        return (layer + 1) % config_.number("interleave_moe_layer_step").value_or(1) == 0;
    }
    return false;
  }

  void mixture(std::int64_t layers) {
    const std::int64_t inner = config_.need(family_.expert_inner);
    if (const auto topk = config_.number("num_experts_per_tok"))
      experts_ = {config_.need(family_.experts), *topk, hidden_, part(inner, family_.expert_inner), family_.expert_bias,
                  family_.expert_activation};
    gated("expert ", inner, layers * config_.need(family_.experts), family_.expert_bias, true);
    if (family_.shared_inner != nullptr) gated("shared ", config_.need(family_.shared_inner), layers, false);
    if (family_.shared_count != nullptr)
      if (const auto shared = config_.number(family_.shared_count, 0); shared.value_or(0) > 0)
        gated("shared ", *shared * inner, layers, false);
  }

  const Config& config_;
  const Family& family_;
  const ModelShapeOptions& options_;
  std::int64_t layers_ = 0, hidden_ = 0, heads_ = 0;
  std::vector<ModelMatmul> list_;
  std::optional<ModelExperts> experts_;
};

/// The object that describes the language model: the whole file, or a part of it.
const Json* text_part(const Json& json, std::string& where) {
  const auto known = [](const Json& part) {
    const auto type = part.find("model_type");
    return type != part.end() && type->is_string() &&
           std::any_of(std::begin(kFamilies), std::end(kFamilies), [&](const Family& f) { return *type == f.type; });
  };
  if (known(json)) return &json;
  for (const char* name : {"text_config", "language_config", "llm_config"})
    if (const auto at = json.find(name); at != json.end() && at->is_object() && known(*at)) {
      where += std::string(": ") + name;
      return &*at;
    }
  return nullptr;
}

/// What the readers of checkpoints throw, without the name of their call: here a file alone was named.
template <class Read>
auto without_call(const Read& read) {
  try {
    return read();
  } catch (const Error& error) {
    constexpr std::string_view kCall = "Checkpoint::open: ";
    std::string_view text = error.what();
    if (text.starts_with(kCall)) text.remove_prefix(kCall.size());
    fail(error.code(), "{}", text);
  }
}

}  // namespace

std::string read_config_file(const std::string& path) {
  std::error_code ignored;
  const std::string file = std::filesystem::is_directory(path, ignored) ? path + "/config.json" : path;
  return without_call([&] { return checkpoint::read_text(file, std::size_t{64} << 20); });
}

ModelShapes model_shapes(const std::string& text, const std::string& where, const ModelShapeOptions& options) {
  const Json json = without_call([&] { return checkpoint::parse_json(checkpoint::without_nonfinite(text), where); });
  if (!json.is_object())
    fail(ErrorCode::kCorrupt, "{}: the file holds {}, not an object; name a config.json", where, json.type_name());
  std::string place = where;
  const Json* const part = text_part(json, place);
  if (part == nullptr) {
    const auto type = json.find("model_type");
    if (type == json.end() || !type->is_string())
      fail(ErrorCode::kCorrupt, "{}: model_type is missing or not text; name the config.json of a Hugging Face model",
           where);
    std::vector<std::string> types;
    for (const Family& family : kFamilies) types.emplace_back(family.type);
    fail(ErrorCode::kUnsupported,
         "{}: model_type is {}; the matrices of {} are known: give others to q4-bench and q4-autotune with --shapes "
         "FILE.csv, or the model itself with --checkpoint",
         where, quote(type->get<std::string>()), fmt::join(types, ", "));
  }
  ModelShapes shapes;
  shapes.type = part->at("model_type").get<std::string>();
  const Family& family =
      *std::find_if(std::begin(kFamilies), std::end(kFamilies), [&](const Family& f) { return shapes.type == f.type; });
  const Config config(*part, place);
  Derivation derivation(config, family, options);
  shapes.matmuls = derivation.matmuls();
  shapes.experts = derivation.experts();
  for (const Json* from : {&json, part}) {
    const auto at = from->find("quantization_config");
    if (at == from->end() || at->is_null()) continue;
    if (!at->is_object())
      fail(ErrorCode::kCorrupt, "{}: quantization_config is {}, not an object", where, at->type_name());
    const auto claimed = checkpoint::parse_config(at->dump(), where + ": quantization_config");
    if (claimed.bits.value_or(4) != 4)
      fail(ErrorCode::kUnsupported, "{}: quantization_config: bits is {}; q4 multiplies by 4-bit weights", where,
           *claimed.bits);
    shapes.group_size = claimed.group_size;
    shapes.act_order = claimed.desc_act;
    break;
  }
  return shapes;
}

}  // namespace q4::tools
