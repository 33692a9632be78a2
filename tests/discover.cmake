# Script mode, after q4-tests is linked: asks the binary BINARY for its test cases and writes OUT, which CTest includes: one
# entry a test case, named "file: test case".
execute_process(COMMAND ${BINARY} --list-test-cases --reporters=xml OUTPUT_VARIABLE xml RESULT_VARIABLE result)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "${BINARY} --list-test-cases failed: ${result}")
endif()
string(REPLACE ";" "\\;" xml "${xml}")
string(REGEX MATCHALL "<TestCase [^\n]*" cases "${xml}")
set(text "")
foreach(case IN LISTS cases)
  if(case MATCHES "skipped=\"true\"")  # no test of this build: another case starts it, or the engine cannot run it
    continue()
  endif()
  string(REGEX REPLACE ".* name=\"([^\"]*)\".*" "\\1" name "${case}")
  string(REGEX REPLACE ".* filename=\"([^\"]*)\".*" "\\1" file "${case}")
  get_filename_component(stem "${file}" NAME_WE)
  string(REGEX REPLACE "_test$" "" label "${stem}")
  foreach(pair "&lt|<" "&gt|>" "&quot|\"" "&apos|'" "&amp|&")
    string(REGEX MATCH "^([^|]*)[|](.*)$" pair "${pair}")
    string(REPLACE "${CMAKE_MATCH_1};" "${CMAKE_MATCH_2}" name "${name}")
  endforeach()
  string(REPLACE "," "\\," filter "${name}")  # doctest's filters are lists
  set(serial "")
  if(label STREQUAL "torture")  # a hundred processes: alone, as their times count
    set(serial "RUN_SERIAL ON ")
  elseif(name MATCHES "q4-autotune: more shapes than the budget")
    set(serial "RUN_SERIAL ON ")
  elseif(name MATCHES "q4-autotune")  # they would take turns on the CPU, within their budgets
    set(serial "RESOURCE_LOCK tuner ")
  endif()
  string(APPEND text "add_test([==[${label}: ${name}]==] [==[${BINARY}]==] [==[--test-case=${filter}]==] "
                     "[==[--source-file=*${stem}.cpp]==])\n"
                     "set_tests_properties([==[${label}: ${name}]==] PROPERTIES LABELS ${label} ${serial}TIMEOUT 300 "
                     "WORKING_DIRECTORY [==[${DIRECTORY}]==] SKIP_REGULAR_EXPRESSION \"q4-tests skipped\")\n")
endforeach()
file(WRITE ${OUT} "${text}")
