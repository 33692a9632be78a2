// The quantization fields: every spelling, every value that q4 does not compute, every contradiction.
#include "runtime/checkpoint/config.hpp"

#include <doctest/doctest.h>

#include <filesystem>

#include "checkpoint_maker.hpp"

namespace q4::test {
namespace {

using checkpoint::ClaimedConfig;
using checkpoint::Packing;
using checkpoint::parse_config;
using checkpoint::read_config;

TEST_CASE("config: the fields and their synonyms") {
  const ClaimedConfig gptq = parse_config(
      R"({"bits":4,"group_size":64,"desc_act":true,"sym":false,"quant_method":"gptq","checkpoint_format":"gptq_v2","pack_dtype":"int32"})",
      "c");
  CHECK(gptq.packing == Packing::kGptq);
  CHECK(gptq.group_size == 64);
  CHECK(gptq.desc_act == true);
  CHECK(gptq.sym == false);
  CHECK(gptq.zeros == ZeroFormat::kV2);
  CHECK(gptq.path == "c");

  const ClaimedConfig old = parse_config(R"({"wbits":4,"group_size":-1,"checkpoint_format":"gptq"})", "c");
  CHECK(old.packing == Packing::kGptq);
  CHECK(old.bits == 4);
  CHECK(old.group_size == -1);
  CHECK_FALSE(old.desc_act.has_value());
  CHECK_FALSE(old.sym.has_value());
  CHECK(old.zeros == ZeroFormat::kV1);

  // quant_config.json of AutoAWQ names no method.
  const ClaimedConfig awq = parse_config(R"({"zero_point":true,"q_group_size":128,"w_bit":4,"version":"GEMM"})", "c");
  CHECK(awq.packing == Packing::kAwqGemm);
  CHECK(awq.group_size == 128);
  CHECK(awq.sym == false);
  for (const char* same : {R"({"quant_method":"awq","version":"GEMM","format":"gemm"})", R"({"version":"exllama"})",
                           R"({"quant_method":"AWQ","version":"ipex"})", R"({"version":"exllama","format":"gemm"})"})
    CHECK_MESSAGE(parse_config(same, "c").packing == Packing::kAwqGemm, same);

  CHECK(parse_config(R"({"quant_method":"compressed_tensors","format":"pack-quantized"})", "c").packing ==
        Packing::kCompressed);

  CHECK(parse_config(R"({"quant_method":"sparseml","format":"pack-quantized"})", "c").packing == Packing::kCompressed);

  const ClaimedConfig silent = parse_config(R"({"bits":null,"lm_head":true,"modules_to_not_convert":["a"]})", "c");
  CHECK_FALSE(silent.packing.has_value());
  CHECK_FALSE(silent.group_size.has_value());
  CHECK_FALSE(parse_config(R"({"bits":4,"w_bit":4})", "c").zeros.has_value());
  CHECK_NOTHROW(parse_config(R"({"dynamic":{"-:lm_head":{"bits":8},"+:down":{"bits":4,"group_size":32}}})", "c"));
  CHECK_NOTHROW(parse_config(R"({"dynamic":false})", "c"));
  CHECK_NOTHROW(parse_config(R"({"dynamic":{"-:lm_head":null}})", "c"));

  const auto needs = [](const char* json) { return parse_config(json, "c").needs_g_idx(); };
  CHECK(needs(R"({"desc_act":true})"));
  CHECK_FALSE(needs(R"({"desc_act":true,"static_groups":true})"));
  CHECK_FALSE(needs(R"({"static_groups":false})"));
  CHECK(needs(R"({"config_groups":{"g":{"targets":["Linear"],"weights":{"actorder":"group"}}}})"));
  CHECK(needs(R"({"config_groups":{"g":{"targets":["Linear"],"weights":{"actorder":true}}}})"));
  CHECK_FALSE(needs(R"({"config_groups":{"g":{"targets":["Linear"],"weights":{"actorder":"weight"}}}})"));
}

TEST_CASE("config: what q4 does not compute, and what contradicts itself") {
  const struct {
    const char *json, *error;
  } cases[] = {
      {R"({"quant_method":"bitsandbytes"})", "unsupported: Checkpoint::open: c: quant_method is \"bitsandbytes\""},
      {R"({"quant_method":"awq","version":"hybrid"})", "unsupported: Checkpoint::open: c: version is \"hybrid\""},
      {R"({"quant_method":"compressed-tensors","format":"float-quantized"})", "format is \"float-quantized\""},
      {R"({"quant_method":"auto-round","data_type":"mx_fp"})", "data_type is \"mx_fp\""},
      {R"({"pack_dtype":"int24"})", "pack_dtype is \"int24\""},
      {R"({"dynamic":{"+:(":{"bits":8}}})", "dynamic: the expression \"(\" does not compile"},
      {R"({"extra_config":{"[":{"bits":8}}})", "extra_config: the expression \"[\" does not compile"},
      {R"({"config_groups":{"g":{"weights":{},"targets":["re:*"]}}})", "c: config_groups.g: targets: the expression"},
      {R"({"config_groups":{"g":{"weights":{"num_bits":"4"}}}})", "num_bits is \"4\", not a whole number; correct it"},
      {R"({"config_groups":{"g":{"weights":{},"targets":"Linear"}}})",
       "targets is \"Linear\", not an array; correct it"},
      {R"({"config_groups":[]})", "config_groups is [], not an object"},
      {R"({"extra_config":{"a":8}})", "extra_config: \"a\" is 8, not an object"},
      {R"({"bits":0})", "bits is 0"},
      {R"({"dynamic":[1]})", "corrupt: Checkpoint::open: c: dynamic is [1], not an object; correct it"},
      {R"({"bits":4,"w_bit":8})", "corrupt: Checkpoint::open: c: bits and w_bit mean the same and differ"},
      {R"({"bits":"4"})", "corrupt: Checkpoint::open: c: bits is \"4\", not a whole number"},
      {R"({"bits":4.5})", "corrupt: Checkpoint::open: c: bits is 4.5, not a whole number; correct it"},
      {R"({"group_size":0})", "group_size is 0, neither -1"},
      {R"({"group_size":-2})", "group_size is -2, neither -1"},
      {R"({"group_size":18446744073709551615})", "group_size is 18446744073709551615, not"},
      {R"({"desc_act":"yes"})", "desc_act is \"yes\", not true or false; correct it"},
      {R"({"quant_method":4})", "quant_method is 4, not text; correct it"},
      {R"({"quant_method":"gptq","version":"gemm"})", "exclude each other"},
      {R"({"checkpoint_format":"gptq","format":"gptq_v2"})", "checkpoint_format and format mean the same and differ"},
      {R"({"dynamic":{"+:a":8}})", "dynamic: \"+:a\" is 8, not an object; correct it"},
      {R"({"static_groups":1})", "static_groups is 1, not true or false"},
      {R"({"pack_dtype":[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23]})",
       "is a long array, not text"},
      {R"({"bits":4,"bits":4})", "key \"bits\" twice"},
  };
  for (const auto& c : cases) {
    const std::string error = error_of([&] { parse_config(c.json, "c"); });
    CHECK_MESSAGE(error.find(c.error) != std::string::npos, c.json, " gave ", error);
  }
}

TEST_CASE("config: AutoRound before packing_format says its packing in the backend") {
  const auto zeros = [](const char* fields) {
    return parse_config(R"({"quant_method":"intel/auto-round","bits":4,)" + std::string(fields) + "}", "c").zeros;
  };
  CHECK(zeros(R"("sym":false,"backend":"auto_round:exllamav2")") == ZeroFormat::kV2);
  CHECK_FALSE(zeros(R"("sym":false,"backend":"auto_round","packing_format":"auto")").has_value());
  CHECK_FALSE(zeros(R"("sym":true,"backend":"auto_round:exllamav2")").has_value());  // the stored zeros say it
  CHECK_FALSE(zeros(R"("sym":false,"backend":"gptq:exllamav2")").has_value());
  CHECK_FALSE(zeros(R"("sym":false,"backend":"auto_round:gptq:exllamav2")").has_value());
  CHECK_FALSE(zeros(R"("sym":false,"backend":"auto")").has_value());
  CHECK(zeros(R"("sym":false,"backend":"auto_round","packing_format":"auto_round:auto_gptq")") == ZeroFormat::kV1);
  CHECK(zeros(R"("packing_format":"auto_round:auto_gptq:exllamav2")") == ZeroFormat::kV1);
  CHECK(zeros(R"("packing_format":"auto_round:exllamav2")") == ZeroFormat::kV2);
  const char* const awq = R"({"quant_method":"auto-round","backend":"auto_round:awq"})";
  CHECK(parse_config(awq, "c").packing == Packing::kAwqGemm);
}

TEST_CASE("config: rules give single modules their bits") {
  const ClaimedConfig config = parse_config(
      R"({"bits":4,"dynamic":{"-:.*gate$":{},"+:.*\\.0\\..*down":{"bits":8},"model\\.layers\\.1\\.":{"group_size":32}}})",
      "c");
  CHECK(config.bits_of("model.layers.0.mlp.down_proj") == 8);
  CHECK(config.bits_of("model.layers.1.mlp.down_proj") == 4);
  CHECK(config.bits_of("lm_head") == 4);
  const ClaimedConfig extra =
      parse_config(R"({"bits":4,"extra_config":{"lm_head":{"bits":8},".*[02]\\.q":{"bits":2}}})", "c");
  CHECK(extra.bits_of("lm_head") == 8);
  CHECK(extra.bits_of("model.lm_head") == 4);  // a plain name is no expression
  CHECK(extra.bits_of("model.layers.2.q") == 2);
  const ClaimedConfig groups = parse_config(
      R"({"quant_method":"compressed-tensors","format":"mixed-precision","version":"0.19.0","config_groups":{
          "a":{"targets":["Linear"],"weights":{"num_bits":4}},"b":{"targets":["re:.*down_proj$"],"weights":{"num_bits":8}}}})",
      "c");
  CHECK(groups.packing == Packing::kCompressed);
  CHECK(groups.bits_of("model.layers.1.mlp.down_proj") == 8);
  CHECK(groups.bits_of("model.layers.1.mlp.up_proj") == 4);
  CHECK(groups.may_have("model.layers.1.mlp.down_proj", 4));  // by its class, the tensors may say
  CHECK_FALSE(groups.may_have("model.layers.1.mlp.up_proj", 8));
  CHECK(parse_config("{}", "c").may_have("any", 3));
  // Expressions and names that would keep a backtracking matcher busy for ever, or overflow its stack.
  const ClaimedConfig slow =
      parse_config(R"({"bits":4,"dynamic":{"(a+)+$":{"bits":8},"(?P<x>b|b)*c":{"bits":2}}})", "c");
  CHECK(slow.bits_of(std::string(1999, 'a') + "b") == 4);
  CHECK(slow.bits_of(std::string(1 << 20, 'a')) == 4);
  CHECK(slow.bits_of("bbc") == 2);
}

/// The zeros' format that the files of a folder say together.
ZeroFormat zeros_of(const TempFolder& folder) { return read_config(folder.path()).value().zeros.value(); }

TEST_CASE("config: every file and every depth is read") {
  const std::string v2 = R"({"quant_method":"gptq","checkpoint_format":"gptq_v2"})";
  for (const char* nested :
       {R"({"quantization_config":X})", R"({"text_config":{"quantization_config":X}})",
        R"({"llm_config":{"quantization_config":X},"vision_config":{}})",
        R"({"language_config":{"quantization_config":X}})",
        R"({"thinker_config":{"text_config":{"quantization_config":X}}})", R"({"a":{"compression_config":X}})"}) {
    const TempFolder folder;
    std::string text = nested;
    text.replace(text.find('X'), 1, v2);
    write_file(folder / "config.json", text);
    CHECK_MESSAGE(zeros_of(folder) == ZeroFormat::kV2, nested);
  }
  for (const char* name : {"quantize_config.json", "quantization_config.json", "quant_config.json"}) {
    const TempFolder folder;
    write_file(folder / "config.json", R"({"quantization_config":{"quant_method":"gptq","bits":4}})");
    write_file(folder / name, v2);
    CHECK_MESSAGE(zeros_of(folder) == ZeroFormat::kV2, name);
    write_file(folder / name, R"({"quantization_config":)" + v2 + "}");
    CHECK_MESSAGE(zeros_of(folder) == ZeroFormat::kV2, name);
  }
}

TEST_CASE("config: files that contradict each other are refused with the names of both") {
  const struct {
    const char *one, *other, *error;
  } cases[] = {
      {R"({"checkpoint_format":"gptq"})", R"({"checkpoint_format":"gptq_v2"})",
       "the format of zeros is gptq (v1) and gptq_v2"},
      {R"({"quant_method":"awq"})", R"({"quant_method":"gptq"})", "the packing is AWQ gemm and GPTQ"},
      {R"({"bits":4})", R"({"wbits":8})", "bits is 4 and 8"},
      {R"({"group_size":128})", R"({"q_group_size":-1})", "group_size is 128 and -1"},
      {R"({"version":"GEMM"})", R"({"format":"exllama"})", nullptr},
      {R"({"quant_method":"auto-round","packing_format":"auto_round:auto_gptq"})",
       R"({"quant_method":"gptq","format":"gptq"})", nullptr},
  };
  for (const auto& c : cases) {
    const TempFolder folder;
    write_file(folder / "config.json", std::string(R"({"llm_config":{"quantization_config":)") + c.one + "}}");
    write_file(folder / "quantize_config.json", c.other);
    const std::string error = error_of([&] { read_config(folder.path()); });
    if (c.error == nullptr) {
      CHECK(error == "no error");
      continue;
    }
    CHECK_MESSAGE(error.find(c.error) != std::string::npos, error);
    CHECK_MESSAGE(error.find("config.json: llm_config.quantization_config and ") != std::string::npos, error);
    CHECK_MESSAGE(error.find("quantize_config.json contradict each other") != std::string::npos, error);
  }
}

TEST_CASE("config: a file that is there must be readable") {
  const TempFolder folder;
  CHECK_FALSE(read_config(folder.path()).has_value());
  write_file(folder / "config.json", R"({"hidden_size":8,"limit":[0.0,Infinity,-Infinity,NaN],"s":"NaN \" Infinity"})");
  CHECK_FALSE(read_config(folder.path()).has_value());
  write_file(folder / "quantize_config.json", R"({"group_size":32})");
  CHECK(read_config(folder.path())->group_size == 32);
  CHECK(read_config(folder.path())->path == folder / "quantize_config.json");
  std::filesystem::create_symlink("quant_config.json", folder / "quant_config.json");
  CHECK(error_of([&] { read_config(folder.path()); }).find("quant_config.json: stat: Too many levels") !=
        std::string::npos);
  std::filesystem::remove(folder / "quant_config.json");
  write_file(folder / "config.json", R"({"quantization_config":[]})");
  CHECK(error_of([&] { read_config(folder.path()); }).find("quantization_config is [], not an object; correct it") !=
        std::string::npos);
  write_file(folder / "config.json", "[]");
  CHECK(error_of([&] { read_config(folder.path()); }).find("not an object") != std::string::npos);
  write_file(folder / "config.json", "");
  CHECK(error_of([&] { read_config(folder.path()); }).find("corrupt: ") == 0);
}

}  // namespace
}  // namespace q4::test
