# The Python modules as one test: the wheel, a fresh virtual environment, pytest. Labelled as what builds q4 once more.
add_test(NAME "python: wheel and tests" COMMAND bash ${PROJECT_SOURCE_DIR}/bindings/python/tests/run.sh
                                                ${PROJECT_BINARY_DIR}/python $<TARGET_FILE:q4-make-checkpoint>)
# Minutes of one core: so it begins first, and the others run beside it.
set_tests_properties("python: wheel and tests" PROPERTIES SKIP_RETURN_CODE 77 LABELS consumer COST 1000 TIMEOUT 1800)

# pytest skips what needs PyTorch where it is not: so that this is seen in the list of what was skipped.
add_test(NAME "python: PyTorch was there for its tests"
         COMMAND bash -c "${PROJECT_BINARY_DIR}/python/venv/bin/python -c 'import torch, transformers, peft' || { echo 'skipped: no PyTorch, transformers and PEFT for the tests of the wheel'$<SEMICOLON> exit 77$<SEMICOLON> }")
set_tests_properties("python: PyTorch was there for its tests"
                     PROPERTIES SKIP_RETURN_CODE 77 LABELS consumer DEPENDS "python: wheel and tests")

# What quantizers write, read by q4; on request (Q4_CI_TOOLS=1), as it installs gigabytes. After the wheel's own test.
add_test(NAME "quantizers: what they write is read exactly"
         COMMAND bash ${PROJECT_SOURCE_DIR}/tests/quantizers/run.sh ${PROJECT_BINARY_DIR}/quantizers
                      ${PROJECT_BINARY_DIR}/python/wheel)
set_tests_properties("quantizers: what they write is read exactly"
                     PROPERTIES SKIP_RETURN_CODE 77 LABELS tools DEPENDS "python: wheel and tests" RUN_SERIAL ON TIMEOUT 5400)
