// The truth that q4-verify compares with: W read straight from a checkpoint's tensors, products in fp64. Shares no code
// with the library's packing.
#pragma once

#include <cstdint>
#include <q4/matrix.hpp>
#include <span>
#include <string>
#include <vector>

namespace q4::tools {

double value_of(DType type, const void* data, std::int64_t index);         ///< element of fp16, bf16 or fp32 data
void set_value(DType type, void* data, std::int64_t index, double value);  ///< the same, rounded to nearest even

/// The weights of one matrix. Refers to the tensors' memory, which must be valid host memory: load the matrix first,
/// the library checks it.
class Weights {
 public:
  /// Stored zeros of kAuto are v2 when every one is 8, else v1.
  explicit Weights(const GptqTensors& tensors);
  explicit Weights(const AwqTensors& tensors);

  std::int64_t k() const { return k_; }
  std::int64_t n() const { return n_; }
  /// What makes a comparison meaningless: a scale or bias that is not finite, or nothing but zeros as scales; else
  /// empty.
  std::string problem() const;
  /// Whether fp16 holds every scale as it is; the library rounds the others.
  bool scales_fit_fp16() const;
  double bias(std::int64_t column) const;                             ///< 0 without one
  void column(std::int64_t column, std::span<double> weights) const;  ///< W(0..k-1, column)

 private:
  void set_groups(std::int64_t group_size, const std::optional<TensorView>& g_idx);

  std::int64_t k_ = 0, n_ = 0, groups_ = 0;
  bool awq_ = false, plus_one_ = false;
  const std::uint32_t *qweight_ = nullptr, *qzeros_ = nullptr;
  TensorView scales_;
  std::optional<TensorView> bias_;
  std::vector<std::int32_t> group_;  // of each row
};

/// out[i * columns.size() + j] = x[i, :] @ W[:, columns[j]] + bias, x being [m, k]. Uses every core.
std::vector<double> multiply(const Weights& weights, std::span<const double> x, std::int64_t m,
                             std::span<const std::int64_t> columns);

}  // namespace q4::tools
