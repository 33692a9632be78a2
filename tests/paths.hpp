// Where the suite finds the sources, the built tools and its stand-ins. Told to one file alone, so that the other test
// files compile to the same objects in every checkout.
#pragma once

#include <string>

namespace q4::test {

std::string source_dir();  ///< the root of the repository
std::string binary_dir();  ///< of the build
std::string fake_cuda();   ///< a libcuda.so.1 without a device behind it: fake_cuda.c
std::string slow_blas();   ///< a BLAS that takes $Q4_SLOW_BLAS_US for each row: slow_blas.c

}  // namespace q4::test
