# Fuzzing, as one test: fuzz/run.sh builds the targets with clang and runs each for Q4_FUZZ_SECONDS; 0: over its seeds alone, so
# that a suite does not fail by chance. `ctest --preset fuzz` searches.
option(Q4_FUZZ "Fuzz the parsers as one of the tests, where there is a clang with libFuzzer" ON)
set(Q4_FUZZ_SECONDS 0 CACHE STRING "How long each parser is fuzzed")
if(Q4_FUZZ)
  add_executable(q4-fuzz-seeds fuzz/seeds.cpp checkpoint_maker.cpp format_maker.cpp reference.cpp)
  target_include_directories(q4-fuzz-seeds PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
  target_link_libraries(q4-fuzz-seeds PRIVATE q4_tools q4_internal)
  math(EXPR timeout "1200 + 12 * ${Q4_FUZZ_SECONDS}")
  add_test(NAME "fuzz: every parser" COMMAND bash ${CMAKE_CURRENT_SOURCE_DIR}/fuzz/run.sh ${PROJECT_BINARY_DIR} ${Q4_FUZZ_SECONDS})
  set_tests_properties("fuzz: every parser" PROPERTIES SKIP_RETURN_CODE 77 LABELS "consumer;fuzz" TIMEOUT ${timeout})
endif()
