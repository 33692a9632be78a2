// Writes the sources of the kernels around a multiplication.
#include "runtime/choose/sources.hpp"

#include <algorithm>

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

jit::Source pack_source(bool awq, bool pieces, bool pairs) {
  return jit::generate("pack", "pack.h", "PackConfig", jit::initializer(PackConfig{awq, pieces, pairs}), {"PackArgs"},
                       pack_threads(), 1);
}

jit::Source unpack_source(bool awq, bool pieces, bool pairs) {
  return jit::generate("unpack", "pack.h", "PackConfig", jit::initializer(PackConfig{awq, pieces, pairs}),
                       {"UnpackArgs"}, pack_threads(), 1);
}

jit::Source meta_source(bool words, bool awq, bool apart, bool pairs) {
  return jit::generate("pack_meta", "pack.h", "MetaConfig",
                       jit::initializer(MetaConfig{words, words && awq, apart, pairs}), {"MetaArgs"}, pack_threads(),
                       1);
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

jit::Source copy_rows_source() {
  const CopyRowsConfig config;
  return jit::generate("copy_rows", "transpose.h", "CopyRowsConfig", jit::initializer(config), {"CopyRowsArgs"},
                       config.threads, 1);
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

ShrinkKernel shrink_kernel(bool bf16, bool many, const Limits& limits) {
  const bool mma = limits.arch >= 80;
  const LoraShrinkConfig config{bf16, mma, mma && many ? 4 : 1};
  return {config, jit::generate(mma ? "lora_shrink" : "lora_shrink_plain", mma ? "lora_mma.h" : "lora_plain.h",
                                "LoraShrinkConfig", jit::initializer(config), {"LoraShrinkArgs"}, threads(config), 1)};
}

LaunchShape ShrinkKernel::shape(std::int64_t m, int chunks) const {
  LaunchShape shape;
  shape.threads = threads(config);
  shape.blocks = config.mma ? grid(config, m, chunks) : m * chunks;
  shape.shared_bytes = config.mma ? shared_bytes(config) : 0;
  return shape;
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
    if (choice.tactic.remap) add(remap_source(stages_rows(matrix, limits)));
    if (choice.tactic.epilogue.lora)
      for (const bool many : {false, true}) add(shrink_kernel(choice.bf16, many, limits).source);
  }
  add(column_remap_source());
  return all;
}

}  // namespace q4::choose
