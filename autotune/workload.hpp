// One multiplication to measure: random GPTQ weights and activations on the host, and what the product must be in fp64.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <q4/matmul.hpp>
#include <q4/matrix.hpp>
#include <span>
#include <string>
#include <vector>

namespace q4::autotune {

/// What is done to the products. Rows are dealt to so many adapters in turn; 0: none.
struct EpilogueChoice {
  std::int64_t adapters = 0, rank = 0;
  Epilogue rest = {};  ///< without lora

  bool any() const { return epilogue() != Epilogue{}; }
  bool gated() const { return rest.activation >= Activation::kSiluMul; }
  Epilogue epilogue() const { return {rest.activation, rest.residual, adapters > 0}; }
  std::string text() const;  ///< as tuning records name it
};

/// What is multiplied. `label` is for people: "gate_up".
struct Problem {
  std::string label;
  std::int64_t k = 0, n = 0, group = 128;  ///< group: rows that share a scale, 8 <= group <= k
  bool act_order = false;
  /// A layer of experts instead: W13 k x 2 width and W2 width x n of so many experts, topk of them a token; m counts
  /// tokens. 0: one matrix.
  std::int64_t experts = 0, topk = 0, width = 0;
  EpilogueChoice with = {};  ///< in every plan

  std::int64_t groups() const { return (k + group - 1) / group; }
  /// Bytes that a multiplication must move: codes, fp16 scales and 4-bit zeros, x and out in 16 bits. Of experts those
  /// that a uniform routing of m tokens meets; m = 0: of all.
  double bytes(std::int64_t m) const;
  double flops(std::int64_t m) const;
  double weights() const;
};

class Workload {
 public:
  /// `expect` is called now and then with the seconds that the rest of making it will take, going by the part that is
  /// done; what it throws ends that.
  Workload(
      const Problem& problem, DType activation, const std::function<void(double)>& expect = [](double) {});

  const Problem& problem() const { return problem_; }
  DType activation() const { return activation_; }
  /// Views of host memory that this object owns.
  GptqTensors tensors() const;

  /// Activations repeat after period() rows: row r of x is row r % period() of x().
  std::span<const std::byte> x() const { return x_; }
  std::vector<std::byte> x_as(DType type) const;  ///< x() in another type
  std::int64_t period() const { return period_; }

  /// One row of an output, elements of the activations' type, on the host.
  struct OutputRow {
    std::int64_t row = 0;
    const std::byte* data = nullptr;
  };
  /// Seconds that the fp64 products of these rows will take, except those that are known, going by those so far.
  double reference_s(const std::vector<std::int64_t>& rows) const;
  /// What an epilogue makes of the sums of a row's sampled columns. The second half of the columns is the first, n / 2
  /// further on; an epilogue that multiplies the two leaves its results in the first half.
  using Finish = std::function<void(std::int64_t row, std::span<const std::int64_t> columns, std::span<double> sums)>;
  /// Relative error over the sampled columns of these rows; NaN when any element of them is NaN. `outs`: columns of a
  /// row, 0: n.
  double error(std::span<const OutputRow> rows, const Finish& finish = {}, std::int64_t outs = 0);

 private:
  const std::vector<double>& reference(std::int64_t row);

  Problem problem_;
  DType activation_;
  std::vector<std::uint32_t> qweight_, qzeros_;
  std::vector<std::uint16_t> scales_;
  std::vector<std::int32_t> g_idx_;
  std::int64_t period_ = 0;
  std::vector<std::byte> x_;
  std::vector<std::int64_t> columns_;                       ///< sampled ones
  std::vector<double> weights_;                             ///< [columns_, k], what the tensors say
  double row_s_ = 0;                                        ///< of one row's products, the last one's
  std::map<std::int64_t, std::vector<double>> references_;  ///< row % period: the products of the sampled columns
};

}  // namespace q4::autotune
