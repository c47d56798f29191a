// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// CMake precompiles headers for a source file only.
