// Chooses the path of each m and lays out the workspace.
#include "runtime/backends/cpu/plan.hpp"

#include <algorithm>
#include <cstring>

#include "runtime/backends/cpu/blas.hpp"
#include "runtime/base/check.hpp"
#include "runtime/choose/epilogue.hpp"
#include "runtime/choose/given.hpp"

namespace q4::cpu {
namespace {

constexpr std::size_t kAlign = 256;
// Up to so many rows take k in parts, where there are fewer tiles than so many tasks. Parts have sums of their own, which
// cost 2 to 5 us: no part has fewer blocks than these, or than the second where there are few tiles.
constexpr std::int64_t kSplitRows = 64, kSplitTasks = 256, kSplitBlocks = 24, kFewTiles = 16, kFewTilesBlocks = 8;
constexpr int kOwnThreads = 4;  // from which on each packs AMX's x for itself: fewer take longer for all of it

}  // namespace

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

Buffer touched_buffer(const std::shared_ptr<MemoryLedger>& ledger, std::size_t bytes, ThreadPool& pool) {
  Buffer buffer(ledger, bytes);
  constexpr std::size_t kPiece = std::size_t(1) << 20;
  pool.run(std::int64_t((bytes + kPiece - 1) / kPiece), [&](std::int64_t piece, int) {
    const std::size_t at = std::size_t(piece) * kPiece;
    std::memset(buffer.as<std::byte>() + at, 0, std::min(kPiece, bytes - at));
  });
  return buffer;
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
                 const std::shared_ptr<MemoryLedger>& ledger, const PlanOptions& options, const TuningRecord* tuned)
    : matrix_(std::move(matrix)),
      kernels_(kernels),
      pool_(pool),
      element_(element_of(options.activation)),
      int8_(options.math == Math::kInt8),
      batch_invariant_(options.batch_invariant),
      given_(options.gather == Gather::kGiven),
      epilogue_(options.epilogue),
      lora_rank_(options.epilogue.lora ? options.lora_rank : 0),
      norm_(options.norm),
      norm_epsilon_(options.norm_epsilon) {
  if (!options.tactic.empty()) {
    forced_ = true;
    forced_config_ = parse(options.tactic);
  } else if (!batch_invariant_ && !int8_) {
    const std::string_view isa = kernels_.isa;
    // The BLAS brings threads of its own, which an embedder's pool need not have room for.
    const bool slow_kernels = (isa == "portable" || isa == "sse4") && !pool_.embedded();
    blas_from_ = options.reconstruct_from != 0 ? std::max<std::int64_t>(options.reconstruct_from, 0)
                 : tuned                       ? tuned->reconstruct_from
                 : slow_kernels                ? 32
                                               : 0;
    if (blas_from_ > options.max_m || !valid(Path::kBlas)) blas_from_ = 0;
    if (tuned)
      for (const TunedBucket& bucket : tuned->buckets)
        for (const CpuConfig& config : configs(options.max_m)) {
          const bool named = bucket.tactic == config.name() || bucket.tactic == name(config);
          // Where the default won it serves as it does untuned: it may change within the bucket.
          if (named && config.path != Path::kBlas && config != CpuConfig{rules().usual(bucket.m)})
            tuned_.push_back({bucket, config});
        }
  }
  layout_workspace(options.max_m);
  pool_.ready();
  if (options.own_workspace) own_workspace_ = touched_buffer(ledger, workspace_bytes_, pool_);
}

std::int64_t CpuPlan::task_blocks(const CpuConfig& config, std::int64_t rows) const {
  if (config.path != Path::kAmx || config.rows != 0 || matrix_->tiles < 4 * pool_.threads()) return matrix_->blocks;
  const std::int64_t fit = std::max<std::int64_t>(8, l2_bytes() / 2 / (rows * amx_block_bytes(element_)));
  const std::int64_t parts = (matrix_->blocks + fit - 1) / fit;
  return rows > kPartialRows ? matrix_->blocks : (matrix_->blocks + parts - 1) / parts;
}

std::int64_t CpuPlan::k_parts(std::int64_t rows) const {
  if (batch_invariant_ || rows > kSplitRows) return 1;
  const std::int64_t fewest = matrix_->tiles < kFewTiles ? kFewTilesBlocks : kSplitBlocks;
  return std::max<std::int64_t>(1, std::min(kSplitTasks / matrix_->tiles, matrix_->blocks / fewest));
}

bool CpuPlan::competes(const CpuConfig& config, std::int64_t m) const {
  if (config.path == Path::kBlas) return false;
  const std::int64_t usual = task_rows({config.path});
  if (config.rows == usual) return false;
  if (config.rows != 0 && m <= std::min<std::int64_t>(config.rows, usual)) return false;  // one task either way
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

std::string CpuPlan::name(const CpuConfig& config) const {
  std::string text = config.name();
  if (!choose::is_plain(epilogue_))
    text.insert(std::min(text.find(' '), text.size()), "+" + choose::to_text(epilogue_));
  return text;
}

CpuConfig CpuPlan::parse(const std::string& text) const {
  std::string names;
  for (const CpuConfig& config : configs(INT32_MAX)) {
    if (text == config.name() || text == name(config)) return config;
    names += (names.empty() ? "" : ", ") + name(config);
  }
  for (const CpuConfig& config : configs(1))
    if (text == config.name() || text == name(config)) return config;
  const bool no_blas = text == CpuConfig{Path::kBlas}.name() && !blas().available;
  fail(ErrorCode::kInvalidArgument,
       "MatmulPlan: tactic \"{}\" is not available on this CPU for this matrix{}; use one of: {}", text,
       no_blas ? ": there is " + blas().name : "", names);
}

CpuConfig CpuPlan::config(std::int64_t m) const {
  if (forced_) return forced_config_;
  if (blas_from_ > 0 && m >= blas_from_) return {Path::kBlas};
  for (const Bucket& bucket : tuned_)
    if (bucket.measured.serves(m)) return bucket.config;
  return {rules().usual(m)};
}

std::vector<std::string> CpuPlan::tactics(std::int64_t m) const {
  std::vector<std::string> names = {tactic(m)};
  for (const CpuConfig& config : configs(m))
    if (name(config) != names.front()) names.push_back(name(config));
  return names;
}

void CpuPlan::layout_workspace(std::int64_t max_m) {
  chunk_rows_ = std::min(std::max<std::int64_t>(max_m, 1), kChunkRows);
  const auto rows = round_up(std::size_t(chunk_rows_), 16);  // AMX pads
  const auto packed_k = std::size_t(matrix_->blocks * kBlock);
  const std::size_t element = std::max(4, 2 * bf16_terms(element_));
  packs_own_ = kernels_.amx && matrix_->segment >= 32 && max_m > 1 && pool_.threads() >= kOwnThreads;
  if (packs_own_) own_bytes_ = round_up(std::min(rows * packed_k * element, std::size_t(l2_bytes()) / 2), kAlign);
  sums_at_ = round_up(std::max(rows * packed_k * element, own_bytes_ * std::size_t(pool_.threads())), kAlign);
  const std::size_t sums = int8_ ? 2 : 1;  // scales and sums
  scratch_at_ = sums_at_ + round_up(rows * packed_k / std::size_t(matrix_->segment) * sums * sizeof(float), kAlign);
  workspace_bytes_ = scratch_at_ + std::size_t(pool_.threads()) * kThreadScratch;
  std::size_t partial = 0;
  for (std::int64_t m = 1; m <= std::min(chunk_rows_, kSplitRows); ++m)
    if (const std::int64_t parts = k_parts(m); parts > 1) partial = std::size_t(parts) * round_up(std::size_t(m), 16);
  if (partial > 0) {
    partial_at_ = round_up(workspace_bytes_, kAlign);
    workspace_bytes_ = partial_at_ + counters_bytes() + std::size_t(matrix_->tiles) * kTile * partial * sizeof(float);
  }
  if (blas_from_ > 0 || forced_config_.path == Path::kBlas) {
    dense_at_ = round_up(workspace_bytes_, kAlign);
    product_at_ = dense_at_ + packed_k * kDenseColumns * sizeof(float);
    workspace_bytes_ = product_at_ + rows * kDenseColumns * sizeof(float);
  }
  workspace_bytes_ = round_up(workspace_bytes_, kAlign);
  if (norm_) {
    normed_at_ = workspace_bytes_;
    workspace_bytes_ += round_up(rows * std::size_t(matrix_->k) * (element_ == Element::kF32 ? 4 : 2), kAlign);
  }
  if (lora_rank_ == 0) return;
  low_at_ = workspace_bytes_;  // low of each row, then a row of x a thread
  workspace_bytes_ += round_up(rows * std::size_t(lora_rank_) * sizeof(float), kAlign) +
                      std::size_t(pool_.threads()) * round_up(std::size_t(matrix_->k) * sizeof(float), kAlign);
}

}  // namespace q4::cpu
