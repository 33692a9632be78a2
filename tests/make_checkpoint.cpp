// q4-make-checkpoint: writes a small quantized checkpoint of random weights, to try q4-verify and the other tools on.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>

#include "checkpoint_maker.hpp"
#include "variant_maker.hpp"

int main(int argc, char** argv) {
  using q4::test::CheckpointSpec;
  CLI::App app{
      "Writes a checkpoint of random 4-bit weights: safetensors, config.json, and an index when sharded. The same "
      "options\n"
      "give the same bytes. Each layer has self_attn.q_proj [k, k], mlp.up_proj [k, n] and mlp.down_proj [n, k].\n\n"
      "Example:\n  q4-make-checkpoint --out /tmp/tiny --format gptq --act-order --layers 2 --shards 3\n  q4-verify "
      "/tmp/tiny"};
  std::string out;
  CheckpointSpec spec;
  spec.matrix = {.k = 512, .n = 1024};
  bool act_order = false, symmetric = false, variants = false;
  const std::map<std::string, CheckpointSpec::Format> formats = {{"gptq", CheckpointSpec::Format::kGptq},
                                                                 {"gptq_v2", CheckpointSpec::Format::kGptqV2},
                                                                 {"awq", CheckpointSpec::Format::kAwq}};
  app.add_option("--out", out, "folder to write to; made if absent")->required();
  app.add_flag("--variants", variants,
               "instead one matrix in every format and every layout, a folder each, with W.f32 and variants.json");
  app.add_option("--format", spec.format, "gptq, gptq_v2 (zeros stored as they are) or awq")
      ->transform(CLI::CheckedTransformer(formats));
  app.add_flag("--act-order", act_order, "rows belong to groups in a random order (desc_act)");
  app.add_flag("--symmetric", symmetric, "every zero means 8");
  app.add_flag("--bias", spec.matrix.bias, "add a bias to every matrix");
  app.add_option("--shards", spec.shards, "number of files")->check(CLI::Range(1, 1000))->capture_default_str();
  app.add_option("--k", spec.matrix.k, "in_features of up_proj, a multiple of 8")
      ->check(CLI::Range(8, 1 << 20))
      ->capture_default_str();
  app.add_option("--n", spec.matrix.n, "out_features of up_proj, a multiple of 8")
      ->check(CLI::Range(8, 1 << 20))
      ->capture_default_str();
  app.add_option("--group", spec.matrix.group_size, "rows of a group; -1: one group")
      ->check(CLI::Range(-1, 1 << 20))
      ->capture_default_str();
  app.add_option("--layers", spec.layers, "number of layers")->check(CLI::Range(1, 1000))->capture_default_str();
  app.add_option("--seed", spec.matrix.seed, "other weights")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  const auto bad_multiple = [](std::int64_t value) { return value % 8 != 0; };
  const bool bad_group =
      spec.matrix.group_size != -1 && (spec.matrix.group_size < 8 || bad_multiple(spec.matrix.group_size));
  if (bad_multiple(spec.matrix.k) || bad_multiple(spec.matrix.n) || bad_group) {
    std::fprintf(stderr, "error: --k, --n and --group must be multiples of 8 (--group may be -1)\n");
    return 2;
  }
  if (act_order) spec.matrix.act_order = q4::test::ActOrder::kPermuted;
  if (symmetric) spec.matrix.stored_zeros = q4::test::StoredZeros::kSymmetric;
  try {
    std::filesystem::create_directories(out);
    if (variants) return std::printf("%d checkpoints\n", q4::test::make_variants(out)) < 0;
    for (const auto& matrix : make_checkpoint(out, spec)) {
      std::printf("%s [%lld, %lld]\n", matrix.name.c_str(), static_cast<long long>(matrix.gptq.spec.k),
                  static_cast<long long>(matrix.gptq.spec.n));
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
  return 0;
}
