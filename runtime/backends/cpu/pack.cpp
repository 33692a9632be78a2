// Repacks GPTQ and AWQ codes into tiles.
#include <sys/mman.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include <algorithm>
#include <cstring>
#include <span>

#include "kernels/layout.h"
#include "runtime/backends/cpu/packed.hpp"
#include "runtime/backends/zeros.hpp"
#include "runtime/base/check.hpp"

namespace q4::cpu {
namespace {

constexpr std::size_t kHugePage = std::size_t(2) << 20;

/// Source rows of one octet: the first of 8 consecutive ones that start at a multiple of 8, kPadding for 8 times
/// padding, or kMixed.
constexpr std::int64_t kPadding = -1, kMixed = -2;
std::int64_t octet_row(const MatrixSource& source, std::int64_t packed) {
  if (source.order.identity) return packed < source.k ? packed : kPadding;
  const std::int32_t* rows = source.order.source.data() + packed;
  const std::int32_t step = rows[0] < 0 ? 0 : 1;
  if (step == 1 && rows[0] % 8 != 0) return kMixed;
  for (int i = 1; i < 8; ++i)
    if (rows[i] != rows[0] + i * step) return kMixed;
  return rows[0];
}

/// Nibble of a column in AWQ's order 0, 2, 4, 6, 1, 3, 5, 7.
constexpr int awq_nibble(std::int64_t column) { return int(column % 2 * 4 + column % 8 / 2); }

/// The piece that holds so many words of a row from `word` on, and `word` in it; null where two pieces share them.
const MatrixSource::Piece* piece_of(const MatrixSource& source, std::int64_t& word, std::int64_t count) {
  for (const auto& piece : source.pieces) {
    if (word < piece.width) return word + count <= piece.width ? &piece : nullptr;
    word -= piece.width;
  }
  return nullptr;
}

/// `count` words of a row of qweight from `word` on, in `space` where they are not side by side. `count` <= kTile.
const std::uint32_t* words_of(const MatrixSource& source, std::int64_t row, std::int64_t word, std::int64_t count,
                              std::uint32_t* space) {
  if (source.pieces.empty()) return source.qweight + row * (source.awq ? source.n / 8 : source.n) + word;
  std::int64_t in_piece = word;
  if (const auto* piece = piece_of(source, in_piece, count)) return piece->words + row * piece->row_stride + in_piece;
  std::uint32_t* to = space;
  for (const auto& piece : source.pieces) {
    const std::int64_t here = std::clamp<std::int64_t>(piece.width - word, 0, count);
    to = std::copy_n(piece.words + row * piece.row_stride + word, here, to);
    count -= here;
    word = here > 0 ? 0 : word - piece.width;
  }
  return space;
}

/// Adds the codes of row `row` for `columns` columns from `column` on, at `shift` of each lane.
void add_row(const MatrixSource& source, std::int64_t row, std::int64_t column, int columns, int shift,
             std::uint32_t* lanes) {
  std::uint32_t space[kTile];
  if (source.awq) {
    const std::uint32_t* words = words_of(source, row, column / 8, columns / 8, space);
    for (int c = 0; c < columns; ++c) lanes[c] |= (words[c / 8] >> (4 * awq_nibble(c)) & 15u) << shift;
    return;
  }
  const std::uint32_t* words = words_of(source, row / 8, column, columns, space);
  const int from = int(row % 8) * 4;
  for (int c = 0; c < columns; ++c) lanes[c] |= (words[c] >> from & 15u) << shift;
}

[[gnu::always_inline]] inline void convert(const std::uint32_t* words, int columns, std::uint32_t* lanes) {
  // NOLINTNEXTLINE(clang-analyzer-core.CallAndMessage): the pieces of words_of have all columns, which is checked elsewhere
  for (int c = 0; c < columns; ++c) lanes[c] = even_odd(words[c]);
}
#if defined(__x86_64__)
[[gnu::target("avx2")]] void convert_avx2(const std::uint32_t* words, int columns, std::uint32_t* lanes) {
  convert(words, columns, lanes);
}
#endif
/// GPTQ's words of a row to lanes.
void gptq_lanes(const std::uint32_t* words, int columns, std::uint32_t* lanes) {
#if defined(__x86_64__)
  static const bool avx2 = __builtin_cpu_supports("avx2") != 0;
  if (avx2) return convert_avx2(words, columns, lanes);
#endif
  convert(words, columns, lanes);
}

constexpr int kAwqWords = kTile / 8;  // of a row in a tile

using Quad = std::uint32_t __attribute__((vector_size(16)));

/// Exchanges kShift bits of two rows: a step of a transposition of nibbles.
template <int kShift, std::uint32_t kMask>
void exchange(Quad& low, Quad& high) {
  const Quad other = ((low >> kShift) ^ high) & kMask;
  high ^= other;
  low ^= other << kShift;
}

/// Four words of each of eight rows, where row i stands where its nibble belongs in a lane, to 32 lanes in the order of
/// the columns: nibbles and rows are transposed, then words and rows.
void awq_lanes(Quad (&rows)[8], std::uint32_t* lanes) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) exchange<16, 0x0000FFFFu>(rows[i], rows[i + 4]);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) exchange<8, 0x00FF00FFu>(rows[i + i / 2 * 2], rows[i + i / 2 * 2 + 2]);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) exchange<4, 0x0F0F0F0Fu>(rows[2 * i], rows[2 * i + 1]);
#pragma GCC unroll 2
  for (int c = 0; c < 8; c += 4) {
    const Quad a = rows[awq_nibble(c)], b = rows[awq_nibble(c + 1)], d = rows[awq_nibble(c + 2)],
               e = rows[awq_nibble(c + 3)];
    const Quad ab0 = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab2 = __builtin_shufflevector(a, b, 2, 6, 3, 7),
               de0 = __builtin_shufflevector(d, e, 0, 4, 1, 5), de2 = __builtin_shufflevector(d, e, 2, 6, 3, 7);
    const Quad words[4] = {__builtin_shufflevector(ab0, de0, 0, 1, 4, 5), __builtin_shufflevector(ab0, de0, 2, 3, 6, 7),
                           __builtin_shufflevector(ab2, de2, 0, 1, 4, 5),
                           __builtin_shufflevector(ab2, de2, 2, 3, 6, 7)};
    for (int w = 0; w < 4; ++w) std::memcpy(lanes + 8 * w + c, &words[w], sizeof words[w]);
  }
}

/// Eight rows of AWQ's words.
void pack_awq_octet(const MatrixSource& source, std::int64_t first, std::int64_t column, int columns, int width,
                    std::uint32_t* lanes) {
  std::uint32_t space[8][kAwqWords], whole[kTile];
  const std::uint32_t* words[8];
  for (int i = 0; i < 8; ++i) {
    words[i] = words_of(source, first + i, column / 8, columns / 8, space[i]);
    if (columns == kTile) continue;
    if (words[i] != space[i]) std::copy_n(words[i], columns / 8, space[i]);
    std::fill(space[i] + columns / 8, space[i] + kAwqWords, 0u);
    words[i] = space[i];
  }
  std::uint32_t* const to = width == kTile ? lanes : whole;
  for (int word = 0; word < kAwqWords; word += 4) {
    Quad rows[8];
    for (int i = 0; i < 8; ++i) std::memcpy(&rows[nibble_shift(i) / 4], words[i] + word, sizeof(Quad));
    awq_lanes(rows, to + 8 * word);
  }
  if (to != lanes) std::copy_n(whole, width, lanes);
}

/// Columns of W that stand side by side in a tile, from its column `at` on: `columns` of them, then zeros up to `width`.
struct Run {
  int at;
  std::int64_t column;
  int columns, width;
};
/// f(run) for a tile's one run, or, of pairs, for its eight.
template <class F>
void for_runs(const CpuMatrix& matrix, std::int64_t tile, const F& f) {
  if (!matrix.pairs) return f(Run{0, matrix.column_of(tile), matrix.columns_of(tile), kTile});
  for (int at = 0; at < kTile; at += 8) {
    const std::int64_t packed = tile * kTile + at;
    const bool there = packed < matrix.n;
    f(Run{at, there ? matrix.source_column(packed) : 0, there ? 8 : 0, 8});
  }
}

/// One octet of a run. `first`: octet_row(source, packed).
void pack_octet(const MatrixSource& source, std::int64_t packed, std::int64_t first, const Run& run,
                std::uint32_t* lanes) {
  const auto [at, column, columns, width] = run;
  lanes += at;
  if (first >= 0 && !source.awq) {
    std::uint32_t space[kTile];
    const std::uint32_t* words = words_of(source, first / 8, column, columns, space);
    gptq_lanes(words, columns, lanes);
    std::fill(lanes + columns, lanes + width, 0u);
    return;
  }
  if (first >= 0) return pack_awq_octet(source, first, column, columns, width, lanes);
  std::fill(lanes, lanes + width, 0u);
  if (first == kPadding) return;
  for (int i = 0; i < 8; ++i) {
    const std::int64_t row = source.order.source[std::size_t(packed + i)];
    if (row >= 0) add_row(source, row, column, columns, nibble_shift(i), lanes);
  }
}

/// Scales and zeros of one segment and run.
void pack_header(const MatrixSource& source, std::int64_t group, const Run& run, std::byte* to) {
  std::uint16_t scales[kTile] = {};
  std::uint8_t zeros[kTile] = {};
  if (group >= 0 && run.columns > 0) {  // else nothing but padding
    const std::int64_t at = group * source.n + run.column;
    const bool stored = source.device_scales != nullptr;
    std::memcpy(scales, (stored ? source.device_scales : source.scales.data()) + at, std::size_t(run.columns) * 2);
    if (!stored)
      std::memcpy(zeros, source.zeros.data() + at, std::size_t(run.columns));
    else if (source.awq)
      unpack_awq_zeros(source.device_qzeros + at / 8, run.columns, zeros);
    else
      unpack_gptq_zeros(source.device_qzeros + at / 8, run.columns, source.zero_add, zeros);
  }
  std::memcpy(to + run.at * 2, scales, std::size_t(run.width) * 2);
  std::memcpy(to + sizeof scales + run.at, zeros, std::size_t(run.width));
}

/// Asks for the codes of `packed` in the columns of one tile.
void prefetch_octet(const MatrixSource& source, std::int64_t packed, std::int64_t column, int columns) {
  if (!source.order.identity || packed >= source.k) return;
  const std::int64_t first = source.awq ? packed : packed / 8, rows = source.awq ? 8 : 1;
  const std::int64_t width = source.awq ? columns / 8 : columns;
  std::int64_t word = source.awq ? column / 8 : column;
  const auto* piece = source.pieces.empty() ? nullptr : piece_of(source, word, width);
  if (piece == nullptr && !source.pieces.empty()) return;
  const std::uint32_t* words = piece ? piece->words : source.qweight;
  const std::int64_t stride = piece ? piece->row_stride : source.awq ? source.n / 8 : source.n;
  for (std::int64_t row = first; row < first + rows; ++row)
    for (std::int64_t c = 0; c < width; c += 16) __builtin_prefetch(words + row * stride + word + c);
}

/// Whole lines past the caches: nothing reads them soon, and memory need not give them first. They are there for other
/// threads after finish_octets().
void put_octet(const std::uint32_t* lanes, std::byte* to) {
#if defined(__SSE2__)
  for (int c = 0; c < kTile; c += 4)
    _mm_stream_si128(reinterpret_cast<__m128i*>(to) + c / 4,
                     _mm_load_si128(reinterpret_cast<const __m128i*>(lanes + c)));
#else
  std::memcpy(to, lanes, kOctet);
#endif
}
void finish_octets() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

/// What one task packs: neighbouring tiles, of some blocks.
struct Part {
  std::int64_t tile, tiles, block, blocks;
};

/// Row after row, each through all tiles.
void pack_part(const MatrixSource& source, const CpuMatrix& matrix, const Part& part) {
  constexpr std::int64_t kAhead = 8;  // tiles: 2 KB of a row
  const std::int64_t begin = part.block * kBlock, end = begin + part.blocks * kBlock;
  std::vector<Run> runs;  // of all tiles: where they begin is worth divisions
  for (std::int64_t tile = part.tile; tile < part.tile + part.tiles; ++tile)
    for_runs(matrix, tile, [&](const Run& run) { runs.push_back(run); });
  const std::int64_t each = static_cast<std::int64_t>(runs.size()) / part.tiles;
  const auto tile_runs = [&](std::int64_t tile) {
    return std::span(runs.data() + tile * each, static_cast<std::size_t>(each));
  };
  std::byte* at = matrix.weights.as<std::byte>() + std::size_t(part.tile) * matrix.tile_bytes() +
                  std::size_t(part.block) * block_bytes(matrix.segment);
  const std::size_t tile_bytes = matrix.tile_bytes();
  for (std::int64_t packed = begin; packed < end; packed += matrix.segment, at += segment_bytes(matrix.segment)) {
    const std::int64_t group = source.order.group[std::size_t(packed / source.order.unit)];
    for (std::int64_t tile = 0; tile < part.tiles; ++tile)
      for (const Run& run : tile_runs(tile)) pack_header(source, group, run, at + std::size_t(tile) * tile_bytes);
    for (int octet = 0; octet < matrix.segment / 8; ++octet) {
      const std::int64_t row = packed + octet * 8, first = octet_row(source, row);
      std::byte* to = at + kHeader + octet * kOctet;
      for (std::int64_t tile = 0; tile < part.tiles; ++tile, to += tile_bytes) {
        alignas(64) std::uint32_t lanes[kTile];
        for (const Run& run : tile_runs(tile)) pack_octet(source, row, first, run, lanes);
        put_octet(lanes, to);
        if (tile + kAhead >= part.tiles) continue;
        for (const Run& run : tile_runs(tile + kAhead)) prefetch_octet(source, row, run.column, run.columns);
      }
    }
  }
}

/// The parts of a matrix. Rows in order: whole rows of W, as they lie in a file, so that each page is met once; few
/// tasks more than threads divide rows too. Rows in another order: so few tiles that all rows of W stay in a cache,
/// because a word of it, which holds eight rows, is read eight times.
struct Parts {
  std::int64_t tiles, blocks, across = 1, down = 1;  ///< how many parts

  Parts(const CpuMatrix& matrix, bool in_order, std::int64_t threads) : tiles(matrix.tiles), blocks(matrix.blocks) {
    constexpr std::int64_t kCacheBytes = 512 << 10;
    if (in_order) {
      down = blocks;
      across = std::clamp<std::int64_t>(2 * threads / blocks, 1, tiles);
    } else {
      const std::int64_t together = std::clamp<std::int64_t>(kCacheBytes / (matrix.k * kTile / 2), 1, 8);
      across = (tiles + together - 1) / together;
    }
  }
  std::int64_t count() const { return across * down; }
  Part operator[](std::int64_t index) const {
    const auto begin = [](std::int64_t part, std::int64_t parts, std::int64_t all) { return all * part / parts; };
    const std::int64_t column = index % across, row = index / across;
    const std::int64_t tile = begin(column, across, tiles), block = begin(row, down, blocks);
    return {tile, begin(column + 1, across, tiles) - tile, block, begin(row + 1, down, blocks) - block};
  }
};

/// Has new huge pages cleared, each by one thread. Packing begins with a line of every tile in every thread, and a page
/// that two threads meet at once is cleared by both, for one of them in vain.
void touch(const Buffer& memory, ThreadPool& pool) {
  auto* const bytes = memory.as<volatile char>();
  const auto pages = std::int64_t(memory.bytes() / kHugePage);
  if (pages > 1) pool.run(pages, [&](std::int64_t page, int) { bytes[std::size_t(page) * kHugePage] = 0; });
}

}  // namespace

void* allocate_aligned(std::size_t bytes) {
  const bool huge = bytes >= kHugePage;
  void* memory = nullptr;
  if (posix_memalign(&memory, huge ? kHugePage : 256, std::max<std::size_t>(bytes, 256)) != 0)
    fail(ErrorCode::kOutOfMemory,
         "cpu: {} bytes of memory are not available; free some or use a smaller matrix or max_m", bytes);
#if defined(MADV_HUGEPAGE)
  if (huge) madvise(memory, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);  // advice: refusal costs speed only
#endif
  return memory;
}

CpuMatrix::CpuMatrix(const MatrixShape& shape, bool gate_up, ThreadPool& threads)
    : k(shape.k),
      n(shape.n),
      blocks(shape.packed_k / kBlock),
      span(gate_up ? shape.n / 2 : shape.n),
      segment(int(std::min<std::int64_t>(shape.unit, kBlock))),
      unit(shape.unit),
      awq(shape.awq),
      pool(&threads) {
  tiles = n / span * span_tiles();
  if (shape.has_bias) bias.resize(std::size_t(tiles * kTile), 0.0f);
  if (shape.mapped) source.resize(std::size_t(shape.packed_k));
}

std::unique_ptr<CpuMatrix> pack(const MatrixSource& source, ThreadPool& pool,
                                const std::shared_ptr<MemoryLedger>& ledger) {
  auto matrix = std::make_unique<CpuMatrix>(source, false, pool);
  matrix->pairs = source.gate_up;
  matrix->weights = Buffer(ledger, std::size_t(matrix->tiles) * matrix->tile_bytes(), MemoryKind::kWeights);
  touch(matrix->weights, pool);
  matrix->update(source, nullptr);
  return matrix;
}

std::int64_t CpuMatrix::source_column(std::int64_t column) const {
  return pairs ? paired_source(int(column), int(n)) : column;
}

void CpuMatrix::update(const MatrixSource& from, void*) {
  groups = PackedGroups(from);
  act_order = !from.g_idx.empty();
  std::copy(from.order.source.begin(), from.order.source.end(), source.begin());
  for (std::int64_t t = 0; t < tiles && !bias.empty(); ++t)
    for (int c = 0; c < columns_of(t); ++c)
      bias[std::size_t(t * kTile + c)] = from.bias[std::size_t(source_column(column_of(t) + c))];
  const Parts parts(*this, from.order.identity, pool->threads());
  pool->run(parts.count(), [&](std::int64_t part, int) {
    pack_part(from, *this, parts[part]);
    finish_octets();
  });
}

UnpackedSource CpuMatrix::unpack() const {
  UnpackedSource to;
  groups.begin(to, n);
  to.qweight.resize(std::size_t(k / 8 * n));
  const auto put = [&](std::int64_t row, std::int64_t column, std::uint32_t code) {
    if (awq)
      to.qweight[std::size_t(row * (n / 8) + column / 8)] |= code << (4 * awq_nibble(column));
    else
      to.qweight[std::size_t(row / 8 * n + column)] |= code << (4 * (row % 8));
  };
  for (std::int64_t t = 0; t < tiles; ++t) {
    const std::byte* at = tile(t);
    const std::int64_t first = column_of(t), columns = columns_of(t);
    for (std::int64_t packed = 0; packed < blocks * kBlock; packed += segment, at += segment_bytes(segment)) {
      const std::int64_t group = groups.of_unit(packed / unit);
      if (group < 0) continue;
      for (std::int64_t c = 0; c < columns; ++c) {
        const auto place = std::size_t(group * n + source_column(first + c));
        std::memcpy(&to.scales[place], at + 2 * c, 2);
        std::memcpy(&to.zeros[place], at + kTile * 2 + c, 1);
      }
      const auto* lanes = reinterpret_cast<const std::uint32_t*>(at + kHeader);
      for (std::int64_t i = 0; i < segment; ++i) {
        const std::int64_t row = !source.empty() ? source[std::size_t(packed + i)] : packed + i < k ? packed + i : -1;
        for (std::int64_t c = 0; c < columns && row >= 0; ++c)
          put(row, source_column(first + c), lanes[i / 8 * kTile + c] >> nibble_shift(int(i % 8)) & 15u);
      }
    }
  }
  if (act_order) to.g_idx = groups.g_idx(source, unit, k);
  if (!bias.empty()) to.bias.resize(std::size_t(n));
  for (std::int64_t t = 0; t < tiles && !bias.empty(); ++t)
    for (int c = 0; c < columns_of(t); ++c)
      to.bias[std::size_t(source_column(column_of(t) + c))] = bias[std::size_t(t * kTile + c)];
  return to;
}

}  // namespace q4::cpu
