// QuantizedMatrix: 4-bit weights that live, repacked, on one device.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <q4/runtime.hpp>
#include <q4/slice.hpp>
#include <span>
#include <string>
#include <vector>

namespace q4 {

/// A borrowed row-major tensor in host memory or in the memory of a device. Strides are in elements; the library checks
/// them where it needs contiguity. `data` may be null only if an extent is 0.
struct TensorView {
  const void* data = nullptr;
  DType dtype = DType::kF16;
  std::int64_t rows = 0;  ///< 1 for a vector
  std::int64_t cols = 0;
  std::int64_t row_stride = -1;                 ///< elements between rows; -1: cols (contiguous)
  std::optional<Device> device = std::nullopt;  ///< empty or "cpu": host memory
};

/// How stored zeros are to be read. The formats are those of AutoGPTQ / GPTQModel checkpoints.
enum class ZeroFormat : std::uint8_t {
  kAuto,  ///< v1, unless every stored zero is 8: the pattern of a symmetric v2 checkpoint, which is then reported
  kV1,    ///< zero = (stored + 1) & 15
  kV2,    ///< zero = stored
};

/// Tensors of one GPTQ matrix: k rows (in_features), n columns (out_features).
/// W(r, c) = scales(g, c) * (q(r, c) - zero(g, c)), g = g_idx ? g_idx[r] : r / group_size.
struct GptqTensors {
  TensorView qweight;  ///< int32 [k/8, n]: nibble i of word (r, c) is q(8 r + i, c)
  TensorView qzeros;   ///< int32 [groups, n/8]: nibble j of word (g, w) is the stored zero of column 8 w + j
  TensorView scales;   ///< fp16 [groups, n]; bf16, fp32: rounded, kUnsupported if that loses more than 3e-4 of the norm
  std::optional<TensorView> g_idx = {};  ///< int32, int64 [k] in [0, groups); absent, empty, all 0, all -1: none
  std::optional<TensorView> bias = {};   ///< fp16, bf16 or fp32, n elements, added to every row of the output
  /// Rows of a group; -1: one group; 0: ceil(k / groups). Checked against the number of groups, unless there is a
  /// g_idx, which says each row's group. A last, shorter group is supported.
  std::int64_t group_size = 0;
  ZeroFormat zeros = ZeroFormat::kAuto;
};

/// Tensors of one AWQ "gemm" matrix: packed along n in the nibble order 0, 2, 4, 6, 1, 3, 5, 7.
struct AwqTensors {
  TensorView qweight;  ///< int32 [k, n/8]
  TensorView qzeros;   ///< int32 [groups, n/8]; zero = stored
  TensorView scales;   ///< fp16 [groups, n]
  std::optional<TensorView> bias = {};
  std::int64_t group_size = 0;  ///< as in GptqTensors
};

/// Where packed weights go.
enum class Storage : std::uint8_t {
  kOwn,  ///< memory of the matrix's own; the tensors are left as they are
  /// The memory of the tensors, which is overwritten and must then live as long as the matrix and its plans: codes take
  /// qweight's, and where they do, scales and zeros those of scales (fp16) and qzeros. It takes tensors on the matrix's
  /// own device, contiguous and aligned to 256 bytes, k % 128 == 0, n % 64 == 0 and groups without padding (group size
  /// 16, 32, 64 or a multiple of 128, with act-order as many rows each), and no gate_up; on the CPU and in every other
  /// case they go to own memory as with kOwn: QuantizedMatrix::in_place() and scales_in_place() say which. Packing may go
  /// on in the default stream after the load: plans, unpack(), update() and restore() wait for it. Memory that an earlier
  /// matrix has taken holds no tensor any more: nothing can tell, and loading it again gives other weights.
  kReuse,
};

struct MatrixOptions {
  Storage storage = Storage::kOwn;
  /// Device memory that packing in place may take for a time, or what a strip of 64 columns and 1/32 of the codes need.
  /// It is kept for the next load: Runtime::trim() frees it.
  std::size_t scratch_bytes = std::size_t{64} << 20;
  /// What of the matrix is loaded. A slice goes to own memory.
  Slice slice = {};
  /// The columns are n / 2 gates, then their n / 2 ups, as a checkpoint's gate_proj and up_proj side by side: they are
  /// interleaved as they are packed, for plans whose activation multiplies a gate and its up (Activation::k...Mul), and
  /// no other. n % 16 == 0. unpack(), update() and act-order are as without it; the codes then have own memory.
  bool gate_up = false;
};

/// What a matrix was made of, bit for bit, in host memory of its own. The views of gptq() and awq() refer to it.
struct Q4_API UnpackedMatrix {
  std::int64_t k = 0, n = 0, groups = 0, group_size = 0;
  bool is_awq = false;                 ///< in AWQ's layout, else in GPTQ's
  ZeroFormat zeros = ZeroFormat::kV1;  ///< of qzeros; AWQ: kV2
  std::vector<std::uint32_t> qweight, qzeros;
  std::vector<std::uint16_t> scales;  ///< fp16 bits; bf16 and fp32 as they were rounded
  std::vector<std::int32_t> g_idx;    ///< empty where none was given
  std::vector<float> bias;            ///< empty where none was given

  GptqTensors gptq() const;  ///< throws kInvalidArgument if is_awq
  AwqTensors awq() const;    ///< throws kInvalidArgument unless is_awq
};

/// A handle to device-resident weights. Copies share them; a plan keeps its matrix alive. The source tensors
/// are read during construction only, never modified, and may be freed as soon as it returns (device tensors must be
/// ready for work of the device's default stream, in which they are read). Thread-safe.
///
/// Limits: k % 8 == 0, n % 8 == 0, 8 <= k, n < 2^31, group size a multiple of 8. Anything else throws kInvalidArgument.
class Q4_API QuantizedMatrix {
 public:
  QuantizedMatrix() = default;  ///< empty; using it is an error
  static QuantizedMatrix from_gptq(const Runtime& runtime, Device device, const GptqTensors& tensors,
                                   const MatrixOptions& options = {});
  static QuantizedMatrix from_awq(const Runtime& runtime, Device device, const AwqTensors& tensors,
                                  const MatrixOptions& options = {});
  /// Several matrices of one input (q, k, v; gate, up) as one, their columns side by side: one product reads x once.
  /// They must agree in k, and in group size and g_idx (kUnsupported); stored zeros, types of scales and having a bias
  /// may differ. With a slice of columns each is sliced by itself. gate_up: of the gates and the ups, in that order. The
  /// codes go to own memory.
  static QuantizedMatrix fuse_gptq(const Runtime& runtime, Device device, std::span<const GptqTensors> tensors,
                                   const MatrixOptions& options = {});
  static QuantizedMatrix fuse_awq(const Runtime& runtime, Device device, std::span<const AwqTensors> tensors,
                                  const MatrixOptions& options = {});

  explicit operator bool() const noexcept { return impl_ != nullptr; }
  std::int64_t k() const;           ///< in_features
  std::int64_t n() const;           ///< out_features
  std::int64_t group_size() const;  ///< rows of a group as loaded (k for -1)
  std::int64_t groups() const;
  bool act_order() const;  ///< g_idx was there and differs from row / group_size
  bool has_bias() const;
  bool gate_up() const;         ///< loaded with MatrixOptions::gate_up
  bool is_awq() const;          ///< made of AWQ's tensors
  ZeroFormat zeros() const;     ///< kV1 or kV2: what was applied (AWQ: kV2)
  bool zeros_detected() const;  ///< kAuto chose kV2 because every stored zero was 8
  Device device() const;
  std::size_t bytes() const;     ///< device memory held; not what in_place() uses of the caller's
  bool in_place() const;         ///< the codes are in qweight's memory (Storage::kReuse)
  bool scales_in_place() const;  ///< in_place(), and scales and zeros are in the memory of scales and qzeros
  /// Other weights in the same memory: plans, captured graphs and copies of this handle stay valid and compute with
  /// them. The tensors must have the same format, k, n, groups and group size, act-order and bias or none, and with a
  /// g_idx groups of as many rows; anything else throws kInvalidArgument and changes nothing. On a GPU it happens after
  /// what the stream was given before and before what it is given next; with qweight, qzeros and fp16 scales on the
  /// device, contiguous, `zeros` not kAuto, no g_idx and no bias, it only launches (and may not be captured). Otherwise
  /// it waits for the device. The tensors must live until the stream is done. They may be the memory of in_place().
  /// Not while another thread updates or unpacks this matrix, or, on the CPU, runs a plan of it.
  void update(const GptqTensors& tensors, Stream stream = {});
  void update(const AwqTensors& tensors, Stream stream = {});
  /// in_place(): gives the tensors their content back. Nothing that computes with the matrix may be running or run again; it
  /// can only be destroyed. Without in_place() nothing happens.
  void restore();
  /// The tensors again: to save them, to look at them, to load them elsewhere. Waits for the device.
  UnpackedMatrix unpack() const;

  class Impl;
  std::shared_ptr<const Impl> impl() const { return impl_; }  ///< internal
  static QuantizedMatrix of(std::shared_ptr<Impl> impl);      ///< internal

 private:
  std::shared_ptr<Impl> impl_;
};

}  // namespace q4
