// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_PLACEMENT_COSTLY_HPP
#define BALLAST_PLACEMENT_COSTLY_HPP

#include "costly_detail.hpp"

#include <range/v3/view/chunk.hpp>

#include <functional>

#endif
