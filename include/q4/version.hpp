// The version: of these headers as constants, of the library that runs as a function.
#pragma once

#include <q4/version.h>
#include <q4/export.hpp>

namespace q4 {

inline constexpr int kVersionMajor = Q4_VERSION_MAJOR, kVersionMinor = Q4_VERSION_MINOR,
                     kVersionPatch = Q4_VERSION_PATCH;

/// "0.2.0": of the library that was linked or loaded, which may be another one than these headers are of.
Q4_API const char* version() noexcept;

}  // namespace q4
