# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# Build TARGET and succeed if, and only if, that fails with an error line that EXPECT matches. Other lines do not count:
# they may quote the source or the command, and so the expectation itself.
execute_process(COMMAND ${CMAKE_COMMAND} --build ${BUILD} --target ${TARGET} RESULT_VARIABLE result OUTPUT_VARIABLE output
                ERROR_VARIABLE output)
message("${output}")
if(result EQUAL 0)
  message(FATAL_ERROR "${TARGET} compiles, but must not.")
endif()
string(REGEX MATCHALL "(error|note): [^\n]*" complaints "${output}")
if(NOT complaints MATCHES "${EXPECT}")
  message(FATAL_ERROR "${TARGET} does not compile, as it should, but no message matches '${EXPECT}'.")
endif()
