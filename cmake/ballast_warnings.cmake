# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# ballast_warnings: linked PRIVATE by our own programs, never by the library's targets.

add_library(ballast_warnings INTERFACE)
target_compile_options(ballast_warnings INTERFACE -Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow)
if(BALLAST_WARNINGS_AS_ERRORS)
  target_compile_options(ballast_warnings INTERFACE -Werror)
endif()
