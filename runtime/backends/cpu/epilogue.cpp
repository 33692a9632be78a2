// Activations and residuals, by the functions that the GPU kernels use.
#include "runtime/backends/cpu/epilogue.hpp"

#include <cstring>

#include "runtime/base/convert.hpp"
#include "runtime/choose/epilogue.hpp"

namespace q4::cpu {
namespace {

float element_at(const void* row, Element element, int column) {
  if (element == Element::kF32) return static_cast<const float*>(row)[column];
  const std::uint16_t bits = static_cast<const std::uint16_t*>(row)[column];
  return element == Element::kF16 ? float_from_half(bits) : float_from_bf16(bits);
}

template <int kKind>
void activate(const FinishJob& job, bool gated) {
  for (int r = 0; r < job.rows; ++r) {
    float* y = job.y + r * job.y_stride;
    if (!gated)
      for (int c = 0; c < job.columns; ++c) y[c] = ActivationOf<kKind>::of(y[c]);
    for (int c = 0; gated && c < job.columns / 2; ++c) {  // a result is never after its gate
      const float* gate = y + c / 8 * kTileColumns + c % 8;
      y[c] = ActivationOf<kKind>::of(gate[0]) * gate[8];
    }
  }
}

}  // namespace

void finish(const FinishJob& job, Activation activation) {
  const bool gated = choose::is_gated(activation);
  constexpr void (*kActivate[])(const FinishJob&, bool) = {nullptr, activate<kSilu>, activate<kGeluTanh>,
                                                           activate<kGeluErf>, activate<kRelu2>};
  if (const auto run = kActivate[choose::kind_of(activation)]) run(job, gated);
  if (!job.residual) return;
  const std::size_t size = job.element == Element::kF32 ? 4 : 2;
  for (int r = 0; r < job.rows; ++r) {
    const std::byte* from = static_cast<const std::byte*>(job.residual) + r * job.residual_stride * std::int64_t(size);
    for (int c = 0; c < (gated ? job.columns / 2 : job.columns); ++c)
      job.y[r * job.y_stride + c] += element_at(from, job.element, c);
  }
}

}  // namespace q4::cpu
