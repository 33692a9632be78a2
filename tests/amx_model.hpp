// The AMX kernels on tiles that plain C++ computes (amx_model.cpp).
#pragma once

#include <atomic>

#include "runtime/backends/cpu/kernels.hpp"

namespace q4::cpu {
/// As amx_kernels(); to be added to a table for AVX-512 BF16. False where the build lacks AVX-512.
bool modelled_amx_kernels(Kernels& kernels);
}  // namespace q4::cpu

namespace q4::test {
/// Uses of tiles so far that a processor would not allow.
int amx_faults();
}  // namespace q4::test
