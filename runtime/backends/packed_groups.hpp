// Which group each unit of packed rows belongs to, kept on the host so that a matrix can be unpacked.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/backends/backend.hpp"

namespace q4 {

class PackedGroups {
 public:
  // Groups without rows, which only a g_idx makes, need `scales` and `zeros` on the host.
  PackedGroups() = default;
  explicit PackedGroups(const MatrixSource& source);

  const std::vector<std::int32_t>& units() const { return group_; }
  /// Of a unit of packed rows; -1: padding.
  std::int64_t of_unit(std::int64_t unit) const { return group_[static_cast<std::size_t>(unit)]; }
  /// Makes room for scales and zeros, and fills in those of groups without rows, which no unit holds.
  void begin(UnpackedSource& to, std::int64_t n) const;
  /// The group of each row; `source` as in RowOrder, `unit` packed rows a unit.
  std::vector<std::int32_t> g_idx(const std::vector<std::int32_t>& source, std::int64_t unit, std::int64_t k) const;

 private:
  std::int64_t groups_ = 0;
  std::vector<std::int32_t> group_;  ///< [units]
  std::vector<std::int32_t> empty_;  ///< groups without rows, and their scales and zeros
  std::vector<std::uint16_t> scales_;
  std::vector<std::uint8_t> zeros_;
};

}  // namespace q4
