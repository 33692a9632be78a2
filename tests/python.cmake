# The Python modules as one test: the wheel, a fresh virtual environment, pytest. Labelled as what builds q4 once more.
add_test(NAME "python: wheel and tests" COMMAND bash ${PROJECT_SOURCE_DIR}/bindings/python/tests/run.sh
                                                ${PROJECT_BINARY_DIR}/python)
set_tests_properties("python: wheel and tests" PROPERTIES SKIP_RETURN_CODE 77 LABELS consumer RUN_SERIAL ON TIMEOUT 1800)
