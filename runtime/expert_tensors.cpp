// Finds the tensors of each expert.
#include "runtime/expert_tensors.hpp"

#include <limits>
#include <string_view>
#include <unordered_set>

#include "runtime/base/check.hpp"
#include "runtime/tensor_reader.hpp"

namespace q4 {
namespace {

std::int64_t stride_of(const TensorView& view) { return view.row_stride < 0 ? view.cols : view.row_stride; }

/// Rows [index * rows, (index + 1) * rows) of a view.
TensorView rows_of(const TensorView& view, std::int64_t index, std::int64_t rows) {
  TensorView part = view;
  part.rows = rows;
  part.data = static_cast<const std::uint8_t*>(view.data) +
              static_cast<std::size_t>(index * rows * stride_of(view)) * size_of(view.dtype);
  return part;
}

}  // namespace

StackedTensors::StackedTensors(const char* call, const GptqTensors& tensors, std::int64_t experts)
    : tensors_(tensors), experts_(experts) {
  check(experts >= 1, "{}: experts = {}; it must be at least 1", call, experts);
  const auto addressable = [&](const char* name, const TensorView& view) {  // so that no product below overflows
    const std::int64_t stride = stride_of(view), most = std::numeric_limits<std::int64_t>::max() / 8;
    check(stride >= 0 && (stride == 0 || view.rows <= most / stride),
          "{}: {} has shape [{}, {}] and row stride {}: no memory is as large", call, name, view.rows, view.cols,
          view.row_stride);
  };
  const auto divides = [&](const char* name, const TensorView& view) {
    check(view.rows > 0 && view.rows % experts == 0,
          "{}: {} has {} rows, which {} experts cannot share: pass [experts, ...] with the first two dimensions as one",
          call, name, view.rows, experts);
    check(view.data, "{}: {} has null data and shape [{}, {}]; pass its memory", call, name, view.rows, view.cols);
    addressable(name, view);
  };
  divides("qweight", tensors.qweight), divides("qzeros", tensors.qzeros), divides("scales", tensors.scales);
  const auto vectors = [&](const char* name, const std::optional<TensorView>& view, std::int64_t count) {
    if (!present(view)) return;
    check(view->rows == experts && view->cols == count && view->data,
          "{}: {} has shape [{}, {}]; it must be [experts = {}, {}]", call, name, view->rows, view->cols, experts,
          count);
    addressable(name, *view);
  };
  vectors("g_idx", tensors.g_idx, tensors.qweight.rows / experts * 8);
  vectors("bias", tensors.bias, tensors.qweight.cols);
}

GptqTensors StackedTensors::expert(std::int64_t index) const {
  GptqTensors one = tensors_;
  for (TensorView* view : {&one.qweight, &one.qzeros, &one.scales})
    *view = rows_of(*view, index, view->rows / experts_);
  if (present(one.g_idx)) one.g_idx = rows_of(*one.g_idx, index, 1);
  if (present(one.bias)) one.bias = rows_of(*one.bias, index, 1);
  return one;
}

CheckpointExperts::CheckpointExperts(const char* call, const Checkpoint& checkpoint, const ExpertNames& names)
    : call_(call), checkpoint_(checkpoint), names_(names) {
  check(names.patterns.size() == 1 || names.patterns.size() == 2,
        "{}: there are {} patterns; pass one, or two for gate and up", call, names.patterns.size());
  for (const auto& pattern : names.patterns) {
    const auto at = pattern.find("{}");
    check(at != std::string::npos && pattern.find("{}", at + 1) == std::string::npos,
          "{}: the pattern \"{}\" must have \"{{}}\" once, where the number of the expert stands", call, pattern);
  }
  check(names.first >= 0 && names.count >= -1,
        "{}: first = {} and count = {}; first must be at least 0, count too or -1", call, names.first, names.count);
  if (names_.count >= 0) return;
  std::unordered_set<std::string_view> all;
  for (const MatrixEntry& entry : checkpoint.matrices()) all.insert(entry.name);
  names_.count = 0;
  while (all.contains(name(0, names_.count))) ++names_.count;
  if (names_.count == 0) checkpoint.find(name(0, 0));  // throws, with the names that come near
}

std::string CheckpointExperts::name(std::size_t pattern, std::int64_t index) const {
  std::string text = names_.patterns[pattern];
  return text.replace(text.find("{}"), 2, std::to_string(names_.first + index));
}

void CheckpointExperts::visit(std::int64_t index, const std::function<void(std::span<const GptqTensors>)>& gptq,
                              const std::function<void(std::span<const AwqTensors>)>& awq) const {
  std::vector<GptqTensors> gptq_parts;
  std::vector<AwqTensors> awq_parts;
  for (std::size_t part = 0; part < names_.patterns.size(); ++part) {
    const std::string one = name(part, index);
    if (checkpoint_.find(one).format == QuantFormat::kAwq)
      awq_parts.push_back(checkpoint_.awq(one));
    else
      gptq_parts.push_back(checkpoint_.gptq(one));
  }
  check(gptq_parts.empty() || awq_parts.empty(),
        "{}: {}: one of gate and up is AWQ, the other GPTQ: they cannot be joined", call_, name(0, index));
  gptq_parts.empty() ? awq(awq_parts) : gptq(gptq_parts);
}

}  // namespace q4
