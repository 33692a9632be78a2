// What runs for a mixture of experts, from numbers alone: no device is needed.
#include <doctest/doctest.h>

#include <algorithm>
#include <set>
#include <string>

#include "runtime/base/check.hpp"
#include "runtime/choose/moe.hpp"

namespace q4::test {
namespace {

using choose::Gpu;
using choose::MoeChoice;
using choose::MoeShape;

const Gpu kH200{"cuda:0", "sm_90a", {90, 132, 232448, 65536}}, kA100{"cuda:0", "sm_80", {80, 108, 166912, 65536}},
    kT4{"cuda:0", "sm_75", {75, 40, 65536, 65536}}, kMi250{"hip:0", "gfx90a", {0, 104, 65536, 65536}};

/// Two products of a layer, W13 [k, 2 width] and W2 [width, k].
MoeShape layer(std::int64_t experts, std::int64_t topk, std::int64_t k, std::int64_t width, bool act_order = false) {
  MoeShape shape;
  shape.products = {matrix_shape(k, 2 * width, 128, act_order, false, false),
                    matrix_shape(width, k, 128, act_order, false, false)};
  shape.products[0].gate_up = true;
  shape.experts = experts, shape.topk = topk, shape.activation = MoeActivation::kSiluMul;
  return shape;
}
const MoeShape kMixtral = layer(8, 2, 4096, 14336), kQwen = layer(128, 8, 2048, 768);

const MoeChoice& at(const std::vector<MoeChoice>& choices, std::int64_t rows) {
  return *std::find_if(choices.begin(), choices.end(), [&](const MoeChoice& c) { return rows <= c.up_to; });
}
std::string kernel_of(const choose::GroupedProduct& product) {
  return (product.tactic.remap ? "remap+" : "") + std::string(product.tactic.kernel->name);
}

TEST_CASE("moe choice: decode for few rows an expert, prefill for many, gemv where neither runs") {
  struct Row {
    const MoeShape& shape;
    const Gpu& gpu;
    std::int64_t rows;
    const char *first, *second;
    int tile_rows;  ///< of the first
  };
  const Row rows[] = {
      {kMixtral, kH200, 1, "decode", "decode", 8},
      {kMixtral, kH200, 16, "decode", "decode", 8},
      {kMixtral, kH200, 64, "remap+prefill", "prefill", 32},
      {kMixtral, kH200, 4096, "remap+prefill", "prefill", 128},
      {kQwen, kH200, 1, "decode", "decode", 8},
      {kQwen, kH200, 64, "decode", "decode", 8},
      {kQwen, kH200, 128, "remap+prefill", "prefill", 16},
      {kQwen, kH200, 512, "remap+prefill", "prefill", 64},
      {kQwen, kH200, 1024, "remap+prefill", "prefill", 80},
      {kQwen, kH200, 2048, "remap+prefill", "prefill", 256},
      {kMixtral, kH200, 256, "remap+prefill", "prefill", 80},
      {kQwen, kA100, 1, "decode", "decode", 8},
      {kQwen, kA100, 4096, "decode", "decode", 8},
      {kQwen, kT4, 1, "remap+gemv", "gemv", 1},
      {kQwen, kMi250, 64, "remap+gemv", "gemv", 4},
      {kQwen, kMi250, 256, "remap+tile", "tile", 32},
  };
  for (const Row& row : rows) {
    CAPTURE(row.gpu.arch);
    CAPTURE(row.rows);
    const auto choices = choose::choose_moe(row.shape, 4096, {}, row.gpu);
    CHECK(choices.back().up_to == 4096);
    const MoeChoice& choice = at(choices, row.rows);
    CHECK(kernel_of(choice.products[0]) == row.first);
    CHECK(kernel_of(choice.products[1]) == row.second);
    CHECK(choice.products[0].kernel->tile_rows() == row.tile_rows);
    CHECK(choice.products[0].shape.overlap_previous == (row.gpu.limits.arch >= 90));
  }
}

TEST_CASE("moe choice: one token of Qwen3-30B-A3B fills the multiprocessors once") {
  const auto choices = choose::choose_moe(kQwen, 1, {}, kH200);
  for (const auto& product : choices[0].products) {
    const auto blocks = product.kernel->grid(8);  // eight experts, a row tile each
    CHECK(blocks > 100);
    CHECK(blocks <= 132);
  }
}

TEST_CASE("moe choice: the products' kernels sort few slots themselves, also with a tactic that is given") {
  const auto routed = [](const std::vector<MoeChoice>& choices, std::int64_t rows) { return at(choices, rows).routed; };
  const auto tactic = choose::choose_moe(kQwen, 4, {}, kH200).front().tactic();
  for (const std::string& text : {std::string(), tactic}) {
    const auto choices = choose::choose_moe(kQwen, 64, text, kH200);
    CHECK((routed(choices, 1) && routed(choices, 4) && !routed(choices, 5) && !routed(choices, 64)));
    CHECK(choices.back().up_to == 64);
    for (const auto& product : choices[0].products)
      CHECK(product.kernel->source().text.find("RoutedArgs") != std::string::npos);
    const auto ranges = choose::route_ranges(kQwen, 64, choices, kH200.limits);
    REQUIRE(ranges.size() == 4);  // 8, 16, 32 and 64 tokens
    CHECK((ranges.front().up_to == 64 && ranges.back().up_to == 512));
  }
  CHECK(!routed(choose::choose_moe(layer(16, 4, 1024, 512, true), 8, {}, kH200), 1));  // x is permuted between
  CHECK(!routed(choose::choose_moe(kQwen, 8, {}, kT4), 1));                            // gemv
  MoeShape single = kQwen;
  single.products.pop_back(), single.topk = 1;
  CHECK(!routed(choose::choose_moe(single, 8, {}, kH200), 1));
}

TEST_CASE("moe choice: act-order permutes x before either product") {
  const auto choices = choose::choose_moe(layer(16, 4, 1024, 512, true), 512, {}, kH200);
  for (const auto& choice : choices)
    for (const auto& product : choice.products) CHECK(product.tactic.remap);
}

TEST_CASE("moe choice: batch-invariant plans have one Config for every number of rows") {
  for (const Gpu& gpu : {kH200, kA100, kMi250}) {
    MoeShape shape = kQwen;
    shape.batch_invariant = true;
    CHECK(choose::choose_moe(shape, 4096, {}, gpu).size() == 1);
  }
}

TEST_CASE("moe choice: a plan's own text gives the same kernels; every tactic that is listed can run") {
  for (const Gpu& gpu : {kH200, kA100, kMi250})
    for (const std::int64_t rows : {1, 40, 1000}) {
      const auto chosen = choose::choose_moe(kQwen, rows, {}, gpu).back().tactic();
      const auto texts = choose::moe_tactics(kQwen, rows, gpu);
      REQUIRE(!texts.empty());
      CHECK(texts.front() == chosen);
      CHECK(std::set(texts.begin(), texts.end()).size() == texts.size());
      for (const auto& text : texts) CHECK(choose::choose_moe(kQwen, rows, text, gpu).front().tactic() == text);
    }
}

TEST_CASE("moe choice: a tactic that is none, or cannot run, is refused with the reason") {
  const auto reason = [](const std::string& text) {
    try {
      choose::choose_moe(kQwen, 8, text, kH200);
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::kInvalidArgument);
      return std::string(error.what());
    }
    return std::string();
  };
  CHECK(reason("fast | fast").find("names no kernel") != std::string::npos);
  CHECK(reason("remap+prefill rows=32").find("names no kernel") != std::string::npos);  // the second is missing
  CHECK(reason("prefill rows=32 strips=2 | prefill rows=32 strips=2").find("product 1 of 2") != std::string::npos);
  CHECK(reason("batch rows=64 | batch rows=64").find("cannot run") != std::string::npos);
  CHECK(reason("decode | decode | decode").find("more than 2") != std::string::npos);
}

TEST_CASE("moe choice: a router for every number of slots, and no more counts than its workspace has room for") {
  for (const std::int64_t experts : {1, 128, 384, 65536})
    for (const std::int64_t slots : {1, 32, 33, 2048, 2049, 100000, 1 << 20}) {
      CAPTURE(experts);
      CAPTURE(slots);
      const auto launch = choose::route_launch(slots, experts, kH200.limits);
      CHECK((launch.config.threads > 32 || slots <= 32));
      CHECK(shared_bytes(launch.config) <= 48 * 1024);
      CHECK((launch.blocks == 1) == (launch.config.part == 0));
      CHECK(launch.blocks * experts <= 1 << 20);
    }
}

TEST_CASE("moe choice: the most row tiles that slots can have") {
  CHECK(most_tiles(8, 128, 8) == 8);      // each slot an expert of its own
  CHECK(most_tiles(100, 1, 16) == 7);     // one expert: 6 full tiles and 4 rows
  CHECK(most_tiles(1000, 10, 16) == 71);  // ten that are not full, and (1000 - 10) / 16 that are
}

}  // namespace
}  // namespace q4::test
