// What q4-bench adds to a matmul on request: adapters of its rows, an activation, a residual.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "autotune/rig.hpp"

namespace q4::tools {

/// As --lora, --epilogue and --residual say.
struct EpilogueChoice {
  std::int64_t adapters = 0, rank = 0;  ///< rows are dealt to so many adapters in turn; 0: none
  Epilogue rest = {};                   ///< without lora

  bool any() const { return epilogue() != Epilogue{}; }
  bool gated() const { return rest.activation >= Activation::kSiluMul; }
  Epilogue epilogue() const { return {rest.activation, rest.residual, adapters > 0}; }
};
/// "silu_mul+residual", as tactics name epilogues.
void parse_epilogue(const std::string& text, EpilogueChoice& choice);
/// "8,16": 8 adapters of rank 16.
void parse_lora(const std::string& text, EpilogueChoice& choice);

/// Adapters and residual of one shape, on a rig's device. Adapters are in so many tables that each run of a replayed
/// graph reads its own from memory, as it does the weights.
class BenchEpilogue {
 public:
  BenchEpilogue(const Runtime& runtime, const autotune::Rig& rig, const autotune::Workload& workload,
                const EpilogueChoice& choice, std::int64_t max_m);

  void give(autotune::Variant& variant, std::int64_t m) const;
  /// What is added to the products, in fp64.
  autotune::Workload::Finish finish() const;

 private:
  void add_adapter(std::int64_t row, std::span<const std::int64_t> columns, std::span<double> sums) const;
  double value(std::size_t at) const;  ///< of what A, B and the residual are made of
  std::size_t a_begin(std::int64_t adapter) const;
  std::size_t b_begin(std::int64_t adapter) const;

  const autotune::Rig& rig_;
  const autotune::Workload& workload_;
  const EpilogueChoice choice_;
  const std::int64_t k_, n_, outs_;
  const float scale_;
  std::vector<std::byte> source_;
  std::vector<LoraAdapters> tables_;
};

}  // namespace q4::tools
