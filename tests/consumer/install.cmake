# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# Install BUILD, or what SOURCE is with the preset "package" and OPTIONS, then move the result to PREFIX: nothing in a
# package may remember where it was installed.
if(SOURCE)
  execute_process(COMMAND ${CMAKE_COMMAND} --preset package -S ${SOURCE} -B ${BUILD} ${OPTIONS}
                  WORKING_DIRECTORY ${SOURCE} OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
endif()
file(REMOVE_RECURSE ${PREFIX} ${PREFIX}.before_move)
execute_process(COMMAND ${CMAKE_COMMAND} --install ${BUILD} --prefix ${PREFIX}.before_move COMMAND_ERROR_IS_FATAL ANY)
file(RENAME ${PREFIX}.before_move ${PREFIX})
