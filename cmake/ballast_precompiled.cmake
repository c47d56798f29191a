# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# Headers that most of our own programs include, parsed once for all of them; and the inline functions of those headers
# compiled once, which is what takes long with sanitizers. A file that forgets an include does not notice: trees without this
# do. For Clang only: it takes g++ longer to read what it has precompiled than to parse the headers.
option(BALLAST_PRECOMPILED "Compile headers once for all examples and tests of behaviour, their code too (Clang only)" OFF)
if(BALLAST_PRECOMPILED AND NOT CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  message(FATAL_ERROR "BALLAST_PRECOMPILED needs Clang: -fpch-codegen is its own")
endif()

# ballast_add_precompiled(NAME HEADER LINKS target... [CODE_OPTIONS option...]): precompile HEADER for programs that link the
# targets, and its code with the options too.
function(ballast_add_precompiled name header)
  cmake_parse_arguments(PARSE_ARGV 2 arg "" "" "LINKS;CODE_OPTIONS")
  if(NOT BALLAST_PRECOMPILED)
    return()
  endif()
  # CMake precompiles headers for a source file only.
  file(CONFIGURE OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/${name}.cpp CONTENT "")
  add_library(${name} OBJECT EXCLUDE_FROM_ALL ${CMAKE_CURRENT_BINARY_DIR}/${name}.cpp)
  target_link_libraries(${name} PRIVATE ${arg_LINKS})
  # Without its time, for ccache.
  target_compile_options(${name} PRIVATE -fpch-codegen "SHELL:-Xclang -fno-pch-timestamp")
  target_precompile_headers(${name} PRIVATE ${header})
  set(precompiled ${CMAKE_CURRENT_BINARY_DIR}/CMakeFiles/${name}.dir/cmake_pch.hxx.pch)
  separate_arguments(flags UNIX_COMMAND "${CMAKE_CXX_FLAGS} ${CMAKE_CXX_FLAGS_${CMAKE_BUILD_TYPE}}")
  set(code ${CMAKE_CURRENT_BINARY_DIR}/${name}.o)
  add_custom_command(
    OUTPUT ${code}
    COMMAND ${CMAKE_CXX_COMPILER} ${CMAKE_CXX20_STANDARD_COMPILE_OPTION} ${flags} ${arg_CODE_OPTIONS} -c ${precompiled} -o ${code}
    DEPENDS ${precompiled}
    COMMENT "Building ${name}.o"
    VERBATIM)
  add_custom_target(${name}_code DEPENDS ${code})
  set_target_properties(${name} PROPERTIES BALLAST_PRECOMPILED_CODE ${code})
endfunction()

# ballast_use_precompiled(TARGET NAME)
function(ballast_use_precompiled target name)
  if(NOT BALLAST_PRECOMPILED)
    return()
  endif()
  target_precompile_headers(${target} REUSE_FROM ${name})
  add_dependencies(${target} ${name}_code)
  get_target_property(code ${name} BALLAST_PRECOMPILED_CODE)
  target_link_libraries(${target} PRIVATE ${code})
  # Most of it is not used by one program, and what that needs need not be there.
  target_link_options(${target} PRIVATE LINKER:--gc-sections)
endfunction()
