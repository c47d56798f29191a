// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CONFIG_HPP
#define BALLAST_CONFIG_HPP

#include <ballast/version.hpp>

#if defined(_MSVC_LANG) ? _MSVC_LANG < 202002L : __cplusplus < 202002L
  #error "ballast needs C++20: compile with -std=c++20 or later"
#endif

// 0: no checks. 1: documented preconditions (default without NDEBUG). 2: also internal invariants.
#ifndef BALLAST_CONTRACT_LEVEL
  #ifdef NDEBUG
    #define BALLAST_CONTRACT_LEVEL 0
  #else
    #define BALLAST_CONTRACT_LEVEL 1
  #endif
#endif

// What kernels run as well as the host: the two must never differ.
#if defined(__CUDACC__) || defined(__HIPCC__)
  #define BALLAST_HOST_DEVICE __host__ __device__
#else
  #define BALLAST_HOST_DEVICE
#endif

// Version and contract level are part of the ABI namespace: translation units built with other ones never share an
// inline function body; handing our types from one to the other fails to link.
#define BALLAST_DETAIL_CAT_ABI(major, minor, level) v##major##_##minor##_c##level
#define BALLAST_DETAIL_ABI(major, minor, level) BALLAST_DETAIL_CAT_ABI(major, minor, level)
#define BALLAST_BEGIN_NAMESPACE \
  namespace ballast {           \
  inline namespace BALLAST_DETAIL_ABI(BALLAST_VERSION_MAJOR, BALLAST_VERSION_MINOR, BALLAST_CONTRACT_LEVEL) {
#define BALLAST_END_NAMESPACE \
  }                           \
  }

#endif
