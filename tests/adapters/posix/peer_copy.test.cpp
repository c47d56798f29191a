// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/posix/peer_copy.hpp>
#include <ballast/posix/process_group.hpp>

#include "support/posix_runner.hpp"
#include "support/transport_laws.hpp"

#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
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
    check_refused({~std::uint32_t{0}, 0, 64}, "region 4294967295");
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

TEST_CASE("start refuses messages from and to ranks that there are not") {
  on_two_ranks({}, [](auto& self, law_log& log) {
    for (ballast::index_t const peer : {-1, 2, 1 << 30}) {
      std::array<ballast::outgoing_message, 1> const sends{{{peer, 0, 1, {}}}};
      std::array<ballast::incoming_message, 1> const receives{{{peer, 0, 1, {}, {}}}};
      auto const name = ballast::detail::concat("with rank ", peer);
      log.expect_failure(self.transport.start(sends, {}), {errc::transport_failed}, name, "start");
      log.expect_failure(self.transport.start({}, receives), {errc::transport_failed}, name, "start");
    }
    log.expect(self.transport.poll() == ballast::transfer_state::idle, "a refused batch is open");
    ballast_test::meet(self, log);
  });
}

TEST_CASE("expose names the rank that exposes otherwise, alike on every rank and without waiting") {
  posix_runner runner;
  ballast_test::check_complaints(runner.run(3, [](auto& self, law_log& log) {
    std::vector<std::byte> bytes(64);
    ballast::segment const one{bytes.data(), bytes.size()};
    std::vector<ballast::segment> const two{one, one};
    bool const is_odd = self.rank() == 1;
    auto result = self.transport.expose(std::span{two}.first(is_odd ? 1 : 2), 0);
    log.expect_failure(result, {errc::disagreement}, "rank 1 exposes 1 regions, rank 0 exposes 2", "expose");
    log.expect(result.rank() == 1, "rank ", result.rank(), " is blamed");
    result = self.transport.expose(two, is_odd ? 7u : 8u);
    log.expect_failure(result, {errc::disagreement}, "rank 1 exposes regions from number 7 on, rank 0 from 8",
                       "expose");
    log.expect(self.transport.next_region() == 0, "a failed expose used numbers up to ", self.transport.next_region());
    log.expect_failure(self.transport.expose(two, ~std::uint32_t{0} - 1), {errc::invalid_option}, "4294967294",
                       "expose with too large numbers");
    log.expect_ok(self.transport.expose(two, 8), "expose");
    log.expect_ok(self.transport.expose({}, 10), "expose nothing");
    log.expect(self.transport.next_region() == 10, "next_region is ", self.transport.next_region());
    for (std::uint32_t const first : {8u, 9u, 0u}) {
      log.expect_failure(self.transport.expose(two, first), {errc::invalid_option},
                         ballast::detail::concat("from number ", first, " on, but rank 0 has used numbers up to 9"),
                         "expose again");
    }
    ballast_test::meet(self, log);
  }));
}

TEST_CASE("numbers between the sets and of a set that was retracted are not read, and an open batch keeps its set") {
  on_two_ranks({.bytes_per_poll = 100}, [](auto& self, law_log& log) {
    ballast_test::batch_memory first{self, log, 1000, 1000};  // regions 0 and 1
    std::vector<std::byte> bytes(1000);
    std::array<ballast::segment, 1> const region{{{bytes.data(), bytes.size()}}};
    log.expect_ok(self.transport.expose(region, 5), "expose");
    auto const check_refused = [&](std::uint32_t number) {
      std::array<std::byte, 8> target{};
      std::array<ballast::segment, 1> const into{{{target.data(), target.size()}}};
      std::array<ballast::remote_segment, 1> const source{{{number, 0, 8}}};
      std::array<ballast::incoming_message, 1> const receives{{{1 - self.rank(), 0, 1, into, source}}};
      log.expect_failure(self.transport.start({}, receives), {errc::transport_failed},
                         ballast::detail::concat("region ", number), "start");
    };
    for (std::uint32_t const number : {2u, 4u, 6u}) { check_refused(number); }

    auto const batch = ballast_test::transport_law::single_message(1, 900);
    auto const view = first.view(batch);
    log.expect_ok(self.transport.start(view.sends, view.receives), "start");
    auto const deadline = ballast::detail::now() + patience;
    auto const* const arriving = view.receives.empty() ? nullptr : view.receives[0].segments[0].data;
    while (arriving != nullptr && *arriving == std::byte{0xa5} && ballast::detail::now() < deadline) {
      static_cast<void>(self.transport.poll());
    }
    self.transport.retract(0);
    self.transport.retract(3);  // no set begins there
    log.expect_ok(self.transport.wait(patience), "wait");
    first.expect_received(batch, "a batch whose set is retracted meanwhile");
    check_refused(0);
    check_refused(1);
    ballast_test::meet(self, log);
  });
}

TEST_CASE("a late batch names silences as they were, and none where there was none") {
  posix_runner runner;
  ballast_test::check_complaints(runner.run(3, [](auto& self, law_log& log) {
    ballast_test::batch_memory memory{self, log, 1000, 1000};
    auto const batch = ballast_test::transport_law::single_message(1, 500);
    auto const view = memory.view(batch);
    // Rank 0 sends nothing. At first it is at work on other things and gives signs, then it hangs.
    for (bool const hangs : {false, true}) {
      ballast_test::meet(self, log);
      auto const begin = ballast::detail::now();
      if (self.rank() == 0) {
        while (ballast::detail::now() < begin + 300 * millisecond) {
          if (!hangs) { self.control.give_sign(); }
          ballast_test::sleep_for(millisecond);
        }
      } else if (self.rank() == 1) {
        log.expect_ok(self.transport.start({}, view.receives), "start");
        while (ballast::detail::now() < begin + 200 * millisecond) {  // an engine that has its own clock
          static_cast<void>(self.transport.poll());
          ballast_test::sleep_for(millisecond);
        }
        auto const result = self.transport.wait(0);
        log.expect_failure(result, {errc::deadline_exceeded}, "message of rank 0", "wait");
        log.expect(result.rank() == 0, "rank ", result.rank(), " is blamed");
        auto const at = result.message().find("rank 0 has given no sign for ");
        log.expect((at != std::string::npos) == hangs, "a hang is told wrongly: ", result.message());
        if (at != std::string::npos) {
          auto const told =
              std::stoi(result.message().substr(at + std::string{"rank 0 has given no sign for "}.size()));
          log.expect(told >= 100 && told < 300, "a silence of ", told, " ms is told");
        }
      } else {
        while (ballast::detail::now() < begin + 300 * millisecond) {
          self.control.give_sign();
          ballast_test::sleep_for(millisecond);
        }
      }
    }
    ballast_test::meet(self, log);
  }));
}

TEST_CASE("a batch that needs a rank that gives up fails in milliseconds, and others go on") {
  posix_runner runner;
  ballast_test::check_complaints(runner.run(4, [](auto& self, law_log& log) {
    ballast_test::batch_memory memory{self, log, 1000, 1000};
    auto batch = ballast_test::transport_law::single_message(1, 500);  // 0 -> 1
    batch.push_back(batch.front());
    batch.back().from = 2;
    batch.back().to = 3;
    batch.back().tag = 2;
    auto const view = memory.view(batch);
    ballast_test::meet(self, log);
    if (self.rank() == 0) {
      self.control.give_up({errc::out_of_memory, "no staging"});
    } else {
      if (self.rank() == 3) { ballast_test::sleep_for(100 * millisecond); }  // after rank 0 has given up
      auto const begin = ballast::detail::now();
      log.expect_ok(self.transport.start(view.sends, view.receives), "start");
      auto const result = self.transport.wait(patience);
      log.expect(ballast::detail::now() - begin < patience / 2, "a batch in vain took long");
      if (self.rank() == 1) {
        log.expect_failure(result, {errc::transport_failed}, "rank 0 has given up", "wait");
        log.expect(result.rank() == 0, "rank ", result.rank(), " is blamed");
      } else if (result.ok()) {  // unless rank 1 was first to say that its batch had failed
        if (self.rank() == 3) { memory.expect_received({batch.back()}, "a batch that does not need rank 0"); }
      } else {
        log.expect_failure(result, {errc::transport_failed}, "rank 0", "wait");
      }
    }
    log.expect_ok(self.control.regroup(patience), "regroup");
    memory.clear();
    auto next = batch;
    next[0].tag = 3;
    next[1].tag = 4;
    auto const next_view = memory.view(next);
    log.expect_ok(self.transport.start(next_view.sends, next_view.receives), "start after the regroup");
    log.expect_ok(self.transport.wait(patience), "wait after the regroup");
    memory.expect_received(next, "the batch after the regroup");
    ballast_test::meet(self, log);
  }));
}

TEST_CASE("what a transport offers ends with it") {
  on_two_ranks({}, [](auto& self, law_log& log) {
    std::vector<std::byte> bytes(64, std::byte{1});
    std::array<ballast::segment, 1> const region{{{bytes.data(), bytes.size()}}};
    std::optional<ballast::posix::peer_copy> wires{std::in_place, self.control};
    log.expect_ok(wires->expose(region, 0), "expose");
    std::array<ballast::remote_segment, 1> const source{{{0, 0, 64}}};
    std::array<ballast::outgoing_message, 1> const sends{{{1, 0, 1, region}}};
    std::array<ballast::incoming_message, 1> const receives{{{0, 0, 1, region, source}}};
    if (self.rank() == 0) {
      log.expect_ok(wires->start(sends, {}), "start");
      wires.reset();
      std::ranges::fill(bytes, std::byte{9});
    }
    ballast_test::meet(self, log);
    if (self.rank() == 1) {
      std::ranges::fill(bytes, std::byte{2});
      log.expect_ok(wires->start({}, receives), "start");
      log.expect_failure(wires->wait(50 * millisecond), {errc::deadline_exceeded, errc::transport_failed}, "rank 0",
                         "a message of a transport that has ended");
      log.expect(std::ranges::count(bytes, std::byte{2}) == 64, "bytes were taken from a transport that has ended");
    }
    ballast_test::meet(self, log);
  });
}

TEST_CASE("a fork of a member moves no bytes and takes nothing back, and shared memory outlives it") {
  ballast_test::basic_posix_runner<ballast_test::shared_memory> runner;
  ballast_test::check_complaints(runner.run(2, [](auto& self, law_log& log) {
    std::optional<ballast::posix::peer_copy> wires{std::in_place, self.control};
    auto const bytes = std::size_t{4096};
    ballast::posix::shared_buffer own;
    own.allocate(bytes).or_throw();
    std::fill_n(own.data(), bytes, std::byte{static_cast<unsigned char>(5 + self.rank())});
    std::array<ballast::segment, 1> const region{{{own.data(), bytes}}};
    log.expect_ok(wires->expose(region, 0), "expose");
    std::vector<std::byte> target(bytes);
    std::array<ballast::segment, 1> const into{{{target.data(), bytes}}};
    std::array<ballast::remote_segment, 1> const source{{{0, 0, bytes}}};
    std::array<ballast::outgoing_message, 1> const sends{{{1, 0, 1, region}}};
    std::array<ballast::incoming_message, 1> const receives{{{0, 0, 1, into, source}}};
    ballast_test::meet(self, log);
    if (self.rank() == 0) {
      log.expect_ok(wires->start(sends, {}), "start");
      ballast_test::child_process child{[&](int report) {
        auto const say = [&](ballast::status const& result, char const* what) {
          if (result.code() != make_error_code(errc::stale_membership)) { ballast_test::write_line(report, what); }
        };
        if (wires->poll() != ballast::transfer_state::failed) { ballast_test::write_line(report, "poll"); }
        say(wires->wait(patience), "wait");
        say(wires->start(sends, {}), "start");
        say(wires->expose(region, 1), "expose");
        wires.reset();
        { auto const gone = std::move(own); }
      }};
      log.expect(child.finish(ballast::detail::now() + patience), "the child hangs");
      log.expect(child.text().empty(), "in the child: ", child.text());
      log.expect_ok(wires->wait(patience), "wait of the parent");
      log.expect(own.data()[0] == std::byte{5}, "the child's end changed the parent's memory");
    } else {
      ballast_test::sleep_for(200 * millisecond);  // until the child has ended
      log.expect_ok(wires->start({}, receives), "start");
      log.expect_ok(wires->wait(patience), "wait");
      log.expect(std::ranges::count(target, std::byte{5}) == 4096, "wrong bytes");
    }
    ballast_test::meet(self, log);
  }));
}

TEST_CASE("a shared buffer is allocated once, and not of nothing") {
  ballast::posix::shared_buffer buffer;
  CHECK(buffer.allocate(0).code() == make_error_code(errc::invalid_option));
  CHECK(buffer.allocate(~std::size_t{0}).code() == make_error_code(errc::out_of_memory));
  CHECK(buffer.allocate(100).ok());
  CHECK(buffer.allocate(100).code() == make_error_code(errc::busy));
  CHECK(buffer.size() == 100);
}

namespace {

std::vector<unsigned long> tracers;
void note_tracer(unsigned long process) { tracers.push_back(process); }

}  // namespace

TEST_CASE("only processes of the family may read a rank, as long as a transport lives, and all only if told so") {
  using ballast::posix::readers;
  on_two_ranks({.allow = ballast::posix::readers::nobody}, [](auto& self, law_log& log) {
    auto const make = [&](readers who) {
      return ballast::posix::peer_copy{self.control, {.allow = who, .set_tracer = note_tracer}};
    };
    auto const parent = static_cast<unsigned long>(::getppid());
    {
      tracers.clear();
      auto const wires = make(readers::nobody);
      log.expect(tracers.empty(), "somebody may read");
    }
    log.expect(tracers.empty(), "something was taken back");
    {
      auto const wires = make(readers::siblings);
      auto const second = make(readers::siblings);
      log.expect(tracers == std::vector{parent, parent}, "not the parent may read, but ", tracers[0]);
    }
    log.expect(tracers == std::vector{parent, parent, 0ul}, "the exception was not taken back once");
    {
      tracers.clear();
      auto const wires = make(readers::anybody);
      log.expect(tracers == std::vector{~0ul}, "not anybody may read");
    }
    log.expect(tracers == std::vector{~0ul, 0ul}, "the exception was not taken back");
    ballast_test::meet(self, log);
  });
}

TEST_CASE("ranks of different parents make no exception for readers") {
  auto const name = ballast_test::fresh_group_name();
  std::vector<ballast_test::child_process> wrappers;
  for (ballast::index_t rank = 0; rank < 2; ++rank) {
    wrappers.emplace_back([&](int report) {
      ballast_test::child_process wrapped{[&](int own) {
        ballast::posix::process_group group;
        if (!group.join(name, rank, 2, patience, {.job = 3}).ok()) { return; }
        tracers.clear();
        { ballast::posix::peer_copy const wires{group, {.set_tracer = note_tracer}}; }
        ballast_test::write_line(own, tracers.empty() ? "none" : "some");
        static_cast<void>(group.all_reduce({}, patience));
      }};
      if (wrapped.finish(ballast::detail::now() + patience)) { ballast_test::write_line(report, wrapped.text()); }
    });
  }
  for (auto& wrapper : wrappers) {
    REQUIRE(wrapper.finish(ballast::detail::now() + patience));
    CHECK(wrapper.text() == "none \n");
  }
}

namespace {

/// Nanoseconds that this process has run: what others do on the machine does not count.
ballast::nanoseconds_t processor_time() {
  std::timespec time{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<ballast::nanoseconds_t>(time.tv_sec) * 1'000'000'000 + time.tv_nsec;
}

}  // namespace

TEST_CASE("a batch of many messages takes time in proportion to them") {
  on_two_ranks({}, [](auto& self, law_log& log) {
    std::vector<std::byte> bytes(20'000);
    std::vector<std::byte> target(20'000);
    std::array<ballast::segment, 1> const region{{{bytes.data(), bytes.size()}}};
    auto const first = self.transport.next_region();
    log.expect_ok(self.transport.expose(region, first), "expose");
    auto const time_of = [&](std::size_t count) {
      std::vector<ballast::segment> locals;
      std::vector<ballast::remote_segment> remotes;
      for (std::size_t i = 0; i < count; ++i) {
        locals.push_back({(self.rank() == 0 ? bytes : target).data() + i, 1});
        remotes.push_back({first, i, 1});
      }
      std::vector<ballast::outgoing_message> sends;
      std::vector<ballast::incoming_message> receives;
      for (std::size_t i = 0; i < count; ++i) {
        auto const round = static_cast<ballast::index_t>(i);
        if (self.rank() == 0) { sends.push_back({1, round, count << 32 | i, {&locals[i], 1}}); }
        if (self.rank() == 1) { receives.push_back({0, round, count << 32 | i, {&locals[i], 1}, {&remotes[i], 1}}); }
      }
      ballast_test::meet(self, log);
      auto const begin = processor_time();
      log.expect_ok(self.transport.start(sends, receives), "start");
      log.expect_ok(self.transport.wait(patience), "wait");
      return processor_time() - begin;
    };
    auto best = [&](std::size_t count) { return std::min({time_of(count), time_of(count + 1), time_of(count + 2)}); };
    auto const few = best(2'000);
    auto const many = best(16'000);
    log.expect(many < 24 * few, "8 times the messages take ", many / 1000, " us instead of ", few / 1000);
    ballast_test::meet(self, log);
  });
}
