# What makes a memory error harder to use, in all that is built here (docs/security.md): canaries on stacks, checked calls of
# the C library, tables of the loader that are read-only, tools at random addresses. tests/hardened.cmake reads it from binaries.
include(CheckPIESupported)
check_pie_supported(LANGUAGES C CXX)

set(q4_hardened_compile -fstack-protector-strong)
if(NOT "${CMAKE_C_FLAGS} ${CMAKE_CXX_FLAGS}" MATCHES "_FORTIFY_SOURCE|-fsanitize=")  # a distributor's level stays
  list(APPEND q4_hardened_compile $<$<CONFIG:Release>:-U_FORTIFY_SOURCE> $<$<CONFIG:Release>:-D_FORTIFY_SOURCE=2>)
endif()
set(q4_hardened_link LINKER:-z,relro,-z,now)
