# Packages first; fetched only when absent and a network is there. All are private: an embedder needs none of them.
find_package(Threads REQUIRED)
include(FetchContent)
include(CheckIncludeFileCXX)

# q4_package(NAME TARGET HEADER URL tag): find_package, else the header where the compiler finds it, else FetchContent.
function(q4_package name target header repository tag)
  find_package(${name} QUIET)
  if(TARGET ${target})
    return()
  endif()
  set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)  # some headers do not link by themselves
  check_include_file_cxx(${header} Q4_HAS_${name})
  unset(CMAKE_TRY_COMPILE_TARGET_TYPE)
  if(Q4_HAS_${name})
    add_library(${target} INTERFACE IMPORTED)
    return()
  endif()
  message(STATUS "q4: package ${name} not found, fetching ${repository} ${tag}")
  set(CMAKE_POLICY_VERSION_MINIMUM 3.5)  # what CMake 4 wants of these tags
  FetchContent_Declare(${name} GIT_REPOSITORY ${repository} GIT_TAG ${tag} GIT_SHALLOW ON)
  FetchContent_MakeAvailable(${name})
endfunction()

q4_package(fmt fmt::fmt-header-only fmt/format.h https://github.com/fmtlib/fmt 9.1.0)
q4_package(nlohmann_json nlohmann_json::nlohmann_json nlohmann/json.hpp https://github.com/nlohmann/json v3.11.2)

# Header-only use, so that a static q4 drags nothing along at link time.
set(Q4_PRIVATE_DEPENDENCIES $<BUILD_INTERFACE:fmt::fmt-header-only> $<BUILD_INTERFACE:nlohmann_json::nlohmann_json>)

if(Q4_BUILD_TOOLS OR Q4_BUILD_TESTS)
  q4_package(CLI11 CLI11::CLI11 CLI/CLI.hpp https://github.com/CLIUtils/CLI11 v2.3.2)
endif()
if(Q4_BUILD_TESTS)
  q4_package(doctest doctest::doctest doctest/doctest.h https://github.com/doctest/doctest v2.4.9)
endif()
