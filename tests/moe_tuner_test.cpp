// Tuning of layers of experts: what the tuner records, and what plans make of it.
#include "autotune/moe_tuner.hpp"

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include "autotune/process/exchange.hpp"
#include "cache_support.hpp"
#include "moe_case.hpp"
#include "runtime/choose/choose.hpp"
#include "runtime/choose/moe.hpp"
#include "runtime/tuning_format.hpp"
#include "runtime/tuning_key.hpp"
#include "sandbox.hpp"

namespace q4::test {
namespace {

const choose::Gpu kH200{"cuda:0", "sm_90a", {90, 132, 232448, 65536}};

choose::MoeShape small_layer() {
  choose::MoeShape shape;
  shape.products = {matrix_shape(256, 256, 128, false, false, false), matrix_shape(128, 256, 128, false, false, false)};
  shape.products[0].gate_up = true;
  shape.experts = 8, shape.topk = 2, shape.activation = MoeActivation::kSiluMul;
  return shape;
}

TuningRecord record_of(std::int64_t m, const std::string& tactic) {
  TuningRecord record;
  record.key.fingerprint = "GPU", record.key.arch = "sm_90a", record.key.units = 132;
  record.key.k = 256, record.key.n = 256, record.key.group = 128, record.key.epilogue = experts_text(8, 2, 128);
  record.buckets.resize(1);
  record.buckets[0].m = m, record.buckets[0].tactic = tactic, record.buckets[0].us = 1;
  return record;
}

TEST_CASE("moe tuning: plans take a record's tactic where it was measured, and the default elsewhere") {
  const auto shape = small_layer();
  const auto texts = choose::moe_tactics(shape, 8, kH200);
  const auto tactic_at = [&](const TuningRecord& record, std::int64_t rows) {
    for (const auto& choice : choose::choose_moe(shape, 64, {}, kH200, &record))
      if (rows <= choice.up_to) return choice.tactic();
    return std::string();
  };
  for (const std::string& text : {texts.at(1), texts.back()}) {
    const auto record = record_of(8, text);
    CHECK(tactic_at(record, 8) == text);
    CHECK(tactic_at(record, 5) == text);
    CHECK(tactic_at(record, 4) == choose::moe_tactics(shape, 4, kH200).front());
    CHECK(tactic_at(record, 16) == choose::moe_tactics(shape, 16, kH200).front());
    CHECK(choose::unknown_tactics(record).empty());
  }
  for (const char* bad : {"decode tiles=2", "fast | fast", "prefill rows=32 strips=2 | prefill rows=32 strips=2"})
    CHECK(tactic_at(record_of(8, bad), 8) == texts.front());
  CHECK(choose::unknown_tactics(record_of(8, "decode tiles=2 | fast")).size() == 1);
}

TEST_CASE("moe tuning: a record is stale when the kernel of either product changed") {
  auto record = record_of(8, "decode tiles=2 | remap+prefill rows=16");
  record.key.kernels = "decode:1,prefill:2,remap:3/1";
  CHECK(measured_with(record, "decode:1,gemv:7,prefill:2,remap:3/1"));
  for (const char* other :
       {"decode:9,prefill:2,remap:3/1", "decode:1,prefill:9,remap:3/1", "decode:1,prefill:2,remap:9/1"})
    CHECK(!measured_with(record, other));
}

TEST_CASE("moe tuning: a job keeps its layer on the way to the worker, and keys tell layers apart") {
  autotune::Job job;
  job.problem = {"experts", 256, 256, 128, true};
  job.problem.experts = 8, job.problem.topk = 2, job.problem.width = 128;
  job.options.m = {1, 2};
  const auto read = autotune::job_of(autotune::to_json(job)).problem;
  CHECK((read.experts == 8 && read.topk == 2 && read.width == 128 && read.act_order));
  const auto key = [&](const autotune::Problem& p) { return autotune::key_of({}, "", p, DType::kF16, "cold"); };
  auto other = read;
  other.topk = 3;
  CHECK(key(read) != key(other));
  other = read, other.experts = 0;
  CHECK(key(other).epilogue.empty());
  CHECK(read.bytes(0) == 8 * (3.0 * 256 * 128 / 2 + 2.5 * (2 * 256 + 256)));
  CHECK(read.flops(3) == 6.0 * 3 * 2 * 256 * 128);
}

TEST_CASE("moe tuning: a layer on the CPU, checked and timed for each number of tokens") {
  autotune::Problem problem{"experts", 64, 64, 32};
  problem.experts = 4, problem.topk = 2, problem.width = 32;
  autotune::TuneOptions options;
  options.m = {1, 4}, options.seconds = 20;
  std::size_t announced = 0;
  options.about_to = [&](const autotune::Step& step) { announced += step.tactic == "cpu-experts"; };
  const auto tuned = autotune::tune(shared_runtime(), Device{}, problem, options);
  CHECK((tuned.complete && !tuned.failed && announced >= 4));
  REQUIRE(tuned.record.buckets.size() == 2);
  for (const auto& bucket : tuned.record.buckets) CHECK((bucket.tactic == "cpu-experts" && bucket.us > 0));
  CHECK(tuned.record.key.epilogue == "experts=4 topk=2 width=32");
  options.seconds = 0;
  CHECK(!autotune::tune(shared_runtime(), Device{}, problem, options).complete);
}

TEST_CASE("moe tuning: q4-autotune takes the layers of a config.json") {
  const Sandbox box;
  const TempFolder folder;
  std::ofstream(folder / "config.json") << R"({"model_type":"mixtral","hidden_size":64,"intermediate_size":32,
      "num_attention_heads":4,"num_hidden_layers":1,"num_local_experts":4,"num_experts_per_tok":2})";
  const auto ran = box.run("q4-autotune --device cpu --m 1 --budget 30 --group 32 --config " +
                           (folder / "config.json") + " --out " + (folder / "t.jsonl"));
  CHECK_MESSAGE(ran.status == 0, ran.out);
  TuningDb db;
  db.load(folder / "t.jsonl");
  std::size_t layers = 0;
  for (const auto& record : db.records()) layers += record.key.epilogue == "experts=4 topk=2 width=32";
  CHECK(layers == 1);
}

}  // namespace
}  // namespace q4::test
