// Where the tensors of each expert are: in tensors [E, ...], or in a checkpoint under numbered names.
#pragma once

#include <cstdint>
#include <functional>
#include <q4/moe.hpp>
#include <span>
#include <string>
#include <vector>

namespace q4 {

/// Tensors [E, ...] and the views of one expert's among them. Throws where they are no E of anything; one expert's
/// shapes are checked as those of any matrix.
class StackedTensors {
 public:
  StackedTensors(const char* call, const GptqTensors& tensors, std::int64_t experts);
  GptqTensors expert(std::int64_t index) const;

 private:
  GptqTensors tensors_;
  std::int64_t experts_;
};

/// Matrices of a checkpoint by pattern. Throws kInvalidArgument for patterns that name no experts, kNotFound where one
/// of a range is missing.
class CheckpointExperts {
 public:
  CheckpointExperts(const char* call, const Checkpoint& checkpoint, const ExpertNames& names);
  std::int64_t first() const { return names_.first; }
  std::int64_t count() const { return names_.count; }
  /// Calls use(span of GptqTensors) or use(span of AwqTensors) with the matrix of expert first() + index, or with gate and
  /// up.
  template <class Use>
  void visit(std::int64_t index, Use&& use) const {
    visit(index, std::function<void(std::span<const GptqTensors>)>(use),
          std::function<void(std::span<const AwqTensors>)>(use));
  }

 private:
  void visit(std::int64_t index, const std::function<void(std::span<const GptqTensors>)>& gptq,
             const std::function<void(std::span<const AwqTensors>)>& awq) const;
  std::string name(std::size_t pattern, std::int64_t index) const;

  const char* call_;
  const Checkpoint& checkpoint_;
  ExpertNames names_;
};

}  // namespace q4
