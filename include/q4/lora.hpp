// LoraAdapters: low-rank additions to one quantized matrix, chosen row by row.
#pragma once

#include <cstdint>
#include <memory>
#include <q4/matrix.hpp>

namespace q4 {

struct LoraOptions {
  std::int64_t adapters = 8;   ///< places of the table, at most 65536
  std::int64_t max_rank = 64;  ///< the largest rank that set() will accept, 1 to 256
  DType type = DType::kF16;    ///< as PlanOptions::activation; on GPUs A and B are kept in it
};

/// One adapter: W becomes W + scale A^T B^T, as PEFT stores them (lora_A.weight and lora_B.weight).
struct LoraTensors {
  TensorView a;     ///< fp16, bf16 or fp32 [rank, k]
  TensorView b;     ///< fp16, bf16 or fp32 [n, rank]
  float scale = 1;  ///< lora_alpha / rank, or lora_alpha / sqrt(rank) with rslora
};

/// A table of adapters of one matrix on its device. A run of a plan with Epilogue::lora gives each row of x the number
/// of its adapter, and its sums get scale (x A^T) B^T before bias and activation, in fp32 before out is rounded; a GPU
/// rounds scale (x A^T) to the type between the two products. An adapter without content, and a number outside [0,
/// adapters), -1 for one, add nothing.
///
/// Plans and captured graphs read the table when they run: set() and remove() take effect for the launches and replays
/// after them. They wait for the device, so that no earlier work meets a half-written adapter, and must not be called
/// while another thread launches work with this table, nor during a capture. A copy of the handle shares the table; it
/// must live as long as anything that runs with it.
class Q4_API LoraAdapters {
 public:
  LoraAdapters() = default;  ///< empty; using it is an error
  LoraAdapters(const Runtime& runtime, const QuantizedMatrix& matrix, const LoraOptions& options = {});
  explicit operator bool() const noexcept { return impl_ != nullptr; }

  /// Adds an adapter, or replaces the one at this place. The tensors are read during the call. On an error the table is
  /// as before. A matrix loaded with gate_up has B's rows as gates, then ups.
  void set(std::int64_t index, const LoraTensors& tensors);
  void remove(std::int64_t index);              ///< nothing happens where there is none
  std::int64_t rank(std::int64_t index) const;  ///< 0: there is none
  std::int64_t adapters() const;
  std::int64_t max_rank() const;
  std::size_t bytes() const;  ///< device memory held

  class Impl;
  std::shared_ptr<const Impl> impl() const { return impl_; }  ///< internal

 private:
  std::shared_ptr<Impl> impl_;
};

}  // namespace q4
