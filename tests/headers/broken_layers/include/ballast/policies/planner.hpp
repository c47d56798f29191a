// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_PLANNER_HPP
#define BALLAST_POLICIES_PLANNER_HPP

#endif
