// Which way to multiply serves which rows.
#include "runtime/backends/cpu/paths.hpp"

#include <unistd.h>

#include <algorithm>

#include "runtime/backends/cpu/blas.hpp"

namespace q4::cpu {

const char* to_string(Path path) noexcept {
  switch (path) {
    case Path::kDirect:
      return "cpu-direct math=fp32";
    case Path::kPanel:
      return "cpu-panel math=fp32";
    case Path::kDirectBf16:
      return "cpu-direct math=bf16";
    case Path::kPanelBf16:
      return "cpu-panel math=bf16";
    case Path::kDigits:
      return "cpu-direct math=digits";
    case Path::kAmxDigits:
      return "cpu-amx math=digits";
    case Path::kAmx:
      return "cpu-amx math=bf16";
    case Path::kInt8:
      return "cpu-direct math=int8";
    case Path::kBlas:
      return "reconstruct+blas";
  }
  return "";
}

std::int64_t l2_bytes() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  static const long kBytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (kBytes > 0) return kBytes;
#endif
  return std::int64_t(1) << 20;
}

bool PathRules::valid(Path path) const {
  if (int8 != (path == Path::kInt8)) return false;  // quantized activations are asked for, never chosen
  switch (path) {
    case Path::kDirect:
    case Path::kPanel:
    case Path::kInt8:
      return true;
    case Path::kDirectBf16:
    case Path::kPanelBf16:
      return kernels->direct_bf16 != nullptr && element == Element::kBF16;
    case Path::kDigits:
      return kernels->digits != nullptr;
    case Path::kAmxDigits:
      return kernels->amx_digits != nullptr && segment >= 32;
    case Path::kAmx:
      return kernels->amx != nullptr && segment >= 32;
    case Path::kBlas:
      return blas().available;
  }
  return false;
}

Path PathRules::usual(std::int64_t rows) const {
  if (int8) return Path::kInt8;
  const bool few = rows <= kernels->direct_rows, fast_bf16 = kernels->fast_bf16 && valid(Path::kDirectBf16);
  // One way of adding for every m. A row's sums on AMX depend on nothing but the row; `direct` and `panel` of one math
  // agree to the bit.
  if (batch_invariant) {
    if (valid(Path::kAmx)) return Path::kAmx;
    if (fast_bf16) return rows <= kernels->direct_rows_bf16 ? Path::kDirectBf16 : Path::kPanelBf16;
    return few ? Path::kDirect : Path::kPanel;
  }
  // Tiles take as long for one row as for as many as fit: five by three digits, sixteen once a term. bf16 can be
  // multiplied where it lies.
  const std::int64_t digit_rows = digits_pay || element != Element::kBF16 ? 5 : 3;
  if (valid(Path::kAmx) && rows > digit_rows) return Path::kAmx;
  if (valid(Path::kAmxDigits) && rows > 1) return Path::kAmxDigits;
  if (fast_bf16 && rows > 2) return rows <= kernels->direct_rows_bf16 ? Path::kDirectBf16 : Path::kPanelBf16;
  if (valid(Path::kDigits) && rows <= kernels->digit_rows) return Path::kDigits;
  return few ? Path::kDirect : Path::kPanel;
}

PathKernels kernels_of(const Kernels& kernels, Path path) {
  switch (path) {
    case Path::kDirect:
      return {kernels.pack_x, kernels.direct};
    case Path::kPanel:
      return {kernels.pack_x_panel, kernels.panel};
    case Path::kDirectBf16:
      return {kernels.pack_x_bf16, kernels.direct_bf16};
    case Path::kPanelBf16:
      return {kernels.pack_x_bf16, kernels.panel_bf16};
    case Path::kDigits:
      return {kernels.pack_x_digits, kernels.digits};
    case Path::kAmxDigits:
      return {kernels.pack_x_amx_digits, kernels.amx_digits};
    case Path::kAmx:
      return {kernels.pack_x_amx, kernels.amx};
    case Path::kInt8:
      return {kernels.pack_x_int8, kernels.int8};
    case Path::kBlas:
      break;
  }
  return {};
}

// AMX reads x once per tile so fast that only the second-level cache keeps up: half of it is for x. Where it does not
// hold 64 rows, decoding would take too much of the time: more rows then go through k in parts.
std::int64_t task_rows(Path path, Element element, std::int64_t blocks) {
  if (path != Path::kAmx) return kUsualRows;
  const std::int64_t fit = l2_bytes() / 2 / (blocks * amx_block_bytes(element)) / 32 * 32;
  return fit < kPartialRows ? kPartialRows : std::min(fit, kUsualRows);
}

int step_rows(const Kernels& kernels, Path path) {
  return path == Path::kAmx ? 2 * 16 : path == Path::kPanel ? kernels.panel_rows : 1;
}

int rest_rows(const Kernels& kernels, Path path) { return path == Path::kPanel ? kernels.panel_rows : 1; }

}  // namespace q4::cpu
