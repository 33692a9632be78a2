// Shapes from a config.json: against the numbers of published models, and what is wrong with a config.
#include <doctest/doctest.h>

#include <nlohmann/json.hpp>
#include <q4/error.hpp>
#include <set>

#include "checkpoint_maker.hpp"
#include "sandbox.hpp"
#include "tools/common/model_config.hpp"
#include "tools/common/shapes.hpp"

namespace q4::tools {
namespace {

using test::error_of;
using Json = nlohmann::json;

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

std::vector<ModelMatmul> matmuls(const std::string& json, bool fused = true, int ranks = 1) {
  return model_shapes(json, "config.json", {fused, ranks}).matmuls;
}

/// "label k n count", with "b" for a bias and "e" for an expert.
std::vector<std::string> lines(const std::vector<ModelMatmul>& list) {
  std::vector<std::string> result;
  for (const ModelMatmul& m : list)
    result.push_back(m.label + " " + std::to_string(m.k) + "x" + std::to_string(m.n) + " " + std::to_string(m.count) +
                     (m.bias ? " b" : "") + (m.expert ? " e" : ""));
  return result;
}
using Lines = std::vector<std::string>;

const std::string kLlama =
    R"({"model_type":"llama","hidden_size":4096,"intermediate_size":14336,"num_attention_heads":32,)"
    R"("num_key_value_heads":8,"num_hidden_layers":32})";

std::string with(const std::string& json, const std::string& field, const std::string& value) {
  Json parsed = Json::parse(json);
  if (value.empty())
    parsed.erase(field);
  else
    parsed[field] = Json::parse(value);
  return parsed.dump();
}

TEST_CASE("config: the shapes that were written down by hand for the same models") {
  const std::pair<const char*, std::string> models[] = {
      {"llama-3-8b", kLlama},
      {"llama-2-7b", R"({"model_type":"llama","hidden_size":4096,"intermediate_size":11008,"num_attention_heads":32,
                         "num_hidden_layers":32})"},
      {"qwen2.5-7b", R"({"model_type":"qwen2","hidden_size":3584,"intermediate_size":18944,"num_attention_heads":28,
                         "num_key_value_heads":4,"num_hidden_layers":28})"},
      {"qwen2.5-72b", R"({"model_type":"qwen2","hidden_size":8192,"intermediate_size":29568,"num_attention_heads":64,
                          "num_key_value_heads":8,"num_hidden_layers":80})"}};
  for (const auto& [name, config] : models) {
    INFO(name);
    const auto want = model_shapes(name);
    const auto got = matmuls(config);
    REQUIRE(got.size() == want.size());
    for (std::size_t i = 0; i < got.size(); ++i) {
      CHECK(got[i].label == want[i].label);
      CHECK(got[i].k == want[i].k);
      CHECK(got[i].n == want[i].n);
      CHECK(got[i].bias == (contains(name, "qwen") && i == 0));
    }
  }
}

TEST_CASE("config: separate matrices, and slices of ranks") {
  CHECK(lines(matmuls(kLlama, false)) == Lines{"q 4096x4096 32", "k 4096x1024 32", "v 4096x1024 32", "o 4096x4096 32",
                                               "gate 4096x14336 32", "up 4096x14336 32", "down 14336x4096 32"});
  CHECK(lines(matmuls(kLlama, true, 4)) ==
        Lines{"qkv 4096x1536 32", "o 1024x4096 32", "gate_up 4096x7168 32", "down 3584x4096 32"});
  CHECK(matmuls(kLlama, true, 16)[0].n == 2 * 128 + 2 * 128);  // 8 key-value heads: two ranks hold each
  CHECK(contains(error_of([] { matmuls(kLlama, true, 3); }), "--tp 3: num_attention_heads = 32"));
  CHECK(contains(error_of([] { matmuls(with(kLlama, "num_key_value_heads", "12"), true, 8); }),
                 "num_key_value_heads = 12 neither"));
  CHECK(contains(error_of([] { matmuls(with(kLlama, "intermediate_size", "14340"), true, 8); }),
                 "intermediate_size = 14340 does not divide"));
}

TEST_CASE("config: mixtures of experts and latent attention") {
  const auto of = [](const char* model, int ranks = 1) {
    const test::TempFolder folder;
    const Json all = Json::parse(test::read_file(test::source_dir() + "/share/q4/models.json"));
    return lines(matmuls(all.at(model).dump(), true, ranks));
  };
  CHECK(of("mixtral-8x7b") ==
        Lines{"qkv 4096x6144 32", "o 4096x4096 32", "expert gate_up 4096x28672 256 e", "expert down 14336x4096 256 e"});
  CHECK(of("qwen3-30b-a3b") ==
        Lines{"qkv 2048x5120 48", "o 4096x2048 48", "expert gate_up 2048x1536 6144 e", "expert down 768x2048 6144 e"});
  CHECK(of("gpt-oss-20b") == Lines{"qkv 2880x5120 24 b", "o 4096x2880 24 b", "expert gate_up 2880x5760 768 b e",
                                   "expert down 2880x2880 768 b e"});
  CHECK(of("deepseek-v3") == Lines{"q_a kv_a 7168x2112 61", "q_b 1536x24576 61", "kv_b 512x32768 61", "o 16384x7168 61",
                                   "gate_up 7168x36864 3", "down 18432x7168 3", "expert gate_up 7168x4096 14848 e",
                                   "expert down 2048x7168 14848 e", "shared gate_up 7168x4096 58",
                                   "shared down 2048x7168 58"});
  CHECK(of("deepseek-v3", 8)[0] == "q_a kv_a 7168x2112 61");  // whole on each rank
  CHECK(of("deepseek-v3", 8)[3] == "o 2048x7168 61");
  CHECK(of("deepseek-v2-lite")[0] == "kv_a 2048x576 27");
  CHECK(of("deepseek-v2-lite")[1] == "q 2048x3072 27");
  CHECK(of("llama-4-maverick") == Lines{"qkv 5120x7168 48", "o 5120x5120 48", "gate_up 5120x32768 24",
                                        "down 16384x5120 24", "expert gate_up 5120x16384 3072 e",
                                        "expert down 8192x5120 3072 e", "shared gate_up 5120x16384 24",
                                        "shared down 8192x5120 24"});
  const std::string qwen =
      R"({"model_type":"qwen2_moe","hidden_size":64,"intermediate_size":128,"num_attention_heads":4,
      "num_hidden_layers":4,"num_experts":8,"moe_intermediate_size":32,"shared_expert_intermediate_size":96,
      "mlp_only_layers":[1],"decoder_sparse_step":2})";
  CHECK(lines(matmuls(qwen)) == Lines{"qkv 64x192 4 b", "o 64x64 4", "gate_up 64x256 3", "down 128x64 3",
                                      "expert gate_up 64x64 8 e", "expert down 32x64 8 e", "shared gate_up 64x192 1",
                                      "shared down 96x64 1"});
}

TEST_CASE("config: layers of experts, as plans have them") {
  const auto of = [](const char* model, int ranks = 1) {
    ShapeOptions options;
    options.model = model, options.tensor_parallel = ranks, options.group = 64, options.group_given = true;
    return options.experts({.max_m = 40, .activation = DType::kBF16});
  };
  CHECK(of("qwen3-8b").empty());
  const auto qwen = of("qwen3-30b-a3b", 2);
  REQUIRE(qwen.size() == 1);
  CHECK((qwen[0].experts == 128 && qwen[0].k == 2048 && qwen[0].width == 384 && qwen[0].group_size == 64));
  CHECK((qwen[0].plan.topk == 8 && qwen[0].plan.max_tokens == 40 && qwen[0].plan.dtype == DType::kBF16));
  CHECK((!qwen[0].bias && qwen[0].plan.activation == MoeActivation::kSiluMul));
  const auto oss = of("gpt-oss-20b");
  REQUIRE(oss.size() == 1);
  CHECK((oss[0].bias && oss[0].plan.topk == 4 && oss[0].plan.activation == MoeActivation::kSwigluClamp));
}

TEST_CASE("config: every model of the built-in list has its shapes") {
  std::set<std::string> names;
  for (const std::string& name : model_names()) {
    INFO(name);
    CHECK(names.insert(name).second);
    CHECK(model_shapes(name).size() >= 4);
  }
  CHECK(names.count("qwen3-8b") == 1);
  ShapeOptions options;
  options.model = "llama-3-70b", options.tensor_parallel = 8, options.separate = true;
  const auto shapes = options.resolve("sweep");
  REQUIRE(shapes.size() == 5);  // k and v, gate and up have the same shape
  CHECK(shapes[0].n == 1024);
  CHECK(options.biases(true) == std::vector<bool>{false});
}

TEST_CASE("config: quantization is what the config says unless the command line says it") {
  const test::Sandbox box;
  const std::string file = box.file("config.json");
  test::write_file(
      file, with(kLlama, "quantization_config", R"({"quant_method":"gptq","bits":4,"group_size":32,"desc_act":true})"));
  ShapeOptions options;
  options.config = file;
  CHECK(options.resolve("sweep")[0].group == 32);
  CHECK(options.resolve("sweep")[0].act_order);
  options.group_given = true, options.group = 64;
  CHECK(options.resolve("sweep")[0].group == 64);
  const test::Ended listed = box.run("q4-info --json --tp 2 --config " + file);
  REQUIRE(listed.status == 0);
  const Json json = Json::parse(listed.out);
  CHECK(json["group_size"] == 32);
  CHECK(json["matmuls"][0]["n"] == 3072);
  CHECK(contains(box.run("q4-info --separate --config " + file).out, "gate    4096  14336"));
  CHECK(box.run("q4-bench --config " + file + " --model llama-3-8b").status == 2);
  CHECK(box.run("q4-info --tp 2").status == 2);
  CHECK(box.run("q4-info --config " + box.file("none")).status == 2);
  test::write_file(file, "{\"model_type\": \"llama\"}");
  for (const char* tool : {"q4-bench --device cpu", "q4-autotune --device cpu", "q4-cache build --target sm_90a",
                           "q4-cache warmup --device cpu", "q4-info"}) {
    const test::Ended ended = box.run(std::string(tool) + " --config " + file, true);
    CHECK(ended.status == 2);
    CHECK_MESSAGE(contains(ended.out, "num_hidden_layers is missing"), ended.out);
  }
}

TEST_CASE("config: what is wrong is said with its field, value and remedy") {
  const auto refused = [](const std::string& json, const std::string& part) {
    const std::string error = error_of([&] { matmuls(json); });
    CHECK_MESSAGE((contains(error, part) && contains(error, "config.json")), error);
  };
  refused("", "not valid JSON");
  CHECK_FALSE(contains(error_of([&] { matmuls("{"); }), "Checkpoint"));
  refused("[1]", "holds array, not an object");
  refused("{}", "model_type is missing");
  refused(R"({"model_type": 7})", "model_type is missing or not text");
  refused(R"({"model_type": "mamba"})", "model_type is \"mamba\"; the matrices of llama, mistral");
  refused(R"({"model_type": "x", "text_config": {"model_type": "y"}})", "model_type is \"x\"");
  for (const char* field : {"hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers"}) {
    refused(with(kLlama, field, ""), std::string(field) + " is missing");
    refused(with(kLlama, field, "null"), std::string(field) + " is missing");
    for (const char* bad : {"\"4096\"", "4096.5", "[1]", "true", "{}"})
      refused(with(kLlama, field, bad), std::string(field) + " is ");
    for (const char* bad : {"0", "-8", "99999999999", "18446744073709551615"})
      refused(with(kLlama, field, bad), "not from 1 to 16777216");
  }
  refused(with(kLlama, "hidden_size", "4095"), "hidden_size = 4095 does not divide by num_attention_heads = 32");
  refused(with(kLlama, "intermediate_size", "1001"), "multiples of 8");
  refused(with(kLlama, "attention_bias", "1"), "attention_bias is 1, not true or false");
  refused(with(kLlama, "quantization_config", "7"), "quantization_config is number");
  refused(with(kLlama, "quantization_config", R"({"quant_method":"gptq","bits":8})"), "bits is 8");
  refused(R"({"model_type":"qwen3_moe","hidden_size":64,"num_attention_heads":4,"num_hidden_layers":2,"num_experts":8,)"
          R"("moe_intermediate_size":32,"mlp_only_layers":["x"]})",
          "mlp_only_layers holds \"x\", not a number");
  const std::string nested =
      R"({"model_type":"gemma3","text_config":)" + with(kLlama, "model_type", "\"gemma3_text\"") + "}";
  CHECK(matmuls(nested)[0].n == (32 + 16) * 256);
  refused(R"({"model_type":"gemma3","text_config":)" +
              with(with(kLlama, "model_type", "\"gemma3_text\""), "hidden_size", "\"x\"") + "}",
          "config.json: text_config: hidden_size is \"x\"");
}

}  // namespace
}  // namespace q4::tools
