# Packages first; fetched only when absent and a network is there. All are private: an embedder needs none of them.
find_package(Threads REQUIRED)
include(FetchContent)
include(CheckIncludeFileCXX)

# q4_package(NAME TARGET HEADER URL tag): find_package, else the header where the compiler finds it, else FetchContent.
function(q4_package name target header repository tag)
  find_package(${name} QUIET)
  set(q4_version_of_${name} "${${name}_VERSION}" PARENT_SCOPE)  # for the bill of materials (sbom.cmake)
  if(TARGET ${target})
    return()
  endif()
  set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)  # some headers do not link by themselves
  check_include_file_cxx(${header} Q4_HAS_${name})
  unset(CMAKE_TRY_COMPILE_TARGET_TYPE)
  if(Q4_HAS_${name})
    set(q4_version_of_${name} "of the system" PARENT_SCOPE)
    add_library(${target} INTERFACE IMPORTED)
    return()
  endif()
  message(STATUS "q4: package ${name} not found, fetching ${repository} ${tag}")
  set(q4_version_of_${name} ${tag} PARENT_SCOPE)
  set(CMAKE_POLICY_VERSION_MINIMUM 3.5)  # what CMake 4 wants of these tags
  FetchContent_Declare(${name} GIT_REPOSITORY ${repository} GIT_TAG ${tag} GIT_SHALLOW ON)
  FetchContent_MakeAvailable(${name})
endfunction()

q4_package(fmt fmt::fmt-header-only fmt/format.h https://github.com/fmtlib/fmt 9.1.0)
q4_package(nlohmann_json nlohmann_json::nlohmann_json nlohmann/json.hpp https://github.com/nlohmann/json v3.11.2)

# fmt's functions are compiled once, in runtime/base/fmt.cpp, which takes seconds off every file that formats; and under a
# name of their own, so that a static q4 drags nothing along at link time and has no symbol in common with an embedder's
# fmt. A version of fmt with which that does not link is used header-only.
if(NOT TARGET q4_fmt)  # the wheel includes this file before the library does
  add_library(q4_fmt INTERFACE)
  FetchContent_GetProperties(fmt)
  if(fmt_SOURCE_DIR)  # it was fetched
    set(q4_fmt_include ${fmt_SOURCE_DIR}/include)
  else()
    get_target_property(q4_fmt_include fmt::fmt-header-only INTERFACE_INCLUDE_DIRECTORIES)
    if(NOT q4_fmt_include)
      set(q4_fmt_include)
    endif()
  endif()
  set(q4_fmt_definitions "FMT_BEGIN_NAMESPACE=namespace fmt { inline namespace own {" "FMT_END_NAMESPACE=} }")
  if(NOT DEFINED Q4_FMT_COMPILED)
    list(TRANSFORM q4_fmt_definitions PREPEND -D OUTPUT_VARIABLE q4_fmt_flags)
    try_compile(Q4_FMT_COMPILED ${PROJECT_BINARY_DIR}/fmt_check
                SOURCES ${CMAKE_CURRENT_LIST_DIR}/../runtime/base/fmt.cpp ${CMAKE_CURRENT_LIST_DIR}/fmt_check.cpp
                CMAKE_FLAGS "-DINCLUDE_DIRECTORIES=${q4_fmt_include}"
                COMPILE_DEFINITIONS ${q4_fmt_flags} -O2  # inlining leaves no chance instantiations
                CXX_STANDARD 20 CXX_STANDARD_REQUIRED ON)
  endif()
  if(Q4_FMT_COMPILED)
    target_include_directories(q4_fmt SYSTEM INTERFACE ${q4_fmt_include})
    target_compile_definitions(q4_fmt INTERFACE ${q4_fmt_definitions})
  else()
    message(STATUS "q4: this fmt is used header-only: building takes longer")
    target_link_libraries(q4_fmt INTERFACE fmt::fmt-header-only)
    target_compile_definitions(q4_fmt INTERFACE FMT_HEADER_ONLY=1)
  endif()
endif()
set(Q4_PRIVATE_DEPENDENCIES $<BUILD_INTERFACE:q4_fmt> $<BUILD_INTERFACE:nlohmann_json::nlohmann_json>)

if(Q4_BUILD_TOOLS OR Q4_BUILD_TESTS)
  q4_package(CLI11 CLI11::CLI11 CLI/CLI.hpp https://github.com/CLIUtils/CLI11 v2.3.2)
endif()
if(Q4_BUILD_TESTS)
  q4_package(doctest doctest::doctest doctest/doctest.h https://github.com/doctest/doctest v2.4.9)
endif()
