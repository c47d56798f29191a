// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_BALLAST_HPP
#define BALLAST_BALLAST_HPP

#include <ballast/load/upward.hpp>
#include <ballast/policies/planner.hpp>
#include <ballast/schedule/views.hpp>

#endif
