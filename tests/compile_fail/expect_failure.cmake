# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# Build TARGET and succeed if, and only if, that fails as EXPECT says: its first part, up to ' & ', has to match the first
# error, each further part some error or note. Other lines do not count: they may quote the source or the command, and so
# the expectation itself.
execute_process(COMMAND ${CMAKE_COMMAND} --build ${BUILD} --target ${TARGET} RESULT_VARIABLE result OUTPUT_VARIABLE output
                ERROR_VARIABLE output)
message("${output}")
if(result EQUAL 0)
  message(FATAL_ERROR "${TARGET} compiles, but must not.")
endif()
string(REPLACE ";" "," output "${output}")
string(REGEX MATCH "error: [^\n]*" first "${output}")
string(REGEX MATCHALL "(error|note): [^\n]*" complaints "${output}")
string(REPLACE " & " ";" parts "${EXPECT}")
list(POP_FRONT parts part)
if(NOT first MATCHES "${part}")
  message(FATAL_ERROR "${TARGET} does not compile, as it should, but its first error does not match '${part}'.")
endif()
foreach(part IN LISTS parts)
  if(NOT complaints MATCHES "${part}")
    message(FATAL_ERROR "${TARGET} does not compile, as it should, but no message matches '${part}'.")
  endif()
endforeach()
