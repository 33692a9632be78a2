// What q4-convert reads: a checkpoint's files, and each of its matrices in numbers that no format colours.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/checkpoint/formats/format.hpp"

namespace q4::tools::convert {

/// What is known of a matrix before its codes are read.
struct Plan {
  std::int64_t k = 0, n = 0, groups = 0, group_size = 0;
  bool act_order = false;  ///< it has a g_idx that says more than row / group_size
  bool symmetric = false;  ///< every zero is 8
  bool has_zero_0 = false, all_zeros_9 = false, stored_v1 = false;  ///< what keeps it from GPTQ v1, or not
  std::string scale_type = {};  ///< "F16", "BF16", "F32": as they are stored, never rounded
};

/// One matrix: W(r, c) = scales(g, c) * (code(r, c) - zero(g, c)), g = g_idx.empty() ? r / group_size : g_idx[r].
struct Numbers {
  std::vector<std::uint32_t> codes;  ///< [k/8, n], nibble i of word (r, c) is code (8 r + i, c)
  std::vector<std::uint32_t> zeros;  ///< [groups, n/8], nibble j of word (g, w) is zero (g, 8 w + j) itself
  std::vector<std::uint8_t> scales;  ///< [groups, n] of the type that is stored
  std::vector<std::int32_t> g_idx;   ///< [k]; empty without act-order
  bool operator==(const Numbers&) const = default;
};

/// A checkpoint that is open, all its matrices convertible. Not thread-safe.
class Source {
 public:
  /// Throws what Checkpoint::open does; kNotFound without a matrix, kUnsupported (with the first reason and the count)
  /// where a matrix is one that q4 does not load.
  explicit Source(const std::string& path);

  const std::string& folder() const { return files_.folder; }
  const checkpoint::FileSet& files() const { return files_; }
  const std::vector<checkpoint::Matrix>& matrices() const { return matrices_; }
  const std::vector<Plan>& plans() const { return plans_; }  ///< one a matrix, in the same order
  const std::string& packing() const { return packing_; }    ///< "GPTQ", or several joined by " and "
  /// Names of the tensors that are of no matrix, biases among them; sorted.
  const std::vector<std::string>& others() const { return others_; }
  Numbers numbers(std::size_t matrix) const;

 private:
  std::vector<std::uint32_t> zeros(const checkpoint::Matrix& matrix, const std::vector<std::uint32_t>& repacked,
                                   bool& v1) const;
  Plan plan(const checkpoint::Matrix& matrix) const;

  checkpoint::FileSet files_;
  std::vector<checkpoint::Matrix> matrices_;
  std::vector<Plan> plans_;
  std::vector<std::string> others_;
  std::string packing_;
};

/// Nibbles of words in AWQ's order, as they are in order, and back: nibble i of AWQ's word is column (0, 2, 4, 6, 1, 3,
/// 5, 7)[i]. Source: AutoAWQ, awq/utils/packing_utils.py.
std::uint32_t from_awq_order(std::uint32_t word);
std::uint32_t to_awq_order(std::uint32_t word);
/// The transpose of 8 x 8 nibbles: nibble j of result i is nibble i of word j.
void transpose_nibbles(const std::uint32_t (&from)[8], std::uint32_t (&to)[8]);

}  // namespace q4::tools::convert
