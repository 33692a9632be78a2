// GroupedProduct: rows of x, sorted by expert, each times the matrix of its expert.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/backends/cpu/activation.hpp"
#include "runtime/backends/cpu/experts.hpp"
#include "runtime/backends/cpu/paths.hpp"

namespace q4::cpu {

/// Rows of x or of a result. Position p of the sorted rows is row place[p], or p where there are no places.
struct PlacedRows {
  std::byte* data;
  std::int64_t stride;  ///< elements
  Element element;
  const std::int32_t* place;

  std::byte* row(std::int64_t position) const {
    const std::int64_t at = place ? place[position] : position;
    return data + at * stride * (element == Element::kF32 ? 4 : 2);
  }
};

/// Each row's expert, as ranges of positions: expert e has [begin[e], begin[e + 1]).
struct SortedRows {
  const std::int32_t* begin;
  bool same_x = false;  ///< every position has the same row of x
};

class GroupedProduct {
 public:
  /// `element` of x. `forced` serves every number of rows.
  GroupedProduct(std::shared_ptr<const CpuExperts> experts, const Kernels& kernels, ThreadPool& pool, Element element,
                 const Activation& activation, bool batch_invariant, std::optional<Path> forced);

  std::int64_t k() const { return experts_->shape().k; }
  std::int64_t columns() const { return experts_->matrix(0).span; }  ///< of a result
  PathRules rules() const;
  /// For this many positions, 256-byte aligned.
  std::size_t workspace_bytes(std::int64_t positions) const;
  void run(const SortedRows& rows, const PlacedRows& x, const PlacedRows& out, std::byte* workspace) const;

 private:
  /// One expert that has rows.
  struct Item {
    std::int64_t expert, begin, rows;
    std::int64_t packed;  ///< where its packed x begins, in rows
    std::int64_t part;    ///< rows of a task
    std::int64_t tasks_end, pack_tasks_end;
    Path path;
  };
  /// Where the parts of the workspace are, for a number of positions.
  struct Places {
    std::size_t items, x, sums, scratch, end;
  };
  Places places(std::int64_t positions) const;
  std::int64_t pack_rows(const Item& item) const;
  std::int64_t list_items(const SortedRows& rows, Item* items) const;
  static const Item& item_of(const Item* items, std::int64_t count, std::int64_t Item::*end, std::int64_t task);
  void pack(const Item& item, std::int64_t piece, const PlacedRows& x, const Places& at, std::byte* workspace) const;
  void multiply(const Item& item, std::int64_t task, int worker, const PlacedRows& x, const PlacedRows& out,
                const Places& at, std::byte* workspace) const;
  /// Sums [rows][kTile] of the product of `row`s from one on: bias, and exact where they are not finite.
  void finish(const CpuMatrix& matrix, std::int64_t tile, const std::byte* x, float* y, std::byte* scratch) const;

  std::shared_ptr<const CpuExperts> experts_;
  Kernels kernels_;
  ThreadPool& pool_;
  Element element_;
  Activation activation_;
  bool batch_invariant_;
  std::optional<Path> forced_;
};

}  // namespace q4::cpu
