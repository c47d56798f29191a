// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// The time that batches have, on a clock that the tests turn.
#define BALLAST_SIMULATED_TIME
#include <ballast/migration/transfer_plan.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/runtime/detail/layer_mover.hpp>
#include <ballast/runtime/host_store.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/transport/transport.hpp>

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace {
std::int64_t time_now = 0;  // nanoseconds
}  // namespace

extern "C" {
std::int64_t ballast_simulated_now() noexcept { return time_now; }
void ballast_simulated_sleep(std::int64_t nanoseconds) noexcept { time_now += nanoseconds; }
}

namespace {

using namespace ballast;

constexpr nanoseconds_t timeout = 800;

/// Bytes that arrive when the test says so.
class told_transport {
public:
  [[nodiscard]] index_t rank() const noexcept { return 0; }
  [[nodiscard]] index_t num_ranks() const noexcept { return 2; }
  [[nodiscard]] status start(std::span<outgoing_message const>, std::span<incoming_message const>) {
    ++batches;
    return {};
  }
  [[nodiscard]] transfer_state poll() const { return here ? transfer_state::done : transfer_state::pending; }
  [[nodiscard]] status wait(nanoseconds_t) const {
    return here ? status{} : status{errc::deadline_exceeded, "rank 1 is late", 1};
  }

  int batches = 0;
  bool here = false;
};
static_assert(data_transport<told_transport>);

/// Rank 0 of two that swap their three experts, one a batch.
class swap {
public:
  swap() : weights_(6), store_{where_, 1}, mover{where_, 0, wires, store_, {.rounds_per_batch = 1}} {
    store_.add(0, "weights", weights_.data(), 1, 1).or_throw();
    auto const from = trivial_placement({1, 6, 6});
    placement to;
    to.assign(from.shape(), std::vector<index_t>{3, 4, 5, 0, 1, 2}).or_throw();
    detail::transfer_scratch scratch;
    plan_layer_transfer(where_, from, to, 0, scratch, transfer_).or_throw();
    layer_transfer const* const layers[] = {&transfer_};
    mover.open(layers, 0).or_throw();
    mover.begin_receive(0, 3, timeout);
  }
  /// Look at this time after the first batch began.
  void look_at(nanoseconds_t time) {
    time_now = start_ + time;
    mover.poll();
  }

private:
  topology where_{{2, 1, 3, 0}};
  std::vector<std::byte> weights_;
  host_store store_;
  layer_transfer transfer_;
  nanoseconds_t start_ = time_now;

public:
  told_transport wires;
  detail::layer_mover<told_transport, host_store> mover;
};

}  // namespace

TEST_CASE("a batch ends when its time is over, if its rank looked on") {
  swap group;
  for (nanoseconds_t time = 0; time <= timeout; time += timeout / 8) {
    group.look_at(time);
    CHECK(group.mover.failure().ok());
  }
  group.look_at(timeout + 1);
  CHECK(group.mover.failure().rank() == 1);
  CHECK(group.wires.batches == 1);
}

TEST_CASE("a batch whose time passed while its rank was held up elsewhere has its time anew, once") {
  SUBCASE("and its bytes come") {
    swap group;
    group.look_at(5 * timeout);
    CHECK(group.mover.failure().ok());
    CHECK(group.mover.began_at() == time_now);
    group.wires.here = true;
    group.look_at(6 * timeout);
    CHECK(group.mover.arrived());
    CHECK(group.wires.batches == 3);
  }
  SUBCASE("or do not") {
    swap group;
    group.look_at(5 * timeout);
    group.look_at(6 * timeout);
    CHECK(group.mover.failure().ok());
    group.look_at(6 * timeout + 1);
    CHECK(group.mover.failure().code() == errc::deadline_exceeded);
  }
  SUBCASE("not twice, however long it was away") {
    swap group;
    group.look_at(5 * timeout);
    group.look_at(10 * timeout);
    CHECK_FALSE(group.mover.failure().ok());
  }
  SUBCASE("not where it was away before only") {
    swap group;
    group.look_at(timeout - timeout / 8);
    group.look_at(timeout);
    group.look_at(timeout + timeout / 8);
    CHECK_FALSE(group.mover.failure().ok());
  }
}
