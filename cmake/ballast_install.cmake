# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# Install rules: headers, a CMake package with one export file per component, and a pkg-config file. Nothing in them
# depends on the processor or on where the prefix is.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_DATADIR}/cmake/ballast)

get_property(components GLOBAL PROPERTY BALLAST_COMPONENTS)
foreach(component IN LISTS components)
  install(TARGETS ballast_${component} EXPORT ballast-${component} FILE_SET HEADERS DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
  install(EXPORT ballast-${component} FILE ballast-${component}-targets.cmake NAMESPACE ballast::
          DESTINATION ${package_dir})
endforeach()

configure_package_config_file(cmake/ballast-config.cmake.in ${PROJECT_BINARY_DIR}/ballast-config.cmake
                              INSTALL_DESTINATION ${package_dir} NO_SET_AND_CHECK_MACRO)
# A minor version may change placements while the major version is 0.
write_basic_package_version_file(${PROJECT_BINARY_DIR}/ballast-config-version.cmake COMPATIBILITY SameMinorVersion
                                 ARCH_INDEPENDENT)
install(FILES ${PROJECT_BINARY_DIR}/ballast-config.cmake ${PROJECT_BINARY_DIR}/ballast-config-version.cmake
        DESTINATION ${package_dir})
if("nccl" IN_LIST components)
  install(FILES cmake/FindNCCL.cmake DESTINATION ${package_dir})
endif()

set(pkgconfig_dir ${CMAKE_INSTALL_DATADIR}/pkgconfig)
cmake_path(RELATIVE_PATH CMAKE_INSTALL_FULL_INCLUDEDIR BASE_DIRECTORY ${CMAKE_INSTALL_PREFIX}/${pkgconfig_dir}
           OUTPUT_VARIABLE includedir_from_pkgconfig)
configure_file(cmake/ballast.pc.in ${PROJECT_BINARY_DIR}/ballast.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/ballast.pc DESTINATION ${pkgconfig_dir})

install(FILES LICENSE NOTICE DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/ballast)
