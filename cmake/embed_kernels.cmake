# Turns kernels/*.h into one C++ source: the run-time compilers get the headers from memory, so that an installed library
# needs no files beside it.
function(q4_embed_kernels out)
  file(GLOB headers CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/kernels/*.h)
  set(cpu ${PROJECT_SOURCE_DIR}/runtime/backends/cpu)
  file(GLOB cpu_sources CONFIGURE_DEPENDS ${cpu}/*.cpp ${cpu}/*.hpp ${cpu}/*.cmake)
  set(result ${PROJECT_BINARY_DIR}/embedded_kernels.cpp)
  add_custom_command(
    OUTPUT ${result}
    COMMAND ${CMAKE_COMMAND} "-DHEADERS=${headers}" "-DCPU_SOURCES=${cpu_sources}" -DOUT=${result}
            -P ${PROJECT_SOURCE_DIR}/cmake/embed.cmake
    DEPENDS ${headers} ${cpu_sources} ${PROJECT_SOURCE_DIR}/cmake/embed.cmake
    COMMENT "Embedding kernels" VERBATIM)
  set(${out} ${result} PARENT_SCOPE)
endfunction()
