// oneDNN as a yardstick: the dense bf16 product of the library that PyTorch multiplies with on x86, opened at run time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace q4::tools {

/// The library's name and version, or why there is none: "libdnnl.so.3 3.2.1". Q4_ONEDNN names another file.
const std::string& onednn_name();
bool onednn_available();

/// out = x W in bf16 with sums in fp32, W in the layout that the library prefers. Throws kUnsupported where the library
/// or the processor cannot.
class OneDnnMatmul {
 public:
  /// `copies` of W, so that each run can find cold ones.
  OneDnnMatmul(std::int64_t k, std::int64_t n, std::int64_t m, std::size_t copies);
  ~OneDnnMatmul();
  void run(std::size_t copy) const;
  std::size_t copies() const;
  /// W: whole numbers, which bf16 holds.
  static float weight(std::int64_t row, std::int64_t column) { return float((row * 7 + column * 3) % 13 - 6); }
  /// Row-major bf16: x [m][k], for the caller to fill, and out [m][n].
  std::uint16_t* x() const;
  const std::uint16_t* out() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Microseconds of one product with cold weights, packed as the library likes them: the median of what fits in
/// `seconds`, over copies of `cold_bytes` together (2 at least).
double time_onednn(std::int64_t k, std::int64_t n, std::int64_t m, std::size_t cold_bytes, double seconds);

}  // namespace q4::tools
