# Script mode: what cmake/hardening.cmake asks for, read from each of FILES by readelf; FORTIFIED: a Release build, whose calls
# of the C library are checked ones.
cmake_minimum_required(VERSION 3.24)
if(NOT FILES)
  message(FATAL_ERROR "no binaries to look at")
endif()
set(ENV{LANG} C)
foreach(file IN LISTS FILES)
  execute_process(COMMAND ${READELF} --wide --file-header --segments --dynamic --dyn-syms ${file} OUTPUT_VARIABLE elf
                  COMMAND_ERROR_IS_FATAL ANY)
  foreach(want "Type: +DYN|it is no position-independent executable or library" "GNU_RELRO|no read-only relocations"
               "BIND_NOW|symbols are bound late, so their table stays writable" "GNU_STACK[^\n]* RW |the stack is executable"
               "__stack_chk_fail|no stack is protected")
    string(REPLACE "|" ";" want "${want}")
    list(GET want 0 pattern)
    list(GET want 1 problem)
    if(NOT elf MATCHES "${pattern}")
      message(SEND_ERROR "${file}: ${problem}")
    endif()
  endforeach()
  if(FORTIFIED AND NOT elf MATCHES " __(mem|str|read|pread|[a-z]*printf|realpath)[a-z]*_chk")
    message(SEND_ERROR "${file}: no call of the C library is a checked one (_FORTIFY_SOURCE)")
  endif()
  if(elf MATCHES "TEXTREL|\\((RPATH|RUNPATH)\\)")
    message(SEND_ERROR "${file}: it has ${CMAKE_MATCH_0}")
  endif()
endforeach()
