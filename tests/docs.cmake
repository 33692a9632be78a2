# The documents: their links, lists and versions; the site; and lint of scripts and Python. What a machine lacks is skipped.
find_program(q4_python3 python3)
if(q4_python3)
  add_test(NAME "docs: charts are up to date" COMMAND ${q4_python3} ${PROJECT_SOURCE_DIR}/tools/charts --check)
  foreach(what links variables versions figures errors)
    add_test(NAME "docs: ${what}" COMMAND ${q4_python3} ${PROJECT_SOURCE_DIR}/tests/docs/check.py ${what})
  endforeach()
  add_test(NAME "docs: options of tools exist" COMMAND ${q4_python3} ${PROJECT_SOURCE_DIR}/tests/docs/check.py options ${PROJECT_BINARY_DIR}/bin)
  add_test(NAME "docs: fragments of C++ compile" COMMAND ${q4_python3} ${PROJECT_SOURCE_DIR}/tests/docs/check.py fragments ${CMAKE_CXX_COMPILER})
  add_test(NAME "docs: file formats are as drawn"
           COMMAND ${q4_python3} ${PROJECT_SOURCE_DIR}/tests/docs/files.py ${PROJECT_BINARY_DIR}/bin ${PROJECT_SOURCE_DIR}/docs/reference/files.md)
  set_tests_properties("docs: file formats are as drawn" PROPERTIES SKIP_RETURN_CODE 77 RESOURCE_LOCK tuner)
  add_test(NAME "tools: fields of --json are documented"
           COMMAND ${q4_python3} ${PROJECT_SOURCE_DIR}/tests/tools/json_test.py ${PROJECT_BINARY_DIR}/bin ${PROJECT_SOURCE_DIR}/docs)
  set_tests_properties("tools: fields of --json are documented" PROPERTIES RESOURCE_LOCK tuner)
endif()
add_test(NAME "docs: the site builds without a warning" COMMAND bash ${PROJECT_SOURCE_DIR}/tests/docs/site.sh)
set_tests_properties("docs: the site builds without a warning" PROPERTIES SKIP_RETURN_CODE 77 LABELS consumer TIMEOUT 600)

add_test(NAME "tools: abi-diff tells what is compatible" COMMAND bash ${PROJECT_SOURCE_DIR}/tests/tools/abi_test.sh)
set_tests_properties("tools: abi-diff tells what is compatible" PROPERTIES SKIP_RETURN_CODE 77)
add_test(NAME "tools: completion, manual pages, streams" COMMAND bash ${PROJECT_SOURCE_DIR}/tests/tools/faces_test.sh ${PROJECT_BINARY_DIR}/bin)

foreach(what shell python)
  add_test(NAME "lint: ${what}" COMMAND bash ${PROJECT_SOURCE_DIR}/tests/lint.sh ${what})
  set_tests_properties("lint: ${what}" PROPERTIES SKIP_RETURN_CODE 77)
endforeach()
