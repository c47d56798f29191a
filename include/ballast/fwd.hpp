// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_FWD_HPP
#define BALLAST_FWD_HPP

#include <ballast/config.hpp>
#include <ballast/types.hpp>

BALLAST_BEGIN_NAMESPACE

// For headers of an engine that only name these types.
class digest;
class status;
class topology;
struct topology_shape;
template <class T>
class matrix_view;
class load_history_view;
class placement;
struct placement_shape;

BALLAST_END_NAMESPACE

#endif
