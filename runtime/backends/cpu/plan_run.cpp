// Runs one prepared multiplication on the pool.
#include <algorithm>
#include <atomic>
#include <utility>

#include "runtime/backends/cpu/blas.hpp"
#include "runtime/backends/cpu/epilogue.hpp"
#include "runtime/backends/cpu/exact.hpp"
#include "runtime/backends/cpu/norm.hpp"
#include "runtime/backends/cpu/plan.hpp"
#include "runtime/choose/epilogue.hpp"

namespace q4::cpu {

void CpuPlan::run(void*, const void* x, std::int64_t x_stride, void* out, std::int64_t out_stride, std::int64_t m,
                  void* workspace, const EpilogueInputs& inputs) const {
  const CpuConfig chosen = config(m);
  auto* memory = workspace ? static_cast<std::byte*>(workspace) : own_workspace_.as<std::byte>();
  const std::int64_t size = element_ == Element::kF32 ? 4 : 2;
  for (std::int64_t row = 0; row < m; row += kChunkRows) {
    Rows rows{static_cast<const std::byte*>(x) + row * x_stride * size, x_stride,
              static_cast<std::byte*>(out) + row * out_stride * size, out_stride, std::min(kChunkRows, m - row)};
    if (inputs.residual) {
      rows.residual = static_cast<const std::byte*>(inputs.residual) + row * inputs.residual_stride * size;
      rows.residual_stride = inputs.residual_stride;
    }
    if (norm_) {
      rows.norm_weight = static_cast<const std::byte*>(inputs.norm_weight);
      run_norm(rows, memory);
    }
    if (inputs.adapters) {
      rows.adapters = static_cast<const CpuAdapters*>(inputs.adapters);
      rows.adapter_of_row = inputs.adapter_of_row + row;
      rows.low = run_shrink(rows, memory);
    }
    if (chosen.path == Path::kBlas) {
      run_blas(rows, memory);
    } else {
      run_tiles(chosen, rows, memory);
    }
  }
}

const float* CpuPlan::run_shrink(const Rows& rows, std::byte* workspace) const {
  const std::int64_t size = element_ == Element::kF32 ? 4 : 2;
  auto* low = reinterpret_cast<float*>(workspace + low_at_);
  std::byte* values = workspace + low_at_ + round_up(std::size_t(rows.count * lora_rank_) * sizeof(float), 256);
  pool_.run(rows.count, [&](std::int64_t row, int worker) {
    if (const auto* entry = rows.adapters->entry(rows.adapter_of_row[row]))
      shrink(*entry, rows.x + row * rows.x_stride * size, element_, matrix_->k,
             reinterpret_cast<float*>(values + std::size_t(worker) * round_up(std::size_t(matrix_->k) * 4, 256)),
             low + row * lora_rank_);
  });
  return low;
}

void CpuPlan::run_norm(Rows& rows, std::byte* workspace) const {
  const std::int64_t size = element_ == Element::kF32 ? 4 : 2, k = matrix_->k;
  const auto one = [&](std::int64_t row, int) {
    normalize({rows.x + row * rows.x_stride * size, rows.norm_weight, workspace + normed_at_ + row * k * size, k,
               element_, norm_epsilon_});
  };
  if (rows.count == 1)
    one(0, 0);
  else
    pool_.run(rows.count, one);
  rows.x = workspace + normed_at_, rows.x_stride = k;
}

PackX CpuPlan::pack_job(const Rows& rows, std::byte* workspace) const {
  PackX job{};
  job.x = rows.x;
  job.x_stride = rows.x_stride;
  job.element = element_;
  job.source = matrix_->source.empty() || given_ ? nullptr : matrix_->source.data();
  job.k = matrix_->k;
  job.blocks = matrix_->blocks;
  job.segment = matrix_->segment;
  job.rows = rows.count;
  job.out = workspace;
  job.sums = reinterpret_cast<float*>(workspace + sums_at_);
  job.begin = 0;
  job.end = matrix_->blocks;
  return job;
}

void CpuPlan::run_tiles(const CpuConfig& config, const Rows& rows, std::byte* workspace) const {
  const auto [pack_x, multiply] = kernels_of(kernels_, config.path);
  PackedX x{pack_job(rows, workspace), pack_x};
  if (in_place(config, x.packing)) {
    x.packing.out = nullptr;
  } else if (packs_own(config, x.packing)) {
    x.own = true;
    for (int worker = 0; worker < pool_.threads(); ++worker) has_own_x(worker, workspace) = false;
  } else {
    pack_rows(pack_x, x.packing, config);
  }
  const std::int64_t parts = k_parts(rows.count);
  if (parts > 1) {
    multiply_parts(multiply, x, config, rows, parts, workspace);
  } else {
    multiply_rows(multiply, x, config, rows, workspace);
  }
}

// Packing writes lines that all threads have in their caches from the run before, which costs 70 to 110 ns a line. Not
// packed, 16 rows that lie pages apart are in one set of the first-level cache, which costs the kernel 8%.
bool CpuPlan::in_place(const CpuConfig& config, const PackX& packing) const {
  constexpr std::int64_t kRows = 16, kLine = 64 / 2, kFewTiles = 128, kSets = 2048, kWays = 8;
  const bool whole = packing.rows < kRows || packing.rows % kRows == 0;  // tiles read no row past the last
  const bool apart = packing.rows <= kWays || packing.x_stride % kSets != 0;
  return config.path == Path::kAmx && element_ == Element::kBF16 && !packing.source && packing.k % kBlock == 0 &&
         whole && (apart || matrix_->tiles <= kFewTiles) && packing.x_stride % kLine == 0 &&
         reinterpret_cast<std::uintptr_t>(packing.x) % 64 == 0;
}

// Threads that pack x for all write lines which the others still have in their caches from the run before, and that is
// slow. Each packs a copy of its own faster, as long as it fits half of its second-level cache.
bool CpuPlan::packs_own(const CpuConfig& config, const PackX& packing) const {
  const bool tiles = config.path == Path::kAmx || config.path == Path::kAmxDigits;
  return tiles && packs_own_ && !packing.source && config.threads != 1 &&
         packed_bytes(config.path, packing.rows) <= own_bytes_;
}

std::size_t CpuPlan::packed_bytes(Path path, std::int64_t rows) const {
  if (path == Path::kAmxDigits) return std::size_t(rows * matrix_->blocks * kBlock) * 4;
  return round_up(std::size_t(rows), 16) * std::size_t(matrix_->blocks * amx_block_bytes(element_));
}

bool& CpuPlan::has_own_x(int worker, std::byte* workspace) const {
  return *reinterpret_cast<bool*>(workspace + scratch_at_ + std::size_t(worker + 1) * kThreadScratch - kLine);
}

const void* CpuPlan::own_x(const PackedX& x, int worker, std::byte* workspace) const {
  PackX own = x.packing;
  own.out = workspace + std::size_t(worker) * own_bytes_;
  if (!std::exchange(has_own_x(worker, workspace), true)) x.pack(own, 0, own.rows);
  return own.out;
}

void CpuPlan::pack_rows(Pack pack_x, const PackX& packing, const CpuConfig& config) const {
  constexpr std::int64_t kPiece = 1 << 12,
                         kAlone = 4 * kPiece;  // values: so few are packed sooner than threads wake up
  const std::int64_t rest = rest_rows(kernels_, config.path), values = packing.blocks * kBlock;
  if (values * packing.rows <= kAlone) return pack_x(packing, 0, packing.rows);
  const auto some = std::int64_t(round_up(std::size_t(std::max<std::int64_t>(1, kPiece / values)), std::size_t(rest)));
  const std::int64_t row_parts = std::max<std::int64_t>((packing.rows - rest) / some, 0) + 1;
  const std::int64_t block_parts = std::max<std::int64_t>(1, some * values / (2 * kPiece));
  pool_.run(
      row_parts * block_parts,
      [&](std::int64_t task, int) {
        const std::int64_t row = task / block_parts * some, part = task % block_parts;
        PackX piece = packing;
        piece.begin = part * packing.blocks / block_parts;
        piece.end = (part + 1) * packing.blocks / block_parts;
        pack_x(piece, row, end_of_task(row, some, packing.rows, rest));
      },
      config.threads);
}

TileJob CpuPlan::tile_job(const PackedX& x, std::int64_t tile, int worker, std::byte* workspace) const {
  const PackX& packing = x.packing;
  TileJob job{};
  job.weights = matrix_->tile(tile);
  job.blocks = job.end = matrix_->blocks;
  job.segment = matrix_->segment;
  job.x = x.own ? own_x(x, worker, workspace) : packing.out ? packing.out : packing.x;
  if (!packing.out) job.x_stride = packing.x_stride;
  job.sums = packing.sums;
  job.x_rows = packing.rows;
  job.rows = int(packing.rows);
  job.terms = bf16_terms(element_);
  auto* scratch = workspace + scratch_at_ + std::size_t(worker) * kThreadScratch;
  job.scratch = scratch;
  job.y = reinterpret_cast<float*>(scratch + kScratch);
  return job;
}

void CpuPlan::store(const Rows& rows, std::int64_t row, int count, std::int64_t tile, float* y, std::int64_t y_stride,
                    std::byte* scratch, int column, int columns) const {
  if (!choose::is_plain(epilogue_)) return finish_and_store(rows, row, count, tile, y, y_stride, scratch);
  const std::int64_t size = element_ == Element::kF32 ? 4 : 2;
  columns = int(std::min<std::int64_t>(columns, matrix_->n - tile * kTile - column));
  StoreJob job{y + column,
               y_stride,
               count,
               columns,
               matrix_->bias.empty() ? nullptr : matrix_->bias.data() + tile * kTile + column,
               rows.out + (row * rows.out_stride + tile * kTile + column) * size,
               rows.out_stride,
               element_};
  kernels_.store(job);
  if (int8_) return;  // there infinity and NaN make their row NaN
  job.rows = 1, job.bias = nullptr;
  for (int r = 0; r < count;
       ++r, job.y += y_stride, job.out = static_cast<std::byte*>(job.out) + rows.out_stride * size) {
    float* const sums = y + r * y_stride;
    if (!has_nonfinite(sums)) continue;
    make_exact({matrix_.get(), &kernels_, tile, rows.x + (row + r) * rows.x_stride * size, element_, sums,
                column + columns, reinterpret_cast<float*>(scratch), given_});
    kernels_.store(job);
  }
}

void CpuPlan::finish_and_store(const Rows& rows, std::int64_t row, int count, std::int64_t tile, float* y,
                               std::int64_t y_stride, std::byte* scratch) const {
  const std::int64_t size = element_ == Element::kF32 ? 4 : 2;
  const int columns = int(std::min<std::int64_t>(kTile, matrix_->n - tile * kTile));
  const float* bias = matrix_->bias.empty() ? nullptr : matrix_->bias.data() + tile * kTile;
  for (int r = 0; r < count; ++r) {
    float* sums = y + r * y_stride;
    if (!int8_ && has_nonfinite(sums))
      make_exact({matrix_.get(), &kernels_, tile, rows.x + (row + r) * rows.x_stride * size, element_, sums, columns,
                  reinterpret_cast<float*>(scratch), given_});
    else if (bias)
      for (int c = 0; c < columns; ++c) sums[c] += bias[c];
    if (!rows.adapters) continue;
    if (const auto* entry = rows.adapters->entry(rows.adapter_of_row[row + r]))
      expand(*entry, rows.low + (row + r) * lora_rank_, tile, rows.adapters->columns(), sums);
  }
  const int gated = choose::is_gated(epilogue_.activation) ? 2 : 1;
  const std::int64_t first = tile * (kTile / gated);  // column of out
  const std::byte* residual = rows.residual ? rows.residual + ((row * rows.residual_stride + first) * size) : nullptr;
  finish({y, y_stride, count, columns, residual, rows.residual_stride, element_}, epilogue_.activation);
  kernels_.store({y, y_stride, count, columns / gated, nullptr, rows.out + (row * rows.out_stride + first) * size,
                  rows.out_stride, element_});
}

// Few rows: parts of k are tasks, so that threads finish together. Who finishes a tile's last part adds them in order.
void CpuPlan::multiply_parts(Multiply multiply, const PackedX& x, const CpuConfig& config, const Rows& rows,
                             std::int64_t parts, std::byte* workspace) const {
  auto* const done = reinterpret_cast<std::uint32_t*>(workspace + partial_at_);
  std::fill(done, done + matrix_->tiles, 0u);
  const std::int64_t size = rows.count * kTile;
  auto* const partial = reinterpret_cast<float*>(workspace + partial_at_ + counters_bytes());
  pool_.run(
      matrix_->tiles * parts,
      [&](std::int64_t task, int worker) {
        const std::int64_t tile = task / parts, part = task % parts;
        TileJob job = tile_job(x, tile, worker, workspace);
        job.y = partial + task * size;
        job.begin = part * matrix_->blocks / parts;
        job.end = (part + 1) * matrix_->blocks / parts;
        multiply(job);
        if (std::atomic_ref(done[tile]).fetch_add(1, std::memory_order_acq_rel) + 1 != std::uint32_t(parts)) return;
        job.y = partial + tile * parts * size;
        for (std::int64_t other = 1; other < parts; ++other) {
          const float* from = job.y + other * size;
          for (std::int64_t i = 0; i < rows.count * kTile; ++i) job.y[i] += from[i];
        }
        store(rows, job.row, job.rows, tile, job.y, kTile, static_cast<std::byte*>(job.scratch));
      },
      config.threads);
}

void CpuPlan::multiply_rows(Multiply multiply, const PackedX& x, const CpuConfig& config, const Rows& rows,
                            std::byte* workspace) const {
  const auto step = std::size_t(step_rows(kernels_, config.path));
  const std::int64_t rest = rest_rows(kernels_, config.path);
  const std::int64_t most = task_rows(config), parts = (rows.count + most - 1) / most;
  const auto part = std::int64_t(round_up(std::size_t((rows.count + parts - 1) / parts), step));
  const std::int64_t row_parts = std::max<std::int64_t>((rows.count - rest) / part, 0) + 1;
  const std::int64_t blocks = matrix_->blocks, some = task_blocks(config, part);
  // Where k goes in parts, a task has some tiles, so that each part of x serves them all while it is in the cache.
  std::int64_t tiles = some < blocks ? kChunkRows / kPartialRows : 1;
  while (tiles > 1 && row_parts * matrix_->tiles < 2 * tiles * pool_.threads()) tiles /= 2;
  // A task of one tile on AMX is two halves, and one of several is as many pieces: threads take fewer at the end.
  const int halves = config.path == Path::kAmx && choose::is_plain(epilogue_) && tiles == 1 ? 2 : 1;
  const int grain = tiles > 1 ? int(tiles) : halves;
  const std::int64_t pieces = std::int64_t(round_up(std::size_t(matrix_->tiles), std::size_t(tiles))) * halves;
  const auto multiply_task = [&](std::int64_t piece, std::int64_t end_piece, int worker) {
    const std::int64_t first = piece % pieces / halves, row = piece / pieces * part;
    const std::int64_t end = std::min(first + (end_piece - piece + halves - 1) / halves, matrix_->tiles);
    const int columns = end_piece - piece < halves ? kTile / halves : kTile;
    const int column = int(piece % halves) * columns;
    for (std::int64_t begin = 0; begin < blocks; begin += some) {
      for (std::int64_t tile = first; tile < end && tile * kTile + column < matrix_->n; ++tile) {
        TileJob job = tile_job(x, tile, worker, workspace);
        job.row = row;
        job.rows = int(end_of_task(job.row, part, rows.count, rest) - job.row);
        job.begin = begin;
        job.end = std::min(begin + some, blocks);
        job.add = begin > 0;
        job.column = column, job.columns = columns;
        job.y += (tile - first) * part * kTile;
        multiply(job);
        if (job.end == blocks)
          store(rows, job.row, job.rows, tile, job.y, kTile, static_cast<std::byte*>(job.scratch), column, columns);
      }
    }
  };
  pool_.run_grains(row_parts * pieces, grain, multiply_task, config.threads);
}

void CpuPlan::run_blas(const Rows& rows, std::byte* workspace) const {
  const std::int64_t packed_k = matrix_->blocks * kBlock, size = element_ == Element::kF32 ? 4 : 2;
  auto* x = reinterpret_cast<float*>(workspace);
  auto* dense = reinterpret_cast<float*>(workspace + dense_at_);
  auto* product = reinterpret_cast<float*>(workspace + product_at_);
  pool_.run(rows.count, [&](std::int64_t row, int) {  // packed alone, a row is contiguous
    PackX job = pack_job({rows.x + row * rows.x_stride * size, rows.x_stride, nullptr, 0, 1}, workspace);
    job.out = x + row * packed_k;
    job.sums += row * packed_k / matrix_->segment;
    kernels_.pack_x(job, 0, 1);
  });
  constexpr std::int64_t kTiles = kDenseColumns / kTile;
  for (std::int64_t first = 0; first < matrix_->tiles; first += kTiles) {
    const std::int64_t tiles = std::min(kTiles, matrix_->tiles - first);
    pool_.run(tiles, [&](std::int64_t tile, int) {
      kernels_.dequantize(matrix_->tile(first + tile), matrix_->blocks, matrix_->segment, dense + tile * kTile,
                          kDenseColumns);
    });
    blas().multiply(rows.count, tiles * kTile, packed_k, x, packed_k, dense, kDenseColumns, product, kDenseColumns);
    pool_.run(tiles, [&](std::int64_t index, int worker) {
      store(rows, 0, int(rows.count), first + index, product + index * kTile, kDenseColumns,
            workspace + scratch_at_ + std::size_t(worker) * kThreadScratch);
    });
  }
}

}  // namespace q4::cpu
