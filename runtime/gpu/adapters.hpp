// Adapters in device memory, as kernels/lora.h draws them.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/lora.h"
#include "runtime/backends/adapters.hpp"
#include "runtime/gpu/memory.hpp"

namespace q4::gpu {

class Adapters : public AdapterTable {
 public:
  Adapters(std::shared_ptr<Driver> driver, const AdaptersShape& shape);
  void set(std::int64_t index, std::int64_t rank, std::span<const float> a, std::span<const float> b,
           float scale) override;
  void remove(std::int64_t index) override;
  std::size_t bytes() const override;

  const LoraEntry* table() const { return table_.as<const LoraEntry>(); }

 private:
  struct Memory {
    Buffer a, b;
  };
  /// The entry is what launches meet from here on; what was there before goes when nothing reads it any more.
  void put(std::int64_t index, const LoraEntry& entry, Memory memory);

  std::shared_ptr<Driver> driver_;
  Buffer table_;  ///< LoraEntry [adapters]
  std::vector<Memory> memory_;
};

}  // namespace q4::gpu
