// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/posix/peer_copy.hpp>
#include <ballast/posix/process_group.hpp>

#include "support/posix_runner.hpp"
#include "support/transport_laws.hpp"

#include <doctest/doctest.h>

#include <cerrno>

namespace {

::ssize_t refuse(::pid_t, ::iovec const*, unsigned long, ::iovec const*, unsigned long) {
  errno = EPERM;
  return -1;
}

}  // namespace

TEST_CASE("copies between processes obey the laws of a transport") {
  ballast_test::check_transport_laws(ballast_test::posix_runner{});
}

TEST_CASE("copies through shared memory obey the same laws, where the kernel refuses direct ones") {
  ballast_test::posix_runner runner;
  runner.options.read_peer = refuse;
  runner.group_sizes = {2, 3};
  ballast_test::check_transport_laws(runner);
}
