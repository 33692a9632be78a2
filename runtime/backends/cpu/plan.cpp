// Runs one prepared multiplication on the pool.
#include "runtime/backends/cpu/plan.hpp"

#include <algorithm>

#include "runtime/backends/cpu/blas.hpp"
#include "runtime/check.hpp"

namespace q4::cpu {
namespace {

constexpr std::int64_t kChunkRows = 512;           // rows of a pass over the weights: bounds the workspace
constexpr std::int64_t kMostRows = 512;            // of a task
constexpr std::int64_t kFewRows = 4;               // that the fp32 kernels decode and multiply as fast as memory comes
constexpr std::int64_t kDenseColumns = 4 * kTile;  // columns that reconstruct + BLAS takes at a time
constexpr std::size_t kAlign = 256;
constexpr std::size_t kThreadScratch = kScratch + kMostRows * kTile * sizeof(float);
constexpr Path kPaths[] = {Path::kDirect, Path::kPanel, Path::kDirectBf16, Path::kPanelBf16,
                           Path::kAmx,    Path::kInt8,  Path::kBlas};

std::size_t round_up(std::size_t value, std::size_t to) { return (value + to - 1) / to * to; }

Element element_of(DType type) {
  switch (type) {
    case DType::kF16:
      return Element::kF16;
    case DType::kBF16:
      return Element::kBF16;
    case DType::kF32:
      return Element::kF32;
    default:
      fail(ErrorCode::kInvalidArgument, "plan: activation is {}; use fp16, bf16 or fp32", to_string(type));
  }
}

}  // namespace

const char* to_string(Path path) noexcept {
  switch (path) {
    case Path::kDirect:
      return "cpu-direct math=fp32";
    case Path::kPanel:
      return "cpu-panel math=fp32";
    case Path::kDirectBf16:
      return "cpu-direct math=bf16";
    case Path::kPanelBf16:
      return "cpu-panel math=bf16";
    case Path::kAmx:
      return "cpu-amx math=bf16";
    case Path::kInt8:
      return "cpu-direct math=int8";
    case Path::kBlas:
      return "reconstruct+blas";
  }
  return "";
}

std::string CpuConfig::name() const {
  std::string text = to_string(path);
  CpuConfig now = *this, usual;
  std::vector<int> values;
  usual.fields([&](const char*, int& value, auto...) { values.push_back(value); });
  std::size_t field = 0;
  now.fields([&](const char* tunable, int& value, auto...) {
    if (value != values[field++]) text += fmt::format(" {}={}", tunable, value);
  });
  return text;
}

CpuPlan::CpuPlan(std::shared_ptr<const CpuMatrix> matrix, const Kernels& kernels, ThreadPool& pool,
                 const PlanOptions& options, const TuningRecord* tuned)
    : matrix_(std::move(matrix)),
      kernels_(kernels),
      pool_(pool),
      element_(element_of(options.activation)),
      int8_(options.math == Math::kInt8),
      batch_invariant_(options.batch_invariant) {
  if (!options.tactic.empty()) {
    forced_ = true;
    forced_config_ = parse(options.tactic);
  } else if (!batch_invariant_ && !int8_) {
    const std::string_view isa = kernels_.isa;
    // The BLAS brings threads of its own, which an embedder's pool need not have room for.
    const bool slow_kernels = (isa == "portable" || isa == "sse4") && !pool_.embedded();
    blas_from_ = options.reconstruct_from >= 0 ? options.reconstruct_from
                 : tuned                       ? tuned->reconstruct_from
                 : slow_kernels                ? 32
                                               : 0;
    if (blas_from_ > options.max_m || !valid(Path::kBlas)) blas_from_ = 0;
    if (tuned)
      for (const TunedBucket& bucket : tuned->buckets)
        for (const CpuConfig& config : configs(options.max_m))
          if (config.path != Path::kBlas && bucket.tactic == config.name()) tuned_.push_back({bucket.m, config});
  }
  layout_workspace(options.max_m);
  if (options.own_workspace) own_workspace_.reset(static_cast<std::byte*>(allocate_aligned(workspace_bytes_)));
}

bool CpuPlan::valid(Path path) const {
  if (int8_ != (path == Path::kInt8)) return false;  // quantized activations are asked for, never chosen
  switch (path) {
    case Path::kDirect:
    case Path::kPanel:
    case Path::kInt8:
      return true;
    case Path::kDirectBf16:
    case Path::kPanelBf16:
      return kernels_.direct_bf16 != nullptr && element_ == Element::kBF16;
    case Path::kAmx:
      return kernels_.amx != nullptr && matrix_->segment >= 32;
    case Path::kBlas:
      return blas().available;
  }
  return false;
}

bool CpuPlan::competes(const CpuConfig& config, std::int64_t m) const {
  constexpr CpuConfig kDefault;
  if (config.path == Path::kBlas) return false;
  if (config.rows != kDefault.rows && m <= std::min(config.rows, kDefault.rows)) return false;  // one task either way
  return config.threads == 0 || (pool_.threads() > 1 && m <= kFewRows);  // for what ends before a thread wakes up
}

std::vector<CpuConfig> CpuPlan::configs(std::int64_t m) const {
  std::vector<CpuConfig> list;
  for (const Path path : kPaths) {
    if (!valid(path)) continue;
    CpuConfig config{path};
    list.push_back(config);
    config.fields([&](const char*, int& value, auto... candidates) {  // one tunable at a time
      const int usual = value;
      for (const int candidate : {candidates...}) {
        value = candidate;
        if (competes(config, m)) list.push_back(config);
      }
      value = usual;
    });
  }
  return list;
}

CpuConfig CpuPlan::parse(const std::string& name) const {
  std::string names;
  for (const CpuConfig& config : configs(INT32_MAX)) {
    if (name == config.name()) return config;
    names += (names.empty() ? "" : ", ") + config.name();
  }
  for (const CpuConfig& config : configs(1))
    if (name == config.name()) return config;
  fail(ErrorCode::kInvalidArgument,
       "MatmulPlan: tactic \"{}\" is not available on this CPU for this matrix; use one of: {}", name, names);
}

Path CpuPlan::default_path(std::int64_t m) const {
  if (int8_) return Path::kInt8;
  const bool few = m <= kernels_.direct_rows;
  // One way of adding for every m. A row's sums on AMX depend on nothing but the row; `direct` and `panel` of one math
  // agree to the bit.
  if (batch_invariant_) {
    if (valid(Path::kAmx)) return Path::kAmx;
    if (valid(Path::kDirectBf16)) return m <= kernels_.direct_rows_bf16 ? Path::kDirectBf16 : Path::kPanelBf16;
    return few ? Path::kDirect : Path::kPanel;
  }
  // AMX multiplies once a term, the fp32 kernels once a row and not slower than memory for a few.
  if (valid(Path::kAmx) && m > (bf16_terms(element_) == 1 ? 1 : kFewRows)) return Path::kAmx;
  // Where there is AMX, VDPBF16PS has half the speed of fp32; elsewhere (AMD) twice.
  if (valid(Path::kDirectBf16) && !kernels_.amx && m > 1)
    return m <= kernels_.direct_rows_bf16 ? Path::kDirectBf16 : Path::kPanelBf16;
  return few ? Path::kDirect : Path::kPanel;
}

CpuConfig CpuPlan::config(std::int64_t m) const {
  if (forced_) return forced_config_;
  if (blas_from_ > 0 && m >= blas_from_) return {Path::kBlas};
  for (const Bucket& bucket : tuned_)
    if (m <= bucket.m || &bucket == &tuned_.back()) return bucket.config;
  return {default_path(m)};
}

std::vector<std::string> CpuPlan::tactics(std::int64_t m) const {
  std::vector<std::string> names = {tactic(m)};
  for (const CpuConfig& config : configs(m))
    if (config.name() != names.front()) names.push_back(config.name());
  return names;
}

void CpuPlan::layout_workspace(std::int64_t max_m) {
  chunk_rows_ = std::min(std::max<std::int64_t>(max_m, 1), kChunkRows);
  const auto rows = round_up(std::size_t(chunk_rows_), 16);  // AMX pads
  const auto packed_k = std::size_t(matrix_->blocks * kBlock);
  const std::size_t element = std::max(4, 2 * bf16_terms(element_));
  sums_at_ = round_up(rows * packed_k * element, kAlign);
  const std::size_t sums = int8_ ? 2 : 1;  // scales and sums
  scratch_at_ = sums_at_ + round_up(rows * packed_k / std::size_t(matrix_->segment) * sums * sizeof(float), kAlign);
  workspace_bytes_ = scratch_at_ + std::size_t(pool_.threads()) * kThreadScratch;
  if (blas_from_ > 0 || forced_config_.path == Path::kBlas) {
    dense_at_ = round_up(workspace_bytes_, kAlign);
    product_at_ = dense_at_ + packed_k * kDenseColumns * sizeof(float);
    workspace_bytes_ = product_at_ + rows * kDenseColumns * sizeof(float);
  }
  workspace_bytes_ = round_up(workspace_bytes_, kAlign);
}

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
  const auto pack_rows = std::int64_t(
      round_up(std::max<std::size_t>(1, (std::size_t(1) << 15) / std::size_t(packing.blocks * kBlock)), step));
  const auto pack_task = [&](std::int64_t task, int) {
    pack_x(packing, task * pack_rows, std::min((task + 1) * pack_rows, rows.count));
  };
  pool_.run((rows.count + pack_rows - 1) / pack_rows, pack_task, config.threads);

  const std::int64_t size = element_ == Element::kF32 ? 4 : 2;
  const std::int64_t parts = (rows.count + config.rows - 1) / config.rows;
  const auto part = std::int64_t(round_up(std::size_t((rows.count + parts - 1) / parts), step));
  const auto multiply_task = [&](std::int64_t task, int worker) {
    const std::int64_t tile = task % matrix_->tiles, row = task / matrix_->tiles * part;
    std::byte* scratch = workspace + scratch_at_ + std::size_t(worker) * kThreadScratch;
    auto* y = reinterpret_cast<float*>(scratch + kScratch);
    const int count = int(std::min(part, rows.count - row));
    multiply({matrix_->tile(tile), matrix_->blocks, matrix_->segment, packing.out, packing.sums, rows.count, row, count,
              bf16_terms(element_), y, scratch});
    kernels_.store({y, kTile, count, int(std::min<std::int64_t>(kTile, matrix_->n - tile * kTile)),
                    matrix_->bias.empty() ? nullptr : matrix_->bias.data() + tile * kTile,
                    rows.out + (row * rows.out_stride + tile * kTile) * size, rows.out_stride, element_});
  };
  pool_.run((rows.count + part - 1) / part * matrix_->tiles, multiply_task, config.threads);
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
    pool_.run(tiles, [&](std::int64_t index, int) {
      const std::int64_t tile = first + index;
      kernels_.store({product + index * kTile, kDenseColumns, int(rows.count),
                      int(std::min<std::int64_t>(kTile, matrix_->n - tile * kTile)),
                      matrix_->bias.empty() ? nullptr : matrix_->bias.data() + tile * kTile,
                      rows.out + tile * kTile * size, rows.out_stride, element_});
    });
  }
}

}  // namespace q4::cpu
