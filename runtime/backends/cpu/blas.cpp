// Opens the packaged BLAS, unless it is one that nobody should multiply with.
#include "runtime/backends/cpu/blas.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>

#include "runtime/base/library.hpp"
#include "runtime/base/settings.hpp"

namespace q4::cpu {
namespace {

constexpr std::int64_t kProbe = 128;  // rows, columns and k of the products that are timed

/// c = a b by rows, four columns at a time: what every compiler makes of three loops.
void plain_product(const float* a, const float* b, float* c) {
  typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
  for (std::int64_t row = 0; row < kProbe; ++row) {
    std::fill_n(c + row * kProbe, kProbe, 0.0f);
    for (std::int64_t i = 0; i < kProbe; ++i)
      for (std::int64_t col = 0; col < kProbe; col += 4)
        *reinterpret_cast<Four*>(c + row * kProbe + col) +=
            a[row * kProbe + i] * *reinterpret_cast<const Four*>(b + i * kProbe + col);
  }
}

template <class Work>
double seconds(const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// What is wrong with an unknown BLAS, by its products and by the best of a few short runs; empty: nothing.
std::string measured_problem(const Blas& blas) {
  std::vector<float> a(kProbe * kProbe), b(a.size()), expected(a.size()), c(a.size(), -1.0f);
  for (std::size_t i = 0; i < a.size(); ++i)  // small integers: every order of adding gives the same sums
    a[i] = static_cast<float>(i % 7) - 3, b[i] = static_cast<float>(i % 5) - 2;
  double plain = 1e9, its = 1e9;
  for (int run = 0; run < 5; ++run) {
    plain = std::min(plain, seconds([&] { plain_product(a.data(), b.data(), expected.data()); }));
    its = std::min(its, seconds([&] {
                     blas.multiply(kProbe, kProbe, kProbe, a.data(), kProbe, b.data(), kProbe, c.data(), kProbe);
                   }));
    if (c != expected) return "gives wrong products";
  }
  return its < plain ? "" : "is no faster than a plain loop";
}

/// What is wrong with the BLAS in `library`; empty: nothing, and `text` then says which one it is.
std::string problem_of(void* library, const Blas& blas, std::string& text) {
  if (auto* config = reinterpret_cast<const char* (*)()>(dlsym(library, "openblas_get_config"))) {
    text = config();
    while (text.ends_with(' ')) text.pop_back();
    return text.find("USE64BITINT") == text.npos ? "" : "has integers of 64 bits";
  }
  // Variables of netlib's C interface, which no other BLAS exports.
  for (const char* variable : {"CBLAS_CallFromC", "RowMajorStrg"})
    if (dlsym(library, variable)) return "is netlib's reference BLAS, slow and too inexact for a long k";
  return measured_problem(blas);
}

}  // namespace

Blas open_blas(const std::vector<std::string>& names) {
  Blas result;
  std::string looked_for, passed_over;
  for (const std::string& name : names) {
    looked_for += " " + name;
    void* library = open_library(name.c_str());
    if (!library) continue;
    result.sgemm = reinterpret_cast<decltype(result.sgemm)>(dlsym(library, "cblas_sgemm"));
    std::string text;
    const std::string problem = result.sgemm ? problem_of(library, result, text) : "has no cblas_sgemm";
    if (problem.empty()) {
      result.available = true;
      result.name = text.empty() ? name : name + " (" + text + ")";
      return result;
    }
    passed_over += "; " + name + " " + problem;
    result.sgemm = nullptr;  // not closed: it may have started threads
  }
  result.name = "no BLAS to use (looked for" + looked_for + passed_over +
                "); install libopenblas0 or set Q4_BLAS: only reconstruct+blas needs it";
  return result;
}

const Blas& blas() {
  static const Blas instance = [] {
    const std::string named = setting("Q4_BLAS");
    return open_blas(named.empty() ? std::vector<std::string>{"libopenblas.so.0", "libblas.so.3"}
                                   : std::vector<std::string>{named});
  }();
  return instance;
}

void Blas::multiply(std::int64_t m, std::int64_t n, std::int64_t k, const float* a, std::int64_t lda, const float* b,
                    std::int64_t ldb, float* c, std::int64_t ldc) const {
  constexpr int kRowMajor = 101, kAsIs = 111;
  sgemm(kRowMajor, kAsIs, kAsIs, int(m), int(n), int(k), 1.0f, a, int(lda), b, int(ldb), 0.0f, c, int(ldc));
}

}  // namespace q4::cpu
