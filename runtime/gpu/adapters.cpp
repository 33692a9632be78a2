// Puts adapters where kernels find them.
#include "runtime/gpu/adapters.hpp"

#include "runtime/base/convert.hpp"

namespace q4::gpu {

Adapters::Adapters(std::shared_ptr<Driver> driver, const AdaptersShape& shape)
    : AdapterTable(shape),
      driver_(std::move(driver)),
      table_(driver_, static_cast<std::size_t>(shape.adapters) * sizeof(LoraEntry), MemoryKind::kWeights),
      memory_(static_cast<std::size_t>(shape.adapters)) {
  driver_->fill(table_.get(), 0, table_.bytes());
}

void Adapters::set(std::int64_t index, std::int64_t rank, std::span<const float> a, std::span<const float> b,
                   float scale) {
  const int k = static_cast<int>(shape.k), n = static_cast<int>(shape.n), ranks = static_cast<int>(rank);
  const int chunks = lora_chunks(ranks);
  const auto bits = [&](float v) { return shape.type == DType::kBF16 ? bf16_from_float(v) : half_from_float(v); };
  std::vector<std::uint16_t> a_bits(static_cast<std::size_t>(lora_a_elements(k, ranks)));
  std::vector<std::uint16_t> b_bits(static_cast<std::size_t>(lora_b_elements(n, ranks)));
  for (int r = 0; r < ranks; ++r)
    for (int i = 0; i < k; ++i)
      a_bits[static_cast<std::size_t>(lora_a_place(k, i, r))] = bits(a[static_cast<std::size_t>(r) * shape.k + i]);
  for (int column = 0; column < n; ++column) {
    const int packed = shape.gate_up ? paired_place(column, n) : column;
    for (int r = 0; r < ranks; ++r)
      b_bits[static_cast<std::size_t>(lora_b_place(chunks, r, packed))] =
          bits(b[static_cast<std::size_t>(column) * rank + r]);
  }
  Memory memory;
  for (const auto& [buffer, from] : {std::pair{&memory.a, &a_bits}, std::pair{&memory.b, &b_bits}}) {
    *buffer = Buffer(driver_, from->size() * 2, MemoryKind::kWeights);
    driver_->copy(buffer->get(), from->data(), from->size() * 2, CopyKind::kToDevice);
  }
  const LoraEntry entry{memory.a.as<const u16>(), memory.b.as<const u16>(), chunks, scale};
  put(index, entry, std::move(memory));
}

void Adapters::remove(std::int64_t index) {
  if (memory_[static_cast<std::size_t>(index)].a.get()) put(index, {}, {});
}

void Adapters::put(std::int64_t index, const LoraEntry& entry, Memory memory) {
  driver_->synchronize();  // an entry is more than one word: nobody may be reading it
  driver_->copy(table_.as<LoraEntry>() + index, &entry, sizeof entry, CopyKind::kToDevice);
  driver_->synchronize();
  memory_[static_cast<std::size_t>(index)] = std::move(memory);  // swaps: the old goes with `memory`
}

std::size_t Adapters::bytes() const {
  std::size_t all = table_.bytes();
  for (const Memory& memory : memory_) all += memory.a.bytes() + memory.b.bytes();
  return all;
}

}  // namespace q4::gpu
