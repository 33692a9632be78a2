// The quantization fields: every spelling, every value that q4 does not compute, every contradiction.
#include "runtime/checkpoint/config.hpp"

#include <doctest/doctest.h>

#include "checkpoint_maker.hpp"

namespace q4::test {
namespace {

using checkpoint::ClaimedConfig;
using checkpoint::parse_config;
using checkpoint::read_config;

TEST_CASE("config: the fields and their synonyms") {
  const ClaimedConfig gptq = parse_config(
      R"({"bits":4,"group_size":64,"desc_act":true,"sym":false,"quant_method":"gptq","checkpoint_format":"gptq_v2","pack_dtype":"int32"})",
      "c");
  CHECK(gptq.format == QuantFormat::kGptq);
  CHECK(gptq.group_size == 64);
  CHECK(gptq.desc_act);
  CHECK_FALSE(gptq.sym);
  CHECK(gptq.zeros == ZeroFormat::kV2);
  CHECK(gptq.path == "c");

  const ClaimedConfig old = parse_config(R"({"wbits":4,"group_size":-1,"checkpoint_format":"gptq"})", "c");
  CHECK(old.format == QuantFormat::kGptq);
  CHECK(old.group_size == -1);
  CHECK_FALSE(old.desc_act);
  CHECK(old.sym);
  CHECK(old.zeros == ZeroFormat::kAuto);

  // quant_config.json of AutoAWQ names no method.
  const ClaimedConfig awq = parse_config(R"({"zero_point":true,"q_group_size":128,"w_bit":4,"version":"GEMM"})", "c");
  CHECK(awq.format == QuantFormat::kAwq);
  CHECK(awq.group_size == 128);
  CHECK_FALSE(awq.sym);

  const ClaimedConfig silent = parse_config(R"({"bits":null,"lm_head":true,"modules_to_not_convert":["a"]})", "c");
  CHECK_FALSE(silent.format.has_value());
  CHECK_FALSE(silent.group_size.has_value());
  CHECK(parse_config(R"({"bits":4,"w_bit":4})", "c").zeros == ZeroFormat::kAuto);
  CHECK_NOTHROW(parse_config(R"({"dynamic":{"-:lm_head":{"bits":8},"+:down":{"bits":4,"group_size":32}}})", "c"));
  CHECK_NOTHROW(parse_config(R"({"dynamic":false})", "c"));
}

TEST_CASE("config: what q4 does not compute, and what contradicts itself") {
  const struct {
    const char *json, *error;
  } cases[] = {
      {R"({"bits":8})", "unsupported: Checkpoint::open: c: bits is 8"},
      {R"({"wbits":3})", "unsupported: Checkpoint::open: c: bits is 3"},
      {R"({"quant_method":"bitsandbytes"})", "unsupported: Checkpoint::open: c: quant_method is \"bitsandbytes\""},
      {R"({"quant_method":"awq","version":"gemv_fast"})", "(checkpoint_format, version) is \"gemv_fast\""},
      {R"({"checkpoint_format":"marlin"})", "is \"marlin\""},
      {R"({"is_marlin_format":true})", "unsupported: "},
      {R"({"pack_dtype":"int8"})", "pack_dtype is \"int8\""},
      {R"({"dynamic":{"+:model.layers.1":{"bits":8}}})", "dynamic: \"+:model.layers.1\": bits is 8"},
      {R"({"dynamic":{"lm_head":{"w_bit":8}}})", "dynamic: \"lm_head\": bits is 8"},
      {R"({"dynamic":[1]})", "corrupt: Checkpoint::open: c: dynamic is array"},
      {R"({"bits":4,"w_bit":8})", "corrupt: Checkpoint::open: c: bits and w_bit mean the same and differ"},
      {R"({"bits":"4"})", "corrupt: Checkpoint::open: c: bits is string"},
      {R"({"bits":4.5})", "corrupt: "},
      {R"({"group_size":0})", "group_size is 0, neither -1"},
      {R"({"group_size":-2})", "group_size is -2, neither -1"},
      {R"({"group_size":18446744073709551615})", "group_size is another number"},
      {R"({"desc_act":"yes"})", "desc_act is string"},
      {R"({"quant_method":4})", "quant_method is number"},
      {R"({"quant_method":"gptq","version":"gemm"})", "exclude each other"},
      {R"({"bits":4,"bits":4})", "key \"bits\" twice"},
  };
  for (const auto& c : cases) {
    const std::string error = error_of([&] { parse_config(c.json, "c"); });
    CHECK_MESSAGE(error.find(c.error) != std::string::npos, c.json, " gave ", error);
  }
}

TEST_CASE("config: which file counts") {
  const TempFolder folder;
  CHECK_FALSE(read_config(folder.path()).has_value());
  write_file(folder / "config.json", R"({"hidden_size":8,"limit":[0.0,Infinity,-Infinity,NaN],"s":"NaN \" Infinity"})");
  CHECK_FALSE(read_config(folder.path()).has_value());
  write_file(folder / "quant_config.json", R"({"version":"GEMM"})");
  CHECK(read_config(folder.path())->format == QuantFormat::kAwq);
  write_file(folder / "quantize_config.json", R"({"group_size":32})");
  CHECK(read_config(folder.path())->group_size == 32);
  write_file(folder / "config.json",
             R"({"text_config":{"quantization_config":{"quant_method":"gptq","group_size":16}}})");
  CHECK(read_config(folder.path())->group_size == 16);
  write_file(folder / "config.json",
             R"({"quantization_config":{"quant_method":"gptq","group_size":8},"text_config":{}})");
  CHECK(read_config(folder.path())->group_size == 8);
  CHECK(read_config(folder.path())->path == folder / "config.json");
  write_file(folder / "config.json", R"({"quantization_config":[]})");
  CHECK(error_of([&] { read_config(folder.path()); }).find("quantization_config is array") != std::string::npos);
  write_file(folder / "config.json", "[]");
  CHECK(error_of([&] { read_config(folder.path()); }).find("not an object") != std::string::npos);
  write_file(folder / "config.json", "");
  CHECK(error_of([&] { read_config(folder.path()); }).find("corrupt: ") == 0);
}

}  // namespace
}  // namespace q4::test
