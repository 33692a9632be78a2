// The table of kernels that one instruction set provides; everything else in this backend is plain C++.
//
// Files that implement it are compiled with their own target flags: they include no header that could leave inline code
// of that instruction set to other files, which is why this one is plain structures and function pointers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "runtime/backends/cpu/layout.hpp"

namespace q4::cpu {

enum class Element : std::uint8_t { kF16, kBF16, kF32 };  // of x and out

/// How activations enter a product. fp32: as they are. bf16 terms: as an exact sum of 1 (bf16), 2 (fp16) or 3 (fp32)
/// bf16.
constexpr int bf16_terms(Element element) { return element == Element::kBF16 ? 1 : element == Element::kF16 ? 2 : 3; }

/// Rows of x to packed form. fp32: [block][row][128] floats; for `panel` [block][group of rows][128][row]. bf16:
/// [block][row][128]. AMX: [row / 16][block][term][32-row step][16 rows][32], more than 16 rows padded to 16 with zeros. int8:
/// [block][row][128] bytes. Digits: [block][row][512] bytes (kernels_digits.hpp, amx_digits.hpp).
struct PackX {
  const void* x;
  std::int64_t x_stride;
  Element element;
  const std::int32_t* source;  // source row of each packed row, -1: padding; null: identity
  std::int64_t k;              // columns of x
  std::int64_t blocks;
  int segment;
  std::int64_t rows;  // of x here; sets the distance between blocks
  void* out;
  float* sums;                          // [block][segment][row]: sum of x over the segment; unused by AMX
  std::int64_t begin, end;              // blocks to pack here
  const std::int32_t* place = nullptr;  // row of x for each row; null: as they are
};

/// One tile of columns times `rows` packed rows, blocks [begin, end): y = x W, fp32.
struct TileJob {
  const std::byte* weights;
  std::int64_t blocks;
  int segment;
  const void* x;        // packed as the kernel wants it
  const float* sums;    // of the same rows
  std::int64_t x_rows;  // rows that x and sums were packed with
  std::int64_t row;     // first row; a multiple of 16 for AMX, of panel_rows for `panel`, as in pack_x_panel
  int rows;
  int terms;
  float* y;                 // [rows][64]
  void* scratch;            // kScratch bytes
  std::int64_t begin, end;  // blocks to multiply here
  bool add = false;         // to y instead of overwriting it
  // Of AMX alone.
  std::int64_t x_stride = 0;        // elements from row to row of x as its owner has it, in bf16; 0: x is packed
  int column = 0, columns = kTile;  // of the tile: all, or the 32 of one half; y of the others becomes 0
};

/// y (+ bias) to rows of out.
struct StoreJob {
  const float* y;  // [rows][64], rows y_stride apart
  std::int64_t y_stride;
  int rows;
  int columns;        // of the tile that exist
  const float* bias;  // of the tile, or null
  void* out;          // first element of the tile in the first row
  std::int64_t out_stride;
  Element element;
};

inline constexpr std::size_t kScratch = std::size_t(kTile) * kBlock * sizeof(float) + 4096;

struct Kernels {
  const char* isa;
  void (*pack_x)(const PackX&, std::int64_t row_begin, std::int64_t row_end);
  void (*direct)(const TileJob&);  // decodes in registers for each pass over up to direct_rows rows
  /// From a multiple of panel_rows to another one that leaves at least as many rows, or to the last row.
  void (*pack_x_panel)(const PackX&, std::int64_t row_begin, std::int64_t row_end);
  void (*panel)(const TileJob&);  // decodes a block once to memory, and multiplies all rows
  int direct_rows, panel_rows;
  void (*store)(const StoreJob&);
  /// One tile's dequantized weights: out[packed row * out_stride + column], fp32.
  void (*dequantize)(const std::byte* tile, std::int64_t blocks, int segment, float* out, std::int64_t out_stride);

  // Where the processor has bf16 dot products, else null. For bf16 activations.
  void (*pack_x_bf16)(const PackX&, std::int64_t row_begin, std::int64_t row_end) = nullptr;
  void (*direct_bf16)(const TileJob&) = nullptr;
  void (*panel_bf16)(const TileJob&) = nullptr;
  int direct_rows_bf16 = 0;
  bool fast_bf16 = false;  // they have twice the rate of fp32's multiply-adds (AMD), not half (Intel)

  // For activations quantized to 8 bits, which only Math::kInt8 asks for; in every table.
  void (*pack_x_int8)(const PackX&, std::int64_t row_begin, std::int64_t row_end) = nullptr;
  void (*int8)(const TileJob&) = nullptr;

  // Where there are dot products of bytes, else null: activations as three digits each.
  void (*pack_x_digits)(const PackX&, std::int64_t row_begin, std::int64_t row_end) = nullptr;
  void (*digits)(const TileJob&) = nullptr;
  int digit_rows = 0;  // up to which they are the fastest, on a processor that memory keeps waiting less than the sums

  // Where it has AMX, else null. Segments of 32 rows and more.
  void (*pack_x_amx)(const PackX&, std::int64_t row_begin, std::int64_t row_end) = nullptr;
  void (*amx)(const TileJob&) = nullptr;
  void (*pack_x_amx_digits)(const PackX&, std::int64_t row_begin, std::int64_t row_end) = nullptr;
  void (*amx_digits)(const TileJob&) = nullptr;  // the sums of `digits`, to the bit
};

// One per file; each returns false and does nothing when the file was built without its instructions. Each adds to the
// tables before it in select_kernels.
bool portable_kernels(Kernels& kernels);
bool sse4_kernels(Kernels& kernels);
bool avx2_kernels(Kernels& kernels);
bool avx_vnni_kernels(Kernels& kernels);
bool avx512_kernels(Kernels& kernels);
bool avx512_vnni_kernels(Kernels& kernels);
bool avx512_bf16_kernels(Kernels& kernels);
bool amx_kernels(Kernels& kernels);
bool neon_kernels(Kernels& kernels);
bool neon_dot_kernels(Kernels& kernels);
bool sve256_kernels(Kernels& kernels);

/// The names of all tables, worst first: "portable", "sse4", "avx2", "avx_vnni", "avx512", "avx512_vnni",
/// "avx512_bf16", "amx_bf16", "neon", "neon_dot", "sve256".
std::span<const char* const> kernel_names();

/// The best table that this processor can run, or the one named by `forced`; throws kUnsupported when it cannot.
Kernels select_kernels(const char* forced);

}  // namespace q4::cpu
