# Debian packages of an installed q4, by cpack -G DEB: one a component (-DQ4_DEBIAN=ON -DBUILD_SHARED_LIBS=ON). tools/package makes
# them, and a tarball; it is what is tested.
set(CPACK_PACKAGE_NAME q4)
set(CPACK_PACKAGE_VENDOR "the q4 project")
set(CPACK_PACKAGE_CONTACT "The q4 maintainers <maintainers@q4.invalid>")  # there is no address: SECURITY.md says how to reach them
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "")  # each component has its own
set(CPACK_STRIP_FILES ON)
set(CPACK_THREADS 1)  # packages do not depend on the number of cores
set(CPACK_VERBATIM_VARIABLES ON)

set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_COMPONENTS_GROUPING IGNORE)
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_GENERATE_SHLIBS ON)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
set(about "q4 multiplies fp16, bf16 or fp32 activations by 4-bit GPTQ and AWQ weights on\nCPUs and, through run-time compiled kernels, on NVIDIA and AMD GPUs. Drivers,\nNVRTC, cuBLASLt and OpenBLAS are opened at run time where they exist.")

# q4_package_of(COMPONENT NAME SECTION SUMMARY): the Debian package of a component, and its files in /usr/share/doc.
function(q4_package_of component name section summary)
  string(TOUPPER ${component} key)
  set(CPACK_DEBIAN_${key}_PACKAGE_NAME ${name} PARENT_SCOPE)
  set(CPACK_DEBIAN_${key}_PACKAGE_SECTION ${section} PARENT_SCOPE)
  set(CPACK_DEBIAN_${key}_DESCRIPTION "${summary}\n${about}" PARENT_SCOPE)
  if(Q4_DEBIAN)
    set(folder ${CMAKE_INSTALL_DATADIR}/doc/${name})
    install(FILES ${PROJECT_SOURCE_DIR}/cmake/debian/copyright DESTINATION ${folder} COMPONENT ${component})
    install(FILES ${PROJECT_BINARY_DIR}/changelog.gz DESTINATION ${folder} COMPONENT ${component})
  endif()
endfunction()

if(Q4_DEBIAN)
  execute_process(COMMAND gzip -9nc ${PROJECT_SOURCE_DIR}/CHANGELOG.md OUTPUT_FILE ${PROJECT_BINARY_DIR}/changelog.gz
                  COMMAND_ERROR_IS_FATAL ANY)
endif()

q4_package_of(runtime libq4-0 libs "4-bit matrix multiplication (shared library)")
set(CPACK_DEBIAN_RUNTIME_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_RUNTIME_PACKAGE_CONTROL_EXTRA ${PROJECT_SOURCE_DIR}/cmake/debian/triggers)
set(CPACK_DEBIAN_RUNTIME_PACKAGE_RECOMMENDS "libopenblas0, libsodium23")
q4_package_of(development libq4-dev libdevel "4-bit matrix multiplication (headers, CMake and pkg-config files)")
set(CPACK_DEBIAN_DEVELOPMENT_PACKAGE_DEPENDS "libq4-0 (= ${PROJECT_VERSION})")
q4_package_of(tools q4-tools utils "tools of the q4 library: devices, checkpoints, tuning, packs of kernels")
set(CPACK_DEBIAN_TOOLS_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_TOOLS_PACKAGE_RECOMMENDS "libopenblas0, libsodium23")
set(CPACK_COMPONENTS_ALL runtime development tools)
if(Q4_BUILD_PYTHON)
  list(APPEND CPACK_COMPONENTS_ALL python)
  q4_package_of(python python3-q4 python "4-bit matrix multiplication (Python modules)")
  set(CPACK_DEBIAN_PYTHON_PACKAGE_SHLIBDEPS ON)
  set(CPACK_DEBIAN_PYTHON_PACKAGE_DEPENDS "${Q4_PYTHON_DEPENDS}")
  set(CPACK_DEBIAN_PYTHON_PACKAGE_RECOMMENDS "libopenblas0")
  set(CPACK_DEBIAN_PYTHON_PACKAGE_SUGGESTS "python3-numpy, q4-tools")
endif()

include(CPack)
