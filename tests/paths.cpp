// The build's paths, as CMake passed them.
#include "paths.hpp"

namespace q4::test {

std::string source_dir() { return Q4_SOURCE_DIR; }
std::string binary_dir() { return Q4_BINARY_DIR; }
std::string fake_cuda() { return Q4_FAKE_CUDA; }
std::string slow_blas() { return Q4_SLOW_BLAS; }

}  // namespace q4::test
