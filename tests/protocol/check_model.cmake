# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# Explore every run of MODEL with the given MACROS: no assertion fails (safety), or every live rank leaves every wait
# (liveness, under weak fairness). Fails unless the whole state space was searched without an error; or, where PROPERTY
# begins with broken_, unless an error was found.
separate_arguments(macros UNIX_COMMAND "${MACROS}")
file(REMOVE_RECURSE ${FOLDER})
file(MAKE_DIRECTORY ${FOLDER})

if(PROPERTY MATCHES "safety$")
  set(build -DSAFETY -DNOCLAIM)
  set(search)
else()
  set(build -DNFAIR=3)
  set(search -a -f -N all_leave)
endif()

execute_process(COMMAND ${SPIN} -a ${macros} ${MODEL} WORKING_DIRECTORY ${FOLDER} OUTPUT_QUIET COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ${CC} -O1 -w -DCOLLAPSE ${build} -o pan pan.c WORKING_DIRECTORY ${FOLDER} COMMAND_ERROR_IS_FATAL ANY)
execute_process(COMMAND ./pan ${search} -m2000000 WORKING_DIRECTORY ${FOLDER} OUTPUT_VARIABLE report COMMAND_ERROR_IS_FATAL ANY)
message(STATUS "${report}")
if(PROPERTY MATCHES "^broken_safety")
  if(NOT report MATCHES "assertion violated")
    message(FATAL_ERROR "the error in the model was not found")
  endif()
elseif(PROPERTY MATCHES "^broken_liveness")
  if(NOT report MATCHES "acceptance cycle \\(at depth")
    message(FATAL_ERROR "the error in the model was not found")
  endif()
elseif(NOT report MATCHES "errors: 0" OR report MATCHES "max search depth too small|out of memory|Search not completed")
  message(FATAL_ERROR "the model does not hold, or was not searched to its end")
endif()
