// One reader a format: whose matrix it is, what its shapes say, and (where kernels cannot use it as it is stored) the
// same matrix as GPTQ tensors. A new format is a file here and a line in the list of format.cpp.
#pragma once

#include <cstdint>
#include <optional>
#include <q4/checkpoint.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/check.hpp"
#include "runtime/checkpoint/config.hpp"
#include "runtime/checkpoint/files.hpp"
#include "runtime/checkpoint/names.hpp"

namespace q4::checkpoint {

class Reader;

/// The tensors of one matrix, all shapes and dtypes checked; or, where entry.unsupported is not empty, what is known.
struct Matrix {
  MatrixEntry entry;
  ErrorCode code = ErrorCode::kUnsupported;  ///< of entry.unsupported
  const Reader* reader = nullptr;
  std::string suffix;                ///< of the tensor that the matrix was found by: "qweight"
  Located codes, zeros, scales;      ///< zeros.tensor is null where every zero is 8 and none is stored
  Located g_idx, bias, shape, meta;  ///< tensor is null when absent
  ZeroFormat zero_format = ZeroFormat::kAuto;
  bool borrows = false;  ///< ClaimedConfig::borrows, for packings that share a reader

  std::string name(std::string_view part) const { return entry.name + "." + std::string(part); }
};

/// The rows and columns of a matrix that are wanted; both in eights that begin at a multiple of 8.
struct Cut {
  std::int64_t row = 0, rows = 0;
  std::vector<std::int32_t> columns;  ///< of the whole, in order
  std::int64_t n() const { return static_cast<std::int64_t>(columns.size()); }
  std::int64_t column(std::int64_t i) const { return columns[static_cast<std::size_t>(i)]; }
  static Cut whole(const MatrixEntry& entry);
};

/// A cut of a matrix as GPTQ tensors, with n columns; qzeros is empty where none are stored.
struct Repacked {
  std::vector<std::uint32_t> qweight, qzeros;  ///< [rows / 8, n], [groups, n / 8]: all groups of the matrix
  std::vector<std::uint8_t> scales;            ///< [groups, n] of the type that is stored
};

class Reader {
 public:
  virtual ~Reader() = default;
  virtual const char* name() const = 0;
  /// Whether the matrix is in this format; codes and suffix are set. `claimed` is what the configuration says, if it
  /// says anything.
  virtual bool detects(const Matrix& matrix, const ClaimedConfig& claimed) const = 0;
  /// Finds the other tensors and sets `entry` from the shapes; throws for what contradicts them.
  virtual void describe(const FileSet& files, Matrix& matrix, const ClaimedConfig& claimed) const = 0;
  /// Whether repack() is needed, and the GPTQ tensors; it reads no more than they are made of. What the others store is
  /// used where it is mapped.
  virtual bool repacks() const { return true; }
  virtual Repacked repack(const Matrix&, const Cut&) const { return {}; }
};

/// Every reader; of several that detect a matrix the first reads it.
const std::vector<const Reader*>& readers();
const Reader& gptq_reader();
const Reader& awq_gemm_reader();
const Reader& awq_gemv_reader();
const Reader& awq_gemv_fast_reader();
const Reader& marlin_reader();
const Reader& gptq_words_reader();
const Reader& gptq_borrow_reader();
const Reader& compressed_tensors_reader();

// ---- what readers share -------------------------------------------------------------------------------------------
/// Throws what becomes the entry's `unsupported`.
template <class... Args>
[[noreturn]] void wrong(ErrorCode code, const Located& at, const std::string& name, fmt::format_string<Args...> text,
                        Args&&... args) {
  fail(code, "{}: tensor {}: {}", at.file->path(), quote(name), fmt::format(text, std::forward<Args>(args)...));
}

std::string shape_of(const StoredTensor& tensor);
/// "F16" as the public type, nothing for a type that DType has not.
std::optional<DType> public_type(const std::string& dtype);

Located look_up(const FileSet& files, const std::string& name);
/// The tensor `name`, which must be there, of one of `types` and of `rank`, with extents of at least 1.
Located need(const FileSet& files, const Matrix& matrix, const std::string& name,
             std::initializer_list<std::string_view> types, std::size_t rank = 2);
void need_type(const Located& at, const std::string& name, std::initializer_list<std::string_view> types);
void need_shape(const Located& at, const std::string& name, const std::vector<std::int64_t>& shape,
                const Matrix& matrix);

/// Finds the tensors beside a qweight of 32-bit words, GPTQ's or AWQ gemm's, and sets the entry.
void describe_plain(const FileSet& files, Matrix& matrix, const ClaimedConfig& claimed);
/// 4 bits, n a multiple of 8, no more groups than rows; g_idx and bias where they are; the group size. The entry has k,
/// n, groups and bits.
void finish(Matrix& matrix, const ClaimedConfig& claimed);
/// Throws unless the configuration says that zeros need not be stored.
void need_symmetric(const Matrix& matrix, const std::string& zeros_name, const ClaimedConfig& claimed);
/// Rows of a group that the configuration says, for formats whose shapes leave it open.
std::int64_t claimed_group_size(const Matrix& matrix, const ClaimedConfig& claimed);

/// Elements of a tensor, aligned.
template <class Element>
std::vector<Element> elements(const StoredTensor& tensor) {
  std::vector<Element> out(tensor.bytes / sizeof(Element));
  std::copy_n(tensor.data, out.size() * sizeof(Element), reinterpret_cast<std::byte*>(out.data()));
  return out;
}
/// Elements of a tensor where they are, aligned or not.
template <class Element>
class Stored {
 public:
  explicit Stored(const StoredTensor& tensor) : data_(tensor.data) {}
  Element operator[](std::int64_t i) const {
    Element element;
    std::copy_n(data_ + i * static_cast<std::int64_t>(sizeof element), sizeof element,
                reinterpret_cast<std::byte*>(&element));
    return element;
  }

 private:
  const std::byte* data_;
};
/// Rows `rows` (the columns of a cut) and columns first .. first + count - 1 of words [.., stride] -> [count, rows].
std::vector<std::uint32_t> transposed(const StoredTensor& from, std::int64_t stride,
                                      const std::vector<std::int32_t>& rows, std::int64_t first, std::int64_t count);
/// Scales [.., stride] -> [groups, n]: the first `groups` of the rows that the cut's columns are, whatever their type.
std::vector<std::uint8_t> transposed_scales(const StoredTensor& scales, const Cut& cut, std::int64_t stride,
                                            std::int64_t groups);
/// The columns of the cut of scales [groups, n], whatever their type.
std::vector<std::uint8_t> cut_scales(const StoredTensor& scales, const Cut& cut, std::int64_t n, std::int64_t groups);
inline void put_nibble(std::uint32_t& word, std::int64_t i, std::uint32_t value) { word |= value << (4 * i); }

}  // namespace q4::checkpoint
