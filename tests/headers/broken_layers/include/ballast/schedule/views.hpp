// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_SCHEDULE_VIEWS_HPP
#define BALLAST_SCHEDULE_VIEWS_HPP

#include <range/v3/view/chunk.hpp>

#endif
