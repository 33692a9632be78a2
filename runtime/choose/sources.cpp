// Writes the sources of the kernels around a multiplication.
#include "runtime/choose/sources.hpp"

#include <algorithm>

#include "kernels/norm.h"
#include "kernels/pack.h"
#include "kernels/read.h"
#include "kernels/reconstruct.h"
#include "kernels/transpose.h"
#include "runtime/choose/defaults/remap.hpp"
#include "runtime/choose/row.hpp"

namespace q4::choose {
namespace {

struct ReconstructPolicy {
  using Config = ReconstructConfig;
  static constexpr const char *name = "reconstruct", *header = "reconstruct.h", *type = "ReconstructConfig",
                              *arguments = "ReconstructArgs";
};

}  // namespace

// Each load of a matrix names these: their texts are written once.
const jit::Source& pack_source(bool awq, bool pieces, bool pairs) {
  static const auto all = [] {
    std::vector<jit::Source> sources;
    for (int i = 0; i < 8; ++i)
      sources.push_back(jit::generate("pack", "pack.h", "PackConfig",
                                      jit::initializer(PackConfig{i & 1, i >> 1 & 1, i >> 2 & 1}), {"PackArgs"},
                                      pack_threads(), 1));
    return sources;
  }();
  return all[static_cast<std::size_t>(awq | pieces << 1 | pairs << 2)];
}

jit::Source unpack_source(bool awq, bool pieces, bool pairs) {
  return jit::generate("unpack", "pack.h", "PackConfig", jit::initializer(PackConfig{awq, pieces, pairs}),
                       {"UnpackArgs"}, pack_threads(), 1);
}

const jit::Source& meta_source(bool words, bool awq, bool apart, bool pairs) {
  static const auto all = [] {
    std::vector<jit::Source> sources;
    for (int i = 0; i < 16; ++i)
      sources.push_back(jit::generate("pack_meta", "pack.h", "MetaConfig",
                                      jit::initializer(MetaConfig{i & 1, i & i >> 1 & 1, i >> 2 & 1, i >> 3 & 1}),
                                      {"MetaArgs"}, pack_threads(), 1));
    return sources;
  }();
  return all[static_cast<std::size_t>(words | awq << 1 | apart << 2 | pairs << 3)];
}

jit::Source unmeta_source(bool awq) {
  return jit::generate("unpack_meta", "pack.h", "MetaConfig", jit::initializer(MetaConfig{1, awq, 1}), {"MetaArgs"},
                       pack_threads(), 1);
}

jit::Source transpose_source(bool save, bool awq) {
  const TransposeConfig config{save, piece_words(awq) / 2};
  return jit::generate("transpose", "transpose.h", "TransposeConfig", jit::initializer(config), {"TransposeArgs"},
                       transpose_threads(), 1);
}

const jit::Source& copy_rows_source() {
  constexpr CopyRowsConfig kConfig;
  static const jit::Source source = jit::generate("copy_rows", "transpose.h", "CopyRowsConfig",
                                                  jit::initializer(kConfig), {"CopyRowsArgs"}, kConfig.threads, 1);
  return source;
}

std::vector<jit::Source> loading_sources(const MatrixShape& matrix) {
  const bool awq = matrix.awq;
  if (matrix.apart) {
    std::vector<jit::Source> all = {pack_source(awq), meta_source(true, awq, true), copy_rows_source(),
                                    unpack_source(awq), unmeta_source(awq)};
    if (codes_bytes(static_cast<int>(matrix.k), static_cast<int>(matrix.n)) >
        static_cast<i64>(MatrixOptions{}.scratch_bytes))
      for (const auto& source : {pack_source(awq, true), unpack_source(awq, true), transpose_source(true, awq),
                                 transpose_source(false, awq)})
        all.push_back(source);
    return all;
  }
  const bool pairs = matrix.gate_up;
  return {pack_source(awq, false, pairs), meta_source(false, awq, false, pairs), meta_source(true, awq, false, pairs),
          copy_rows_source()};
}

jit::Source read_source(int threads, int loads) {
  return jit::generate("read", "read.h", "ReadConfig", jit::initializer(ReadConfig{threads, loads}), {"ReadArgs"},
                       threads, 1);
}

jit::Source remap_source(bool staged, bool grouped) {
  const RemapConfig config{remap_threads(staged), staged, grouped};
  return jit::generate("remap", "remap.h", "RemapConfig", jit::initializer(config), {"RemapArgs"}, config.threads, 2);
}

jit::Source norm_source(bool bf16) {
  NormConfig config;
  config.bf16 = bf16;
  return jit::generate("norm", "norm.h", "NormConfig", jit::initializer(config), {"NormArgs"}, config.threads, 1);
}

std::vector<ShrinkKernel> shrink_kernels(bool bf16, std::int64_t max_m, const Limits& limits) {
  if (limits.arch < 80) {
    const LoraShrinkConfig config{bf16, 0};
    return {{INT64_MAX, config,
             jit::generate("lora_shrink_plain", "lora_plain.h", "LoraShrinkConfig", jit::initializer(config),
                           {"LoraShrinkArgs"}, threads(config), 1)}};
  }
  std::vector<ShrinkKernel> kernels;
  for (const int rows : {8, 64}) {
    LoraShrinkConfig config{bf16, 1, rows, rows > 8 ? 2 : 1};
    config.cuts = limits.arch >= 90 ? kLoraMostSplit : 0;
    config.ring = lora_ring(config, smaller(limits.shared_bytes - 1024, 160 << 10));
    kernels.push_back({rows > 8 ? INT64_MAX : rows, config,
                       jit::generate("lora_shrink", "lora_shrink.h", "LoraShrinkConfig", jit::initializer(config),
                                     {"LoraShrinkArgs"}, threads(config), 1)});
    if (max_m <= rows) break;
  }
  return kernels;
}

LaunchShape ShrinkKernel::shape(const LoraLoad& load, const LoraSplit& split) const {
  LaunchShape shape;
  shape.threads = threads(config);
  shape.blocks = config.mma ? grid(config, load.m, split) : load.m * load.chunks;
  shape.shared_bytes = shared_bytes(config);
  shape.cluster = config.mma ? split.k : 1;
  return shape;
}

SegmentConfig segment_config(bool bf16, bool transposed, std::int64_t in, std::int64_t out, bool segments) {
  SegmentConfig config{bf16, transposed};
  config.vec = in % 8 == 0 && out % 8 == 0 ? 8 : 1;
  const std::int64_t pieces = transposed ? in / config.vec : in;  // of the sum
  // Lanes read W's rows together where it has them along the sum, or where few outputs leave no other work.
  if (transposed || out < in)
    while (config.lanes < 32 && 2 * config.lanes <= pieces) config.lanes *= 2;
  config.rows = segments ? 8 : 1;
  return config;
}

jit::Source segment_source(const SegmentConfig& config) {
  return jit::generate("segments", "segments.h", "SegmentConfig", jit::initializer(config), {"SegmentArgs"},
                       kSegmentThreads, 1);
}

std::shared_ptr<const BoundKernel> bind_reconstruct(const Problem& problem, const Limits& limits) {
  return std::make_shared<const BoundConfig<ReconstructPolicy>>(ReconstructConfig{problem}, limits);
}

std::vector<jit::Source> sources(const MatrixShape& matrix, const std::vector<Choice>& choices, const Limits& limits) {
  std::vector<jit::Source> all;
  const auto add = [&](jit::Source source) {
    if (std::none_of(all.begin(), all.end(), [&](const auto& s) { return s.text == source.text; }))
      all.push_back(std::move(source));
  };
  for (auto& source : loading_sources(matrix)) add(std::move(source));
  for (const Choice& choice : choices) {
    add(choice.kernel->source());
    const bool before = choice.tactic.remap || choice.blas();
    if (matrix.norm && before)
      add(norm_source(choice.bf16));
    else if (choice.tactic.remap)
      add(remap_source(stages_rows(matrix, limits)));
    if (choice.tactic.epilogue.lora)
      for (auto& kernel : shrink_kernels(choice.bf16, choices.back().up_to, limits)) add(std::move(kernel.source));
  }
  add(column_remap_source());
  return all;
}

}  // namespace q4::choose
