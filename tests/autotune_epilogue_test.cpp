// q4-autotune for plans with epilogues and adapters, as processes on the CPU: their records, and which plans use them.
#include <doctest/doctest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <q4/q4.hpp>
#include <sstream>

#include "packed.hpp"
#include "report.hpp"
#include "sandbox.hpp"

namespace q4::test {
namespace {

/// The tactics of m = 1 in a tuning file, with what of the plan they are for.
std::vector<std::pair<std::string, std::string>> tactics_in(const std::string& text) {
  std::vector<std::pair<std::string, std::string>> all;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    const auto record = nlohmann::json::parse(line);
    all.emplace_back(record.value("epilogue", ""), record["buckets"].at(0)["tactic"]);
  }
  std::ranges::sort(all);
  return all;
}

TEST_CASE("q4-autotune: plans with epilogues and adapters have records of their own") {
  const Sandbox box;
  const std::string file = box.file("tuned.jsonl");
  const std::string tune = "q4-autotune --device cpu --shape 256x128 --group 32 --policy warm --m 1 --budget " +
                           std::to_string(20 * kSlower) + " --out " + file + " ";
  for (const char* with : {"", "--epilogue silu_mul+residual", "--lora 2,8 --epilogue residual"}) {
    CAPTURE(with);
    CHECK(box.run(tune + with).status == 0);
  }
  const auto tactics = tactics_in(box.read("tuned.jsonl"));
  REQUIRE(tactics.size() == 3);
  CHECK(tactics[0].first.empty());
  CHECK(tactics[1].first == "lora+residual");
  CHECK(tactics[2].first == "silu_mul+residual");

  RuntimeOptions options;
  options.tuning_files = {file};
  const Runtime runtime(options);
  const GptqMatrix matrix = make_gptq({.k = 256, .n = 128, .group_size = 32});
  const auto loaded = QuantizedMatrix::from_gptq(runtime, Device{}, matrix.tensors());
  PlanOptions plan;
  plan.max_m = 1;
  plan.epilogue.residual = plan.epilogue.lora = true;
  plan.lora_rank = 16;
  CHECK(MatmulPlan(runtime, loaded, plan).tactic(1) == tactics[1].second);

  for (const char* wrong : {"--epilogue swish", "--epilogue lora", "--lora 8"}) {
    CAPTURE(wrong);
    const auto refused = box.run(tune + wrong, true);
    CHECK(refused.status == 2);
    CHECK(refused.out.find(std::string(wrong).substr(0, 6)) != std::string::npos);
  }
}

}  // namespace
}  // namespace q4::test
