// The kernels around a multiplication (packing, permuting x, reconstructing W, reading), and all that a plan loads.
#pragma once

#include <memory>
#include <vector>

#include "kernels/lora.h"
#include "kernels/segments.h"
#include "runtime/choose/choose.hpp"

namespace q4::choose {

/// `pairs`: columns are gates, then ups; not with `pieces` or `apart`.
const jit::Source& pack_source(bool awq, bool pieces = false, bool pairs = false);
jit::Source unpack_source(bool awq, bool pieces = false, bool pairs = false);
const jit::Source& meta_source(bool words, bool awq, bool apart = false, bool pairs = false);
jit::Source unmeta_source(bool awq);
jit::Source transpose_source(bool save, bool awq = false);
const jit::Source& copy_rows_source();
/// Those of them that loads and updates use, and restoring what was packed in place.
std::vector<jit::Source> loading_sources(const MatrixShape& matrix);
jit::Source read_source(int threads, int loads);
jit::Source remap_source(bool staged, bool grouped = false);
/// What plans with a norm launch before kernels that have none.
jit::Source norm_source(bool bf16);
/// What column_remap() of the public API launches.
inline jit::Source column_remap_source() { return remap_source(false); }

/// lora_shrink for up to so many rows on this GPU.
struct ShrinkKernel {
  std::int64_t up_to = 0;
  LoraShrinkConfig config;
  jit::Source source;
  LaunchShape shape(const LoraLoad& load, const LoraSplit& split) const;
};
/// In ascending order, as many as max_m needs.
std::vector<ShrinkKernel> shrink_kernels(bool bf16, std::int64_t max_m, const Limits& limits);

/// What multiplies rows by dense matrices of this shape (kernels/segments.h).
SegmentConfig segment_config(bool bf16, bool transposed, std::int64_t in, std::int64_t out, bool segments);
jit::Source segment_source(const SegmentConfig& config);

/// grid() takes columns of W, a slice of which is reconstructed at a time.
std::shared_ptr<const BoundKernel> bind_reconstruct(const Problem& problem, const Limits& limits);
inline jit::Source reconstruct_source(const Problem& problem) { return bind_reconstruct(problem, {})->source(); }

/// Every kernel that a matrix of this shape, a plan that makes these choices, and column_remap load: each once.
std::vector<jit::Source> sources(const MatrixShape& matrix, const std::vector<Choice>& choices, const Limits& limits);

}  // namespace q4::choose
