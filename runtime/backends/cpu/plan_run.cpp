// Runs one prepared multiplication on the pool.
#include <algorithm>

#include "runtime/backends/cpu/blas.hpp"
#include "runtime/backends/cpu/exact.hpp"
#include "runtime/backends/cpu/plan.hpp"

namespace q4::cpu {

void CpuPlan::run(void*, const void* x, std::int64_t x_stride, void* out, std::int64_t out_stride, std::int64_t m,
                  void* workspace) const {
  const CpuConfig chosen = config(m);
  auto* memory = workspace ? static_cast<std::byte*>(workspace) : own_workspace_.get();
  const std::int64_t size = element_ == Element::kF32 ? 4 : 2;
  for (std::int64_t row = 0; row < m; row += kChunkRows) {
    const Rows rows{static_cast<const std::byte*>(x) + row * x_stride * size, x_stride,
                    static_cast<std::byte*>(out) + row * out_stride * size, out_stride, std::min(kChunkRows, m - row)};
    if (chosen.path == Path::kBlas) {
      run_blas(rows, memory);
    } else {
      run_tiles(chosen, rows, memory);
    }
  }
}

PackX CpuPlan::pack_job(const Rows& rows, std::byte* workspace) const {
  PackX job{};
  job.x = rows.x;
  job.x_stride = rows.x_stride;
  job.element = element_;
  job.source = matrix_->source.empty() ? nullptr : matrix_->source.data();
  job.k = matrix_->k;
  job.blocks = matrix_->blocks;
  job.segment = matrix_->segment;
  job.rows = rows.count;
  job.out = workspace;
  job.sums = reinterpret_cast<float*>(workspace + sums_at_);
  return job;
}

void CpuPlan::run_tiles(const CpuConfig& config, const Rows& rows, std::byte* workspace) const {
  const Path path = config.path;
  const bool bf16 = path == Path::kDirectBf16 || path == Path::kPanelBf16;
  const auto pack_x = path == Path::kAmx     ? kernels_.pack_x_amx
                      : path == Path::kInt8  ? kernels_.pack_x_int8
                      : bf16                 ? kernels_.pack_x_bf16
                      : path == Path::kPanel ? kernels_.pack_x_panel
                                             : kernels_.pack_x;
  const auto multiply = path == Path::kAmx          ? kernels_.amx
                        : path == Path::kInt8       ? kernels_.int8
                        : path == Path::kDirectBf16 ? kernels_.direct_bf16
                        : path == Path::kPanelBf16  ? kernels_.panel_bf16
                        : path == Path::kDirect     ? kernels_.direct
                                                    : kernels_.panel;
  // Rows that a kernel takes at a time: tasks begin at multiples.
  const std::size_t step = path == Path::kAmx ? 2 * 16 : path == Path::kPanel ? std::size_t(kernels_.panel_rows) : 1;
  const PackX packing = pack_job(rows, workspace);
  // Few values are packed sooner than the pool wakes up.
  const auto pack_rows =
      std::int64_t(round_up(std::max<std::size_t>(1, (std::size_t(1) << 15) / std::size_t(packing.blocks * kBlock)),
                            path == Path::kPanel ? step : 1));  // AMX packs row by row
  // A rest that the panel kernel's groups would cross belongs to the task before.
  const std::int64_t rest = path == Path::kPanel ? kernels_.panel_rows : 1;
  const auto tasks = [&](std::int64_t count, std::int64_t size) {
    return std::max<std::int64_t>((count - rest) / size, 0) + 1;
  };
  const auto end_of = [&](std::int64_t begin, std::int64_t size) {
    return rows.count - begin - size < rest ? rows.count : begin + size;
  };
  const auto pack_task = [&](std::int64_t task, int) {
    pack_x(packing, task * pack_rows, end_of(task * pack_rows, pack_rows));
  };
  pool_.run(tasks(rows.count, pack_rows), pack_task, config.threads);

  const std::int64_t most = task_rows(config), parts = (rows.count + most - 1) / most;
  const auto part = std::int64_t(round_up(std::size_t((rows.count + parts - 1) / parts), step));
  const std::int64_t blocks = matrix_->blocks, some = task_blocks(config, part),
                     step_rows = some < blocks ? part : rows.count;
  std::int64_t first = 0, begin = 0;
  const auto multiply_task = [&](std::int64_t task, int worker) {
    const std::int64_t tile = task % matrix_->tiles, row = first + task / matrix_->tiles * part;
    const std::int64_t end = std::min(begin + some, blocks);
    std::byte* scratch = workspace + scratch_at_ + std::size_t(worker) * kThreadScratch;
    auto* y = some < blocks ? reinterpret_cast<float*>(workspace + partial_at_) + tile * kPartialRows * kTile
                            : reinterpret_cast<float*>(scratch + kScratch);
    const int count = int(end_of(row, part) - row);
    multiply({matrix_->tile(tile), end, matrix_->segment, packing.out, packing.sums, rows.count, row, count,
              bf16_terms(element_), y, scratch, begin});
    if (end < blocks) return;
    store(rows, row, count, tile, y, kTile, scratch);
  };
  for (; first < rows.count; first += step_rows)
    for (begin = 0; begin < blocks; begin += some)
      pool_.run(tasks(step_rows, part) * matrix_->tiles, multiply_task, config.threads);
}

void CpuPlan::store(const Rows& rows, std::int64_t row, int count, std::int64_t tile, float* y, std::int64_t y_stride,
                    std::byte* scratch) const {
  const std::int64_t size = element_ == Element::kF32 ? 4 : 2;
  const int columns = int(std::min<std::int64_t>(kTile, matrix_->n - tile * kTile));
  StoreJob job{y,
               y_stride,
               count,
               columns,
               matrix_->bias.empty() ? nullptr : matrix_->bias.data() + tile * kTile,
               rows.out + (row * rows.out_stride + tile * kTile) * size,
               rows.out_stride,
               element_};
  kernels_.store(job);
  if (int8_) return;  // there infinity and NaN make their row NaN
  job.rows = 1, job.bias = nullptr;
  for (int r = 0; r < count;
       ++r, job.y += y_stride, job.out = static_cast<std::byte*>(job.out) + rows.out_stride * size) {
    if (!has_nonfinite(job.y)) continue;
    make_exact({matrix_.get(), &kernels_, tile, rows.x + (row + r) * rows.x_stride * size, element_, y + r * y_stride,
                columns, reinterpret_cast<float*>(scratch)});
    kernels_.store(job);
  }
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
