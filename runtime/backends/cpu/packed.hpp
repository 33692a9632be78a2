// CpuMatrix: weights in the layout of layout.hpp, and what a run needs beside them.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "runtime/backends/backend.hpp"
#include "runtime/backends/cpu/layout.hpp"
#include "runtime/backends/cpu/thread_pool.hpp"
#include "runtime/backends/packed_groups.hpp"
#include "runtime/base/memory.hpp"

namespace q4::cpu {

/// Aligned to 256 bytes, to huge pages (and asking for them) from 2 MiB on. Freed with free(). Throws kOutOfMemory.
void* allocate_aligned(std::size_t bytes);

struct CpuMatrix final : PackedMatrix {
  CpuMatrix() = default;
  /// Without weights. With `gate_up` each half of the columns begins with a tile of its own, so that tile i of the one
  /// has the columns of tile i of the other.
  CpuMatrix(const MatrixShape& shape, bool gate_up, ThreadPool& pool);

  std::int64_t k = 0, n = 0, blocks = 0, tiles = 0;
  std::int64_t span = 0;             ///< columns that fill whole tiles together: n, or n / 2 of gate and of up
  int segment = 0;                   ///< rows that share scales inside a block
  std::vector<std::int32_t> source;  ///< [blocks * kBlock] row of x for each packed row, -1: padding; empty: identity
  std::vector<float> bias;           ///< [tiles * kTile] in packed order, or empty
  Buffer weights;

  std::size_t tile_bytes() const { return std::size_t(blocks) * block_bytes(segment); }
  const std::byte* tile(std::int64_t index) const {
    return weights.as<const std::byte>() + std::size_t(index) * tile_bytes();
  }
  std::int64_t span_tiles() const { return (span + kTile - 1) / kTile; }
  /// The first column of a tile, and how many it has.
  std::int64_t column_of(std::int64_t tile) const { return tile / span_tiles() * span + tile % span_tiles() * kTile; }
  int columns_of(std::int64_t tile) const {
    return int(span - tile % span_tiles() * kTile < kTile ? span - tile % span_tiles() * kTile : kTile);
  }
  PackedGroups groups;
  std::int64_t unit = 0;  ///< packed rows of a unit of `groups`
  bool awq = false, act_order = false;
  bool pairs = false;          ///< columns are packed as pairs (kernels/layout.h), in the tiles of a whole span
  ThreadPool* pool = nullptr;  ///< of the device, which outlives its matrices

  /// The column of W at column `column` of the packed order, which pairs change.
  std::int64_t source_column(std::int64_t column) const;
  UnpackedSource unpack() const override;
  void update(const MatrixSource& source, void* stream) override;
  std::size_t bytes() const override {
    return std::size_t(tiles) * tile_bytes() + source.size() * sizeof(source[0]) + bias.size() * sizeof(bias[0]);
  }
};

std::unique_ptr<CpuMatrix> pack(const MatrixSource& source, ThreadPool& pool,
                                const std::shared_ptr<MemoryLedger>& ledger);

}  // namespace q4::cpu
