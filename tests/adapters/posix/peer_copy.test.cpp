// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/posix/peer_copy.hpp>
#include <ballast/posix/process_group.hpp>

#include "support/posix_runner.hpp"
#include "support/transport_laws.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <stdexcept>
#include <vector>

using ballast::errc;
using ballast_test::law_log;
using ballast_test::millisecond;
using ballast_test::patience;
using ballast_test::posix_runner;

namespace {

::ssize_t refuse(::pid_t, ::iovec const*, unsigned long, ::iovec const*, unsigned long) {
  errno = EPERM;
  return -1;
}

::ssize_t must_not_read(::pid_t, ::iovec const*, unsigned long, ::iovec const*, unsigned long) {
  throw std::logic_error{"read through the kernel"};
}

::ssize_t read_slowly(::pid_t peer, ::iovec const* local, unsigned long num_local, ::iovec const* remote,
                      unsigned long num_remote) {
  auto const result = ballast::posix::read_peer(peer, local, num_local, remote, num_remote);
  ballast_test::sleep_for(400 * millisecond);
  return result;
}

template <class Body>
void on_two_ranks(ballast::posix::peer_copy_options const& options, Body body) {
  posix_runner runner;
  runner.options = options;
  ballast_test::check_complaints(runner.run(2, body));
}

}  // namespace

TEST_CASE("copies between processes obey the laws of a transport") {
  ballast_test::check_transport_laws(posix_runner{});
}

TEST_CASE("copies through shared memory obey the same laws, where the kernel refuses direct ones") {
  posix_runner runner;
  runner.options.read_peer = refuse;
  runner.group_sizes = ballast_test::few_group_sizes();
  ballast_test::check_transport_laws(runner);
}

TEST_CASE("copies out of mapped memory obey the same laws, and do not ask the kernel") {
  ballast_test::basic_posix_runner<ballast_test::shared_memory> runner;
  runner.options.read_peer = must_not_read;
  runner.group_sizes = ballast_test::few_group_sizes();
  ballast_test::check_transport_laws(runner);
}

TEST_CASE("messages out of mapped and of private memory obey the same laws") {
  ballast_test::basic_posix_runner<ballast_test::mixed_memory> runner;
  runner.group_sizes = ballast_test::few_group_sizes();
  SUBCASE("that the kernel lets us read") {}
  SUBCASE("that the kernel refuses") { runner.options.read_peer = refuse; }
  ballast_test::check_complaints(runner.run(
      3, [](auto& self, law_log& log) { ballast_test::transport_law::moves_random_batches(self, log, 7, 60); }));
}

TEST_CASE("a receiver never accepts bytes that it read while the sender gave up") {
  on_two_ranks({.read_peer = read_slowly}, [](auto& self, law_log& log) {
    ballast_test::batch_memory memory{self, log, 1000, 1000};
    auto const batch = ballast_test::transport_law::single_message(1, 500);
    auto const view = memory.view(batch);
    log.expect_ok(self.transport.start(view.sends, view.receives), "start");
    if (self.rank() == 0) {
      log.expect_failure(self.transport.wait(100 * millisecond), {errc::deadline_exceeded}, "rank 1", "the sender");
    } else {
      log.expect_failure(self.transport.wait(patience), {errc::transport_failed},
                         "rank 0 took back a message to rank 1", "the receiver");
    }
    ballast_test::meet(self, log);
  });
}

TEST_CASE("a sender waits for its readers") {
  on_two_ranks({.read_peer = read_slowly}, [](auto& self, law_log& log) {
    ballast_test::batch_memory memory{self, log, 1000, 1000};
    auto const batch = ballast_test::transport_law::single_message(1, 500);
    auto const view = memory.view(batch);
    auto const begin = ballast::detail::now();
    log.expect_ok(self.transport.start(view.sends, view.receives), "start");
    log.expect_ok(self.transport.wait(patience), "wait");
    log.expect(ballast::detail::now() - begin >= 350 * millisecond, "the sender came back before its reader was done");
    memory.expect_received(batch, "a slow read");
    ballast_test::meet(self, log);
  });
}

TEST_CASE("start refuses bytes that the peer has not exposed") {
  on_two_ranks({}, [](auto& self, law_log& log) {
    ballast_test::batch_memory memory{self, log, 1000, 1000};
    std::array<std::byte, 64> target{};
    std::array<ballast::segment, 1> const into{{{target.data(), target.size()}}};
    auto const check_refused = [&](ballast::remote_segment from, char const* fragment) {
      std::array<ballast::remote_segment, 1> const source{from};
      std::array<ballast::incoming_message, 1> const receives{{{1 - self.rank(), 0, 1, into, source}}};
      log.expect_failure(self.transport.start({}, receives), {errc::transport_failed}, fragment, "start");
    };
    check_refused({0, 937, 64}, "bytes [937, 1001) of region 0");
    check_refused({2, 0, 64}, "region 2");
    check_refused({0, ~std::uint64_t{0}, 64}, "region 0");
    check_refused({0, 0, 63}, "wants 64 bytes from 63");
    ballast_test::meet(self, log);
  });
}

TEST_CASE("an expelled rank moves no bytes") {
  on_two_ranks({}, [](auto& self, law_log& log) {
    ballast_test::batch_memory memory{self, log, 1000, 1000};
    auto const batch = ballast_test::transport_law::single_message(1, 500);
    auto const view = memory.view(batch);
    ballast_test::meet(self, log);
    if (self.rank() == 0) {
      ballast_test::sleep_for(100 * millisecond);  // until rank 1 has left the meeting
      log.expect_ok(self.control.expel(1), "expel");
      log.expect_ok(self.transport.start(view.sends, view.receives), "start");
      log.expect_failure(self.transport.wait(patience), {errc::peer_lost}, "rank 1", "a message to an expelled rank");
    } else {
      while (!self.control.is_expelled(1)) { ballast_test::sleep_for(millisecond); }
      log.expect_failure(self.transport.start(view.sends, view.receives), {errc::stale_membership}, "rank 1", "start");
    }
  });
}

TEST_CASE("the vote that follows a failed batch names the rank behind the failure on every rank") {
  posix_runner runner;
  ballast_test::check_complaints(runner.run(3, [](auto& self, law_log& log) {
    ballast_test::batch_memory memory{self, log, 1000, 1000};
    auto const batch = ballast_test::transport_law::single_message(1, 500);
    auto const view = memory.view(batch);
    ballast_test::meet(self, log);
    bool received = true;
    if (self.rank() != 0) {  // rank 0 is missing
      log.expect_ok(self.transport.start(view.sends, view.receives), "start");
      received = self.transport.wait(100 * millisecond).ok();
      log.expect(received == (self.rank() == 2), "what rank ", self.rank(), " received");
      auto const result = self.control.vote(received, patience);
      log.expect(result.outcome == ballast::decision::drop, "the vote did not drop");
      log.expect_failure(result.reason, {errc::deadline_exceeded}, "rank 1 voted no because rank 0 was late", "vote");
    } else {
      ballast_test::sleep_for(300 * millisecond);
      static_cast<void>(self.control.vote(true, patience));
    }
    ballast_test::meet(self, log);
  }));
}

TEST_CASE("a rank that gives up because another one failed names the rank where it began") {
  posix_runner runner;
  ballast_test::check_complaints(runner.run(4, [](auto& self, law_log& log) {
    ballast_test::batch_memory memory{self, log, 1000, 1000};
    auto batch = ballast_test::transport_law::single_message(1, 500);
    batch.push_back(batch.front());
    batch.back().to = 2;
    batch.back().round = 1;
    auto const view = memory.view(batch);
    ballast_test::meet(self, log);
    // Ranks 1 and 2 wait for rank 0, which is not there. Rank 3 says no, rank 1 therefore too, and rank 2 sees both.
    if (self.rank() == 1 || self.rank() == 2) {
      ballast_test::sleep_for((self.rank() - 1) * 200 * millisecond);
      log.expect_ok(self.transport.start(view.sends, view.receives), "start");
      log.expect_failure(self.transport.wait(patience), {errc::transport_failed}, "rank 3", "wait");
    } else if (self.rank() == 0) {
      ballast_test::sleep_for(400 * millisecond);
    }
    log.expect_failure(self.control.vote(self.rank() == 0, patience).reason, {errc::transport_failed}, "rank 3",
                       "vote");
    ballast_test::meet(self, log);
  }));
}
