# Turns kernels/*.h into one C++ source: the run-time compilers get the headers from memory, so that an installed library
# needs no files beside it.
function(q4_embed_kernels out)
  set(root ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/..)  # tests/cpu is a project of its own
  file(GLOB headers CONFIGURE_DEPENDS ${root}/kernels/*.h)
  set(cpu ${root}/runtime/backends/cpu)
  file(GLOB cpu_sources CONFIGURE_DEPENDS ${cpu}/*.cpp ${cpu}/*.hpp ${cpu}/*.cmake)
  set(result ${PROJECT_BINARY_DIR}/embedded_kernels.cpp)
  add_custom_command(
    OUTPUT ${result}
    COMMAND ${CMAKE_COMMAND} "-DHEADERS=${headers}" "-DCPU_SOURCES=${cpu_sources}" -DOUT=${result}
            -P ${root}/cmake/embed.cmake
    DEPENDS ${headers} ${cpu_sources} ${root}/cmake/embed.cmake
    COMMENT "Embedding kernels" VERBATIM)
  set(${out} ${result} PARENT_SCOPE)
endfunction()
