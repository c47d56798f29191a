// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/cudart/ipc_peers.hpp>
#include <ballast/cudart/peer_copy.hpp>
#include <ballast/posix/process_group.hpp>
#include <ballast/runtime/observer.hpp>

#include "support/check_complaints.hpp"
#include "support/gpu.hpp"
#include "support/gpu_member.hpp"
#include "support/posix_runner.hpp"

#include <doctest/doctest.h>

#include <string>
#include <utility>
#include <vector>

using namespace ballast;
using namespace ballast_test;

namespace {

gpu_only const needs_gpu;
using peers = cudart::ipc_peers<posix::process_group>;
using transport = cudart::peer_copy<peers>;

/// Ends its process when the ranks have agreed on a plan and the first bytes are about to move.
class dies_after_planning final : public observer {
public:
  explicit dies_after_planning(process_exit exit) : exit_{exit} {}
  void on_event(event const& what) override {
    if (what.kind == event_kind::plan && what.step > 3) { exit_.die(); }
  }

private:
  process_exit exit_;
};

template <class Body>
std::vector<std::string> run(index_t num_ranks, Body body) {
  auto const name = fresh_group_name();
  return run_processes(num_ranks, [&](index_t rank, process_exit exit, law_log& log) {
    use_device_of(rank);
    posix::process_group group;
    if (!log.expect_ok(group.join(name, rank, num_ranks, patience), "join")) { return; }
    transport wires{peers{group}};
    body(group, wires, exit, log);
  });
}

}  // namespace

TEST_CASE("ranks in processes of their own: every slot holds the right expert after every step") {
  for (auto const size : rank_counts({2, 4, 8})) {
    CAPTURE(size);
    check_complaints(run(size, [&](posix::process_group& group, transport& wires, process_exit, law_log& log) {
      topology const where{{size, 1, 6, 0}};
      gpu_member<transport, posix::process_group> self{where, spread_placement(where, 2), wires,
                                                       group, {wires.copy_stream()},      {.interval = 2}};
      self.run(10, log);
      static_cast<void>(group.vote(true, patience));
    }));
  }
}

TEST_CASE("a rank that is killed between plan and move leaves the others whole") {
  auto const size = rank_count(4, 3);
  check_complaints(run(size, [size](posix::process_group& group, transport& wires, process_exit exit, law_log& log) {
    topology const where{{size, 1, 6, 0}};
    dies_after_planning watcher{exit};
    bool const dies = group.rank() == 2;
    nanoseconds_t const timeout = 2'000 * millisecond;
    gpu_member<transport, posix::process_group> self{where,
                                                     spread_placement(where, 2),
                                                     wires,
                                                     group,
                                                     {wires.copy_stream()},
                                                     {.interval = 2, .timeout = timeout},
                                                     dies ? &watcher : nullptr};
    log.expect_ok(self.moved.start(), "start");
    status result;
    nanoseconds_t taken = 0;
    for (int step = 0; step < 30 && result.ok(); ++step) {
      auto const begin = ballast::detail::now();
      result = self.moved.on_forward_pass_end();
      taken = ballast::detail::now() - begin;
    }
    log.expect(!result.ok(), "nobody noticed");
    log.expect(result.message().find("rank") != std::string::npos, "no rank is named: ", result.message());
    log.expect(taken < 2 * timeout + slack, "noticed after ", taken, " ns");
    log.expect(self.moved.state() == rebalancer_state::failed, "the state is not failed");
    auto const error = self.weights.first_error(self.moved.current());
    log.expect(error.empty(), "wrong at ", error);
  }));
}

TEST_CASE("a rank that is killed while its memory is read leaves the readers' devices usable") {
  constexpr std::size_t bytes = std::size_t{256} << 20;
  check_complaints(run(3, [](posix::process_group& group, transport& wires, process_exit exit, law_log& log) {
    gpu_memory memory;
    segment const mine{memory.allocate(bytes), bytes};
    log.expect_ok(wires.expose({&mine, 1}, 0), "expose");
    segment const target{memory.allocate(bytes), bytes};
    remote_segment const source{0, 0, bytes};
    outgoing_message const sends[] = {{0, 0, 1, {&mine, 1}}, {1, 1, 2, {&mine, 1}}};
    incoming_message const receive{
        2, group.rank(), static_cast<std::uint64_t>(group.rank()) + 1, {&target, 1}, {&source, 1}};
    if (group.rank() == 2) {
      log.expect_ok(wires.start(sends, {}), "start");
      exit.die();
    }
    log.expect_ok(wires.start({}, {&receive, 1}), "start");
    static_cast<void>(wires.wait(2'000 * millisecond));  // the bytes may have come in time or not
    std::vector<std::byte> probe(1000, std::byte{7});
    memory.write(target.data, probe);
    probe.assign(1000, std::byte{0});
    memory.read(target.data, probe);
    log.expect(probe.front() == std::byte{7} && probe.back() == std::byte{7}, "the device is unusable");
  }));
}
