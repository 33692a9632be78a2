// q4-bench --moe and q4-verify over a checkpoint with experts, as processes on the CPU.
#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "checkpoint_maker.hpp"
#include "runtime/expert_layers.hpp"
#include "sandbox.hpp"
#include "tools/bench/moe.hpp"

namespace q4::test {
namespace {

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

TEST_CASE("bench --moe: what it accepts") {
  const auto p = tools::parse_moe("128,8,2048,768");
  CHECK((p.experts == 128 && p.topk == 8 && p.k == 2048 && p.width == 768));
  CHECK(p.flops(2) == 6.0 * 2 * 8 * 2048 * 768);
  CHECK(p.expert_bytes() == 3.0 * 2048 * 768 / 2 + 2.5 * (16 * 2 * 768 + 6 * 2048));
  for (const char* bad :
       {"", "8,2,64", "8,2,64,32,1", "8,x,64,32", "0,1,64,32", "8,9,64,32", "8,2,60,32", "8,2,64,4"}) {
    CAPTURE(bad);
    CHECK(contains(error_of([&] { tools::parse_moe(bad); }), "--moe"));
  }
}

TEST_CASE("bench --moe: checks and times each number of tokens, and writes them") {
  const Sandbox box;
  const auto ended =
      box.run("q4-bench --device cpu --moe 6,2,64,48 --group 32 --act-order --m 1,5 --seconds 0.05 --csv " +
              box.file("moe.csv"));
  CHECK(ended.status == 0);
  CHECK(contains(ended.out, "cpu-experts"));
  const std::string csv = box.read("moe.csv");
  CHECK(csv.starts_with("kernel,k,n,group,act_order,m,us,tflops,gbps,rel_err,E,topk,"));
  CHECK(contains(csv, "cpu-experts,64,48,32,1,1,"));
  CHECK(contains(csv, "cpu-experts,64,48,32,1,5,"));
  const auto json = box.run("q4-bench --device cpu --moe 6,2,64,48 --m 3 --seconds 0.05 --routing zipf --json");
  const auto parsed = nlohmann::json::parse(json.out);
  CHECK(parsed["routing"] == "zipf");
  CHECK(parsed["points"][0]["E"] == 6);
  CHECK(parsed["points"][0]["exact"] == true);
  CHECK(parsed["points"][0]["rel_err"].get<double>() < 5e-4);
  CHECK(parsed["points"][0]["floor_us"].get<double>() > 0);
  const auto wrong = box.run("q4-bench --device cpu --moe 6,2,64 --m 1", true);
  CHECK(wrong.status == 2);
  CHECK(contains(wrong.out, "--moe = 6,2,64"));
  CHECK(box.run("q4-bench --device cpu --moe 6,2,64,48 --m 1 --tactic nonsense", true).status == 2);
}

/// Two layers of three experts each, the second one called as Mixtral's, and a matrix beside them.
std::vector<FileTensor> expert_files(const char* leave_out = "") {
  std::vector<FileTensor> all =
      file_tensors("model.layers.0.self_attn.q_proj", make_gptq({.k = 64, .n = 64, .group_size = 32}));
  const char* names[2][3] = {{"gate_proj", "up_proj", "down_proj"}, {"w1", "w3", "w2"}};
  std::uint64_t seed = 1;
  for (int layer = 0; layer < 2; ++layer)
    for (int e = 0; e < 3; ++e)
      for (int part = 0; part < 3; ++part) {
        MatrixSpec spec{
            .k = part == 2 ? 32 : 64, .n = part == 2 ? 64 : 32, .group_size = 32, .scale = 0.05, .seed = ++seed};
        const std::string name = "model.layers." + std::to_string(layer) + (layer ? ".block_sparse_moe" : ".mlp") +
                                 ".experts." + std::to_string(e) + "." + names[layer][part];
        if (name == leave_out) continue;
        for (const auto& t : file_tensors(name, make_gptq(spec))) all.push_back(t);
      }
  return all;
}

TEST_CASE("verify: layers of experts are found by their names") {
  const TempFolder folder;
  write_safetensors(folder / "model.safetensors", expert_files("model.layers.0.mlp.experts.1.up_proj"));
  const auto checkpoint = Checkpoint::open(folder.path());
  const auto layers = checkpoint::expert_layers(checkpoint.matrices());
  REQUIRE(layers.size() == 1);  // the other one lacks a matrix
  CHECK(layers[0].prefix == "model.layers.1.block_sparse_moe.experts");
  CHECK(layers[0].experts == 3);
  CHECK(layers[0].up == "w3");
}

TEST_CASE("verify: layers of experts are run as a whole") {
  const Sandbox box;
  const TempFolder folder;
  write_safetensors(folder / "model.safetensors", expert_files());
  const auto text = box.run("q4-verify " + folder.path() + " --device cpu --m 1,6");
  CHECK(text.status == 0);
  CHECK(contains(text.out, "model.layers.0.mlp.experts.*: a layer of 3 experts, 6 tokens"));
  CHECK(contains(text.out, "19 matrices and 2 layers of experts"));
  const auto json = box.run("q4-verify " + folder.path() + " --device cpu --m 6 --activation fp32 --json");
  const auto parsed = nlohmann::json::parse(json.out);
  REQUIRE(parsed["layers"].size() == 2);
  for (const auto& layer : parsed["layers"]) {
    CHECK(layer["ok"] == true);
    CHECK(layer["error"].get<double>() < 2e-6);
    CHECK(layer["tactic"] == "cpu-experts");
  }
  CHECK(box.run("q4-verify " + folder.path() + " --device cpu --tensor model.layers.0.self_attn").status == 0);
}

}  // namespace
}  // namespace q4::test
