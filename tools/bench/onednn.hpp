// oneDNN as a yardstick: the dense bf16 product of the library that PyTorch multiplies with on x86, and its product with
// 4-bit weights, opened at run time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace q4::tools {

/// The library's name and version, or why there is none: "libdnnl.so.3 3.2.1". Q4_ONEDNN names another file.
const std::string& onednn_name();
bool onednn_available();

/// bf16, or unsigned 4 bits with a zero of 8 and an fp16 scale for each column and 128 rows, as GPTQ's symmetric
/// matrices (weight decompression; version 3.5 and newer).
enum class OneDnnWeights { kBf16, kU4 };

/// out = x W in bf16 with sums in fp32, W in the layout that the library prefers. Throws kUnsupported where the library
/// or the processor cannot, or would only with a reference implementation.
class OneDnnMatmul {
 public:
  static constexpr std::int64_t kGroup = 128;  ///< rows that share a scale; k must be a multiple
  /// `copies` of W, so that each run can find cold ones.
  OneDnnMatmul(std::int64_t k, std::int64_t n, std::int64_t m, std::size_t copies,
               OneDnnWeights weights = OneDnnWeights::kBf16);
  ~OneDnnMatmul();
  void run(std::size_t copy) const;
  std::size_t copies() const;
  /// W: whole numbers of -6 to 6, or their halves, which bf16 holds.
  static float weight(std::int64_t row, std::int64_t column) {
    return float(whole(row, column)) * scale(row / kGroup, column);
  }
  static int whole(std::int64_t row, std::int64_t column) { return int((row * 7 + column * 3) % 13) - 6; }
  static float scale(std::int64_t group, std::int64_t column) { return (group + column) % 2 == 0 ? 1.0f : 0.5f; }
  /// Row-major bf16: x [m][k], for the caller to fill, and out [m][n].
  std::uint16_t* x() const;
  const std::uint16_t* out() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Microseconds of one product with cold weights, packed as the library likes them: the median of what fits in
/// `seconds`, over copies of `cold_bytes` together (2 at least). 0 where kU4 is not to be had.
double time_onednn(std::int64_t k, std::int64_t n, std::int64_t m, std::size_t cold_bytes, double seconds,
                   OneDnnWeights weights = OneDnnWeights::kBf16);

}  // namespace q4::tools
