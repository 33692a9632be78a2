// Writes the sources of the kernels around a multiplication.
#include "runtime/choose/sources.hpp"

#include <algorithm>

#include "kernels/pack.h"
#include "kernels/read.h"
#include "kernels/reconstruct.h"
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

jit::Source pack_source(bool awq) {
  return jit::generate("pack", "pack.h", "PackConfig", jit::initializer(PackConfig{awq}), {"PackArgs"}, pack_threads(),
                       1);
}

jit::Source read_source(int threads, int loads) {
  return jit::generate("read", "read.h", "ReadConfig", jit::initializer(ReadConfig{threads, loads}), {"ReadArgs"},
                       threads, 1);
}

jit::Source remap_source(bool staged) {
  const RemapConfig config{remap_threads(staged), staged};
  return jit::generate("remap", "remap.h", "RemapConfig", jit::initializer(config), {"RemapArgs"}, config.threads, 2);
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
  add(pack_source(matrix.awq));
  for (const Choice& choice : choices) {
    add(choice.kernel->source());
    if (choice.tactic.remap) add(remap_source(stages_rows(matrix, limits)));
  }
  add(column_remap_source());
  return all;
}

}  // namespace q4::choose
