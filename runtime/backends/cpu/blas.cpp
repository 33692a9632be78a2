// Opens the packaged BLAS.
#include "runtime/backends/cpu/blas.hpp"

#include <dlfcn.h>

#include <cstdlib>
#include <vector>

namespace q4::cpu {
namespace {

Blas open_blas() {
  Blas result;
  std::vector<std::string> names = {"libopenblas.so.0", "libblas.so.3"};
  if (const char* named = std::getenv("Q4_BLAS"); named && *named) names = {named};
  for (const std::string& name : names) {
    void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) continue;
    result.sgemm = reinterpret_cast<decltype(result.sgemm)>(dlsym(library, "cblas_sgemm"));
    if (result.sgemm) {
      result.available = true;
      result.name = name;
      return result;
    }
    dlclose(library);
  }
  result.name = "not found (looked for cblas_sgemm in";
  for (const std::string& name : names) result.name += " " + name;
  result.name += "); install libopenblas0 or set Q4_BLAS: only reconstruct+blas needs it";
  return result;
}

}  // namespace

const Blas& blas() {
  static const Blas instance = open_blas();
  return instance;
}

void Blas::multiply(std::int64_t m, std::int64_t n, std::int64_t k, const float* a, std::int64_t lda, const float* b,
                    std::int64_t ldb, float* c, std::int64_t ldc) const {
  constexpr int kRowMajor = 101, kAsIs = 111;
  sgemm(kRowMajor, kAsIs, kAsIs, int(m), int(n), int(k), 1.0f, a, int(lda), b, int(ldb), 0.0f, c, int(ldc));
}

}  // namespace q4::cpu
