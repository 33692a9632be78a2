// What a matmul is timed with on request: adapters of its rows, an activation, a residual.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <q4/lora.hpp>
#include <string>
#include <vector>

#include "autotune/workload.hpp"
#include "runtime/backends/backend.hpp"

namespace q4::autotune {

/// "silu_mul+residual", as tactics name epilogues; adapters are not among them.
void parse_epilogue(const std::string& text, EpilogueChoice& choice);
/// "8,16": 8 adapters of rank 16.
void parse_lora(const std::string& text, EpilogueChoice& choice);

struct Variant;

/// Adapters and residual of one shape, on a device. Adapters are in so many tables that each run of a replayed
/// graph reads its own from memory, as it does the weights.
class EpilogueData {
 public:
  /// `copies` of the weights are run in turn.
  EpilogueData(const Runtime& runtime, std::shared_ptr<DeviceBackend> backend, const QuantizedMatrix& matrix,
               std::size_t copies, const Workload& workload, const EpilogueChoice& choice, std::int64_t max_m);

  void give(Variant& variant, std::int64_t m) const;
  /// What is added to the products, in fp64.
  Workload::Finish finish() const;

 private:
  void add_adapter(std::int64_t row, std::span<const std::int64_t> columns, std::span<double> sums) const;
  double value(std::size_t at) const;  ///< of what A, B and the residual are made of
  std::size_t a_begin(std::int64_t adapter) const;
  std::size_t b_begin(std::int64_t adapter) const;

  const std::shared_ptr<DeviceBackend> backend_;
  const Workload& workload_;
  const EpilogueChoice choice_;
  const std::int64_t k_, n_, outs_;
  const float scale_;
  std::vector<std::byte> source_;
  std::vector<LoraAdapters> tables_;
};

}  // namespace q4::autotune
