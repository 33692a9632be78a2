// What a backend provides for LoRA: a table of adapters of one matrix in its own memory.
#pragma once

#include <cstdint>
#include <q4/device.hpp>
#include <span>

namespace q4 {

struct AdaptersShape {
  std::int64_t k = 0, n = 0;
  bool gate_up = false;  ///< as MatrixShape's: B's columns go where the matrix's went
  std::int64_t adapters = 0, max_rank = 0;
  DType type = DType::kF16;
};

/// Arguments are already checked.
class AdapterTable {
 public:
  explicit AdapterTable(const AdaptersShape& shape) : shape(shape) {}
  virtual ~AdapterTable() = default;
  /// `a` [rank, k], `b` [n, rank]. Waits for the device. Allocates what it needs before it changes anything.
  virtual void set(std::int64_t index, std::int64_t rank, std::span<const float> a, std::span<const float> b,
                   float scale) = 0;
  virtual void remove(std::int64_t index) = 0;
  virtual std::size_t bytes() const = 0;

  const AdaptersShape shape;
};

}  // namespace q4
