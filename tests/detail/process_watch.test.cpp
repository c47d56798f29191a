// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/detail/process_watch.hpp>

#include "support/group_runner.hpp"
#include "support/processes.hpp"

#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <optional>
#include <string>

using ballast::detail::process_identity;
using ballast::detail::process_watch;
using ballast_test::millisecond;
using ballast_test::patience;

TEST_CASE("a process is told apart from a later one with its number") {
  for (bool const use_pidfd : {true, false}) {
    CAPTURE(use_pidfd);
    auto const self = ballast::detail::this_process();
    CHECK_FALSE(process_watch(self, use_pidfd).dead());
    CHECK(process_watch(process_identity{self.pid, self.start_time + 1}, use_pidfd).dead());

    std::optional<process_watch> watch;
    ::pid_t const child = ::fork();
    if (child == 0) {
      for (;;) { ::pause(); }
    }
    watch.emplace(process_identity{child, ballast::detail::start_time_of(child)}, use_pidfd);
    CHECK_FALSE(watch->dead());
    ::kill(child, SIGKILL);
    auto const deadline = ballast::detail::now() + patience;
    while (!watch->dead() && ballast::detail::now() < deadline) { ballast_test::sleep_for(millisecond); }
    CHECK(watch->dead());  // although nobody has waited for it yet
    ::waitpid(child, nullptr, 0);
    CHECK(watch->dead());
  }
}

TEST_CASE("a process that has no descriptor left to look with takes nobody for dead") {
  auto const parent = ballast::detail::this_process();
  ballast_test::child_process child{[&](int report) {
    ::rlimit none{};
    ::getrlimit(RLIMIT_NOFILE, &none);
    none.rlim_cur = 0;
    ::setrlimit(RLIMIT_NOFILE, &none);
    ballast_test::write_line(report, process_watch{parent}.dead() ? "dead" : "alive");
  }};
  REQUIRE(child.finish(ballast::detail::now() + patience));
  CHECK(child.text() == "alive\n");
}
