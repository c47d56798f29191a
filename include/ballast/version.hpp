// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_VERSION_HPP
#define BALLAST_VERSION_HPP

// The only source of the version: CMake and the package files read these three lines.
#define BALLAST_VERSION_MAJOR 0
#define BALLAST_VERSION_MINOR 1
#define BALLAST_VERSION_PATCH 0

#endif
