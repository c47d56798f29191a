// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_LOAD_UPWARD_HPP
#define BALLAST_LOAD_UPWARD_HPP

#include <ballast/placement/costly.hpp>

#endif
