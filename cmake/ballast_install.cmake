# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# Install rules: headers, a CMake package with one export file per component, and pkg-config files. Nothing in them
# depends on the processor or on where the prefix is; pkg-config files say where CUDA and NCCL are.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_DATADIR}/cmake/ballast)

get_property(components GLOBAL PROPERTY BALLAST_COMPONENTS)
foreach(component IN LISTS components)
  install(TARGETS ballast_${component} EXPORT ballast-${component} FILE_SET HEADERS DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
  install(EXPORT ballast-${component} FILE ballast-${component}-targets.cmake NAMESPACE ballast::
          DESTINATION ${package_dir})
endforeach()

list(REMOVE_ITEM components ballast)
list(TRANSFORM components PREPEND " " OUTPUT_VARIABLE installed_components)
string(JOIN "," installed_components ${installed_components})
if(NOT installed_components)
  set(installed_components " none: name adapters with BALLAST_ENABLE_* when installing it")
endif()
list(JOIN ballast_adapters "|" adapters_pattern)
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
if(POLICY CMP0174)
  cmake_policy(SET CMP0174 NEW) # no flags are a value, too
endif()
# ballast_install_pkgconfig(NAME [DESCRIPTION text] [REQUIRES modules] [CFLAGS flags] [LIBS flags])
function(ballast_install_pkgconfig pc_name)
  cmake_parse_arguments(PARSE_ARGV 1 pc "" "DESCRIPTION;REQUIRES;CFLAGS;LIBS" "")
  configure_file(cmake/ballast.pc.in ${PROJECT_BINARY_DIR}/${pc_name}.pc @ONLY)
  install(FILES ${PROJECT_BINARY_DIR}/${pc_name}.pc DESTINATION ${pkgconfig_dir})
endfunction()
ballast_install_pkgconfig(ballast DESCRIPTION "${PROJECT_DESCRIPTION}" LIBS "-pthread")
# CUDA and NCCL have no pkg-config modules that can be counted on: the files say where this tree has found them.
# ballast_flags_for(VARIABLE flag dir...): the flag with each folder that a compiler does not know anyhow.
function(ballast_flags_for variable flag)
  set(flags "")
  foreach(dir IN LISTS ARGN)
    if(NOT dir IN_LIST CMAKE_CXX_IMPLICIT_INCLUDE_DIRECTORIES AND NOT dir IN_LIST CMAKE_CXX_IMPLICIT_LINK_DIRECTORIES)
      string(APPEND flags " ${flag}${dir}")
    endif()
  endforeach()
  set(${variable} "${flags}" PARENT_SCOPE)
endfunction()
set(libs_of_posix -lrt)
set(libs_of_cudart "-lrt -lcudart")
set(libs_of_nccl -lnccl)
foreach(component IN LISTS components)
  get_property(include_dirs GLOBAL PROPERTY BALLAST_INCLUDE_DIRS_${component})
  get_property(library_dirs GLOBAL PROPERTY BALLAST_LIBRARY_DIRS_${component})
  ballast_flags_for(cflags -I ${include_dirs})
  ballast_flags_for(where_libs_are -L ${library_dirs})
  set(requires ballast)
  if(component STREQUAL "nccl")
    set(requires ballast-cudart)
  endif()
  string(STRIP "${where_libs_are} ${libs_of_${component}}" libs)
  ballast_install_pkgconfig(ballast-${component} DESCRIPTION "The ${component} adapter of ballast" REQUIRES ${requires}
                            CFLAGS "${cflags}" LIBS "${libs}")
endforeach()

install(FILES LICENSE NOTICE DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/ballast)
