// The ways to multiply on the CPU: which there are for a matrix, which one serves how many rows, and its kernels.
#pragma once

#include <cstdint>

#include "runtime/backends/cpu/kernels.hpp"

namespace q4::cpu {

/// Their names begin the tactics.
enum class Path : std::uint8_t { kDirect, kPanel, kDirectBf16, kPanelBf16, kDigits, kAmxDigits, kAmx, kInt8, kBlas };
inline constexpr Path kPaths[] = {Path::kDirect,    Path::kPanel, Path::kDirectBf16, Path::kPanelBf16, Path::kDigits,
                                  Path::kAmxDigits, Path::kAmx,   Path::kInt8,       Path::kBlas};
const char* to_string(Path path) noexcept;

inline constexpr std::int64_t kUsualRows = 256;    // of a task
inline constexpr std::int64_t kPartialRows = 128;  // of a task that takes k in parts
inline constexpr std::int64_t kFewRows = 4;        // that one thread may multiply before others wake up

/// What the choice of a path depends on.
struct PathRules {
  const Kernels* kernels;
  Element element;
  int segment;
  bool int8, batch_invariant;
  bool digits_pay = true;  // splitting x into digits is little of a run, or bf16 must be packed anyway

  bool valid(Path path) const;
  Path usual(std::int64_t rows) const;  ///< where nobody tuned
};

struct PathKernels {
  void (*pack_x)(const PackX&, std::int64_t row_begin, std::int64_t row_end);
  void (*multiply)(const TileJob&);
};
PathKernels kernels_of(const Kernels& kernels, Path path);  ///< none for kBlas

/// Rows of x that a task multiplies by one tile of `blocks` blocks.
std::int64_t task_rows(Path path, Element element, std::int64_t blocks);
/// Rows that a kernel takes at a time: tasks begin at multiples.
int step_rows(const Kernels& kernels, Path path);
/// A rest of fewer rows, which the panel kernel's groups of rows would cross, belongs to the task before.
int rest_rows(const Kernels& kernels, Path path);
/// The end of a task of `size` rows from `begin` on, of `count` in all.
constexpr std::int64_t end_of_task(std::int64_t begin, std::int64_t size, std::int64_t count, std::int64_t rest) {
  return count - begin - size < rest ? count : begin + size;
}

std::int64_t l2_bytes();  ///< of the second-level cache; 1 MiB where nobody says
constexpr std::int64_t amx_block_bytes(Element element) { return kBlock * 2 * bf16_terms(element); }  ///< of a row of x

}  // namespace q4::cpu
