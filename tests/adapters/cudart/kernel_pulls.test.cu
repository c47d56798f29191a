// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Peer copies whose bytes a kernel moves, all or those of small messages.
#include <ballast/cudart/kernels/kernel_copies.cuh>
#include <ballast/cudart/kernels/sized_copies.cuh>
#include <ballast/cudart/peer_copy.hpp>
#include <ballast/cudart/peer_directory.hpp>

#include "support/gpu.hpp"
#include "support/ipc_copy_runner.hpp"
#include "support/local_copy_runner.hpp"
#include "support/transport_laws.hpp"

#include <doctest/doctest.h>

using namespace ballast_test;

namespace {

gpu_only const needs_gpu;
using ballast::cudart::kernel_copies;
using few_by_kernel = ballast::cudart::sized_copies<1000>;

static_assert(ballast::peer_copier<ballast::cudart::peer_copy<ballast::cudart::local_peers::member, kernel_copies>>);

}  // namespace

// The first case, because a process that has used the GPU cannot fork ranks that use it.
TEST_CASE("pulls by kernel between processes obey the laws of transports") {
  check_transport_laws(ipc_copy_runner<gpu_memory, kernel_copies>{rank_counts({2, 8})}, 20);
  check_transport_laws(ipc_copy_runner<gpu_memory, few_by_kernel>{rank_counts({2})}, 20);
}

TEST_CASE("pulls by kernel inside a process obey the laws of transports") {
  check_transport_laws(local_copy_runner<kernel_copies>{});
  check_transport_laws(local_copy_runner<few_by_kernel>{});
}

TEST_CASE("a timed transport tells what its kernels took on the device") {
  local_copy_runner<kernel_copies> const runner{{.timed = true}, {2, 4}};
  for (auto const size : runner.sizes()) {
    CAPTURE(size);
    check_complaints(runner.run(size, [](auto& self, law_log& log) { transport_law::tells_batch_times(self, log); }));
  }
}
