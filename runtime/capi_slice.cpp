// Fused matrices and slices through the C ABI.
#include <q4/q4.h>

#include <q4/q4.hpp>

#include "runtime/capi_convert.hpp"
#include "runtime/capi_runtime.hpp"

using namespace q4::capi;

namespace {

q4::Slice slice_of(const q4_slice* given) {
  if (!given) return {};
  const q4_slice s = options_of(given, "slice");
  q4::Slice slice;
  slice.along = enumerated(s.along, q4::Slice::Along::kRows, "slice.along");
  slice.rank = s.rank, slice.world = s.world == 0 ? 1 : s.world;
  slice.share = s.share != 0, slice.pad = s.pad != 0;
  if (s.unit != 0) slice.unit = s.unit;
  q4::check(s.parts != nullptr || s.part_count == 0, "slice.parts is null, but slice.part_count is {}", s.part_count);
  slice.parts.assign(s.parts, s.parts + s.part_count);
  return slice;
}

}  // namespace

q4_status q4_matrix_fuse(q4_runtime* runtime, q4_device device, const q4_tensors* const* tensors, size_t count,
                         int32_t awq, const q4_slice* slice, q4_matrix* matrix) {
  return guard(__func__, [&] {
    auto& owner = required(runtime, "runtime");
    auto& result = required(matrix, "matrix");
    q4::check(tensors != nullptr && count > 0, "tensors is null or count is 0: pass those of one matrix or more");
    q4::MatrixOptions options;
    std::vector<q4::GptqTensors> gptq;
    std::vector<q4::AwqTensors> plain;
    for (std::size_t i = 0; i < count; ++i) {
      const q4_tensors given = options_of(&required(tensors[i], "tensors"), "tensors");
      options.gate_up |= given.gate_up != 0;
      if (awq) {
        q4::check(given.g_idx == nullptr && given.zeros == Q4_ZEROS_AUTO,
                  "tensors[{}] has a g_idx or a zero format: AWQ has neither, pass null and Q4_ZEROS_AUTO", i);
        plain.push_back(tensors_of<q4::AwqTensors>(given));
        continue;
      }
      gptq.push_back(tensors_of<q4::GptqTensors>(given));
      gptq.back().g_idx = optional_view(given.g_idx, "tensors.g_idx");
      gptq.back().zeros = enumerated(given.zeros, q4::ZeroFormat::kV2, "tensors.zeros");
    }
    options.slice = slice_of(slice);
    const q4::Device on = device_of(device, "device");
    result = owner.matrices.add(awq ? q4::QuantizedMatrix::fuse_awq(owner.runtime, on, plain, options)
                                    : q4::QuantizedMatrix::fuse_gptq(owner.runtime, on, gptq, options));
  });
}

q4_status q4_matrix_from_checkpoint_slice(q4_runtime* runtime, q4_device device, q4_checkpoint checkpoint,
                                          const char* const* names, size_t count, q4_zeros zeros, const q4_slice* slice,
                                          q4_matrix* matrix) {
  return guard(__func__, [&] {
    auto& owner = required(runtime, "runtime");
    auto& result = required(matrix, "matrix");
    q4::check(names != nullptr && count > 0, "names is null or count is 0: name one matrix or more");
    std::vector<std::string> wanted;
    for (std::size_t i = 0; i < count; ++i) wanted.emplace_back(&required(names[i], "names"));
    const auto& opened = find(owner.checkpoints, checkpoint, "checkpoint");
    q4::LoadOptions options;
    const auto format = enumerated(zeros, q4::ZeroFormat::kV2, "zeros");
    if (format != q4::ZeroFormat::kAuto) options.zeros = format;
    options.slice = slice_of(slice);
    result = owner.matrices.add(opened.load(owner.runtime, device_of(device, "device"), wanted, options));
  });
}
