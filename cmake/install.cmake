# What an installed q4 is: the library, its headers, the tools, a CMake package, a pkg-config file and the shapes. The
# components are what packages are made of (cmake/package.cmake).
include(CMakePackageConfigHelpers)

install(TARGETS q4 EXPORT q4-targets
        LIBRARY COMPONENT runtime NAMELINK_COMPONENT development
        ARCHIVE COMPONENT development
        FILE_SET HEADERS COMPONENT development)
set(CMAKE_INSTALL_DEFAULT_COMPONENT_NAME development)
install(EXPORT q4-targets NAMESPACE q4:: DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/q4)
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/q4-config.cmake.in ${PROJECT_BINARY_DIR}/q4-config.cmake
                              INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/q4)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/q4-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/q4-config.cmake ${PROJECT_BINARY_DIR}/q4-config-version.cmake
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/q4)

# The paths in q4.pc are relative to it, so that an installed tree can be moved.
file(RELATIVE_PATH q4_pc_prefix ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
string(REGEX REPLACE "/$" "" q4_pc_prefix ${q4_pc_prefix})
file(RELATIVE_PATH q4_pc_libdir ${CMAKE_INSTALL_PREFIX} ${CMAKE_INSTALL_FULL_LIBDIR})
file(RELATIVE_PATH q4_pc_includedir ${CMAKE_INSTALL_PREFIX} ${CMAKE_INSTALL_FULL_INCLUDEDIR})
configure_file(${PROJECT_SOURCE_DIR}/cmake/q4.pc.in ${PROJECT_BINARY_DIR}/q4.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/q4.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

set(q4_programs)
if(Q4_BUILD_TOOLS)
  set(q4_programs q4-info q4-verify q4-autotune q4-bench q4-cache q4-convert q4-hip-compile)
  install(TARGETS ${q4_programs} RUNTIME COMPONENT tools)
  install(FILES ${q4_man_pages} DESTINATION ${CMAKE_INSTALL_MANDIR}/man1 COMPONENT tools)
  foreach(tool info verify autotune bench cache convert)  # bash looks for a file with the command's name
    install(FILES ${PROJECT_SOURCE_DIR}/share/bash-completion/q4-tools COMPONENT tools
            DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME q4-${tool})
  endforeach()
  set(q4_zsh site-functions)
  if(Q4_DEBIAN)  # what packages bring
    set(q4_zsh vendor-completions)
  endif()
  install(FILES ${PROJECT_SOURCE_DIR}/share/zsh-completion/_q4-tools DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/${q4_zsh} COMPONENT tools)
  if(q4_man_pages)
    list(APPEND q4_programs q4-man)
  endif()
endif()
add_custom_target(q4-installed DEPENDS q4 ${q4_programs})  # all that installing needs, without the tests
file(GLOB q4_data CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/share/q4/*.csv ${PROJECT_SOURCE_DIR}/share/q4/*.json)
install(FILES ${q4_data} DESTINATION ${CMAKE_INSTALL_DATADIR}/q4 COMPONENT tools)
if(NOT Q4_DEBIAN)  # whose packages have it in their own folders
  install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
endif()
