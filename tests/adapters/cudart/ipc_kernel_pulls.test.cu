// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Peer copies whose bytes a kernel moves, between processes. A program of its own: who has used the GPU cannot fork.
#include <ballast/cudart/kernels/kernel_copies.cuh>

#include "support/gpu.hpp"
#include "support/ipc_copy_runner.hpp"
#include "support/transport_laws.hpp"

#include <doctest/doctest.h>

using namespace ballast_test;

namespace {

gpu_only const needs_gpu;

}  // namespace

TEST_CASE("pulls by kernel obey the laws of transports") {
  check_transport_laws(ipc_copy_runner<gpu_memory, ballast::cudart::kernel_copies>{rank_counts({2, 8})}, 20);
}
