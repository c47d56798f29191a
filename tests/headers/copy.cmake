# SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
# Make TO a copy of FROM; times of files are kept, so that what did not change is not compiled again.
file(REMOVE_RECURSE ${TO})
file(COPY ${FROM}/ DESTINATION ${TO})
