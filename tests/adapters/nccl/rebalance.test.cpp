// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/cudart/ipc_peers.hpp>
#include <ballast/cudart/peer_copy.hpp>
#include <ballast/runtime/observer.hpp>
#include <ballast/transport/by_link.hpp>

#include "support/check_complaints.hpp"
#include "support/gpu.hpp"
#include "support/gpu_member.hpp"
#include "support/nccl_runner.hpp"

#include <doctest/doctest.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

using namespace ballast;
using namespace ballast_test;

namespace {

gpu_only const needs_gpu;

/// Ends its process when the ranks have agreed on a plan and the first bytes are about to move.
class dies_after_planning final : public observer {
public:
  explicit dies_after_planning(std::function<void()> die) : die_{std::move(die)} {}
  void on_event(event const& what) override {
    if (what.kind == event_kind::plan && what.step > 3) { die_(); }
  }

private:
  std::function<void()> die_;
};

}  // namespace

TEST_CASE("experts move over NCCL: every slot holds the right one after every step") {
  nccl_runner const runner{};
  for (auto const size : rank_counts({1, 2, 4, 8})) {
    CAPTURE(size);
    check_complaints(runner.run(size, [size](auto& self, law_log& log) {
      topology const where{{size, 1, 6, 0}};
      gpu_member<nccl::transport, posix::process_group> member{
          where,        spread_placement(where, 2),     self.transport,
          self.control, {self.transport.copy_stream()}, {.interval = 2}};
      member.run(10, log);
      static_cast<void>(self.control.vote(true, patience));
    }));
  }
}

TEST_CASE("peer copies inside two emulated nodes and NCCL across") {
  nccl_runner const runner{};
  for (auto const size : rank_counts({4, 8})) {
    if (size % 2 != 0) { continue; }
    CAPTURE(size);
    check_complaints(runner.run(size, [size](auto& self, law_log& log) {
      using peers = cudart::ipc_peers<posix::process_group>;
      topology const where{{size, 2, 6, 0}};
      cudart::peer_copy<peers> near{peers{self.control}};
      by_link<self_copy, cudart::peer_copy<peers>, nccl::transport> wires{where, self_copy{self.rank(), size}, near,
                                                                          self.transport};
      gpu_member<decltype(wires), posix::process_group> member{where,
                                                               spread_placement(where, 2),
                                                               wires,
                                                               self.control,
                                                               {near.copy_stream(), self.transport.copy_stream()},
                                                               {.interval = 2}};
      member.run(10, log);
      static_cast<void>(self.control.vote(true, patience));
    }));
  }
}

TEST_CASE("a rank that is killed between plan and move leaves the others whole") {
  nccl_runner const runner{};
  auto const size = rank_count(3, 3);
  check_complaints(runner.run(size, [size](auto& self, law_log& log) {
    topology const where{{size, 1, 6, 0}};
    dies_after_planning watcher{self.die};
    bool const dies = self.rank() == 2;
    nanoseconds_t const timeout = 2'000 * millisecond;
    gpu_member<nccl::transport, posix::process_group> member{where,
                                                             spread_placement(where, 2),
                                                             self.transport,
                                                             self.control,
                                                             {self.transport.copy_stream()},
                                                             {.interval = 2, .timeout = timeout},
                                                             dies ? &watcher : nullptr};
    log.expect_ok(member.moved.start(), "start");
    status result;
    nanoseconds_t taken = 0;
    for (int step = 0; step < 30 && result.ok(); ++step) {
      auto const begin = ballast::detail::now();
      result = member.moved.on_forward_pass_end();
      taken = ballast::detail::now() - begin;
    }
    log.expect(!result.ok(), "nobody noticed");
    log.expect(taken < 2 * timeout + slack, "noticed after ", taken, " ns");
    log.expect(member.moved.state() == rebalancer_state::failed, "the state is not failed");
    auto const error = member.weights.first_error(member.moved.current());
    log.expect(error.empty(), "wrong at ", error);
  }));
}
