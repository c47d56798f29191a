// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef WIRE_HPP
#define WIRE_HPP

#include <nccl.h>

#endif
