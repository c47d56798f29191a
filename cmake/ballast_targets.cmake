# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# Functions that define ballast's header-only targets.

# ballast_add_interface(NAME BASE_DIR dir HEADERS file... [LINK target...])
#
# Define the header-only target ballast::NAME, whose headers are found under BASE_DIR and verified to compile alone. It
# carries no flags but the C++20 floor: warnings, sanitizers and contract levels are the includer's business.
function(ballast_add_interface name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "BASE_DIR" "HEADERS;LINK")
  set(target ballast_${name})
  add_library(${target} INTERFACE)
  add_library(ballast::${name} ALIAS ${target})
  target_sources(${target} PUBLIC FILE_SET HEADERS BASE_DIRS ${arg_BASE_DIR} FILES ${arg_HEADERS})
  target_compile_features(${target} INTERFACE cxx_std_20)
  target_link_libraries(${target} INTERFACE ${arg_LINK})
  set_target_properties(${target} PROPERTIES EXPORT_NAME ${name} VERIFY_INTERFACE_HEADER_SETS ${PROJECT_IS_TOP_LEVEL})
endfunction()
