// Packed weights in device memory, as kernels/layout.h draws them.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "kernels/pack.h"
#include "runtime/backends/packed_groups.hpp"
#include "runtime/gpu/kernels.hpp"
#include "runtime/gpu/memory.hpp"
#include "runtime/gpu/repack.hpp"

namespace q4::gpu {

/// A load whose kernels are in the default stream, and which nobody has waited for yet; its end waits.
class Loading {
 public:
  explicit Loading(std::shared_ptr<Driver> driver) : driver_(std::move(driver)) {}
  Loading(const Loading&) = delete;
  Loading& operator=(const Loading&) = delete;
  ~Loading();
  void wait();

 private:
  std::shared_ptr<Driver> driver_;
  std::atomic<bool> done_{false};
};

class Matrix : public PackedMatrix, public MatrixShape {
 public:
  Matrix() = default;  ///< nothing of it on a device: what plans choose follows from the numbers alone
  /// Everything is packed by kernels on the device, which may still run when the constructor returns: wait(). With
  /// source.reuse the codes take that memory where they fit, and where scales and zeros do too, theirs.
  Matrix(std::shared_ptr<Driver> driver, Kernels& kernels, const MatrixSource& source, Scratch& scratch);
  /// In placed_bytes(shape) of somebody else's memory, 256-byte aligned, without content until the first update().
  Matrix(std::shared_ptr<Driver> driver, Kernels& kernels, const MatrixShape& shape, Scratch& scratch, void* memory);
  static std::size_t placed_bytes(const MatrixShape& shape);

  std::size_t bytes() const override {
    return codes.bytes() + meta.bytes() + zeros.bytes() + x_map.bytes() + bias16_[0].bytes() + bias16_[1].bytes();
  }
  UnpackedSource unpack() const override;
  void update(const MatrixSource& source, void* stream) override;
  bool in_place() const override { return in_place_; }
  bool scales_in_place() const override { return apart; }
  void restore() override;
  /// Returns when the weights are there for every stream.
  void wait() const;

  /// fp16 or bf16 [n] in packed order on the device; null: none.
  const std::uint16_t* bias_of(bool bf16) const { return bias16_[bf16].as<const std::uint16_t>(); }

  Buffer codes, meta;       ///< apart: of meta the scales
  Buffer zeros;             ///< where they are apart
  Buffer x_map;             ///< int32 [packed_k], or empty: not mapped
  std::vector<float> bias;  ///< [n] or empty

 private:
  /// Packs `source`. Returns whether its work in the default stream goes on, which somebody has to wait for; tensors on
  /// the host may go.
  bool put(const MatrixSource& source, void* stream);
  /// The column of W at packed column `column`.
  int source_column(int column) const { return gate_up ? paired_source(column, static_cast<int>(n)) : column; }
  CodesShape codes_shape() const { return {k, n, packed_k, awq, gate_up}; }
  std::size_t map_bytes() const { return mapped ? static_cast<std::size_t>(packed_k) * 4 : 0; }
  Buffer inverse_map(const std::vector<std::int32_t>& source) const;
  std::vector<std::int32_t> host_map() const;
  std::vector<std::uint32_t> unpack_codes(const std::vector<std::int32_t>& source) const;
  void put_bias(const std::vector<float>& values);
  MetaArgs meta_args() const;
  void launch_meta(const Function& function, const MetaArgs& args, void* stream) const;

  std::shared_ptr<Driver> driver_;
  Kernels* kernels_ = nullptr;  ///< of the device, which outlives its matrices, as its scratch does
  Scratch* scratch_ = nullptr;
  std::size_t scratch_bytes_ = 0;
  bool in_place_ = false;
  int zero_add_ = 0;  ///< from the stored zeros to those that are packed
  PackedGroups groups_;
  std::unique_ptr<Loading> loading_;
  i32 sets_ = 0;       ///< of meta, in a strip
  Buffer unit_group_;  ///< int32 [sets] group of each; empty: set i is of group i, and stays so
  Buffer bias16_[2];
};

}  // namespace q4::gpu
