// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expect 1: Policy must be a placement_policy & describe
// expect 2: Policy must be a placement_policy & (plan.*return-type|same_as<(_Bool|bool))
// expect 3: Recorder must be a load_recorder & (num_buckets.*return-type|same_as<std::size_t|same_as<unsigned long)
// expect 4: Transport must be a data_transport & rank
// expect 5: Control must be a control_plane & (all_gather|membership)
// expect 6: Transport must be a data_transport & (start|rank)
// expect 7: Store must be an expert_store & staging
// expect 8: Schedule must be a chunk_schedule & for_each_chunk
// expect 9: Policy must be a placement_policy & describe
#include <ballast/ballast.hpp>

#ifndef BALLAST_EXPECT_FAILURE
  #define BALLAST_EXPECT_FAILURE 0
#endif

using ballast::index_t;
using ballast::status;

struct recorder : ballast::window_recorder {
  using window_recorder::window_recorder;
#if BALLAST_EXPECT_FAILURE == 3
  [[nodiscard]] std::size_t num_buckets() const { return 1; }
#endif
};

struct policy {
#if BALLAST_EXPECT_FAILURE == 2
  [[nodiscard]] bool plan(ballast::load_history_view, ballast::placement const&, ballast::topology const&,
                          ballast::placement&) const {
    return true;
  }
#else
  [[nodiscard]] status plan(ballast::load_history_view, ballast::placement const& current, ballast::topology const&,
                            ballast::placement& next) const {
    next = current;
    return {};
  }
#endif
#if BALLAST_EXPECT_FAILURE != 1 && BALLAST_EXPECT_FAILURE != 9
  void describe(ballast::digest& out) const { out.add("policy"); }
#endif
};

struct schedule : ballast::layers_per_chunk<> {
#if BALLAST_EXPECT_FAILURE == 8
  void for_each_chunk() const {}
#endif
};

struct transport {
#if BALLAST_EXPECT_FAILURE == 4
  [[nodiscard]] index_t rank() const { return 0; }
#else
  [[nodiscard]] index_t rank() const noexcept { return 0; }
#endif
  [[nodiscard]] index_t num_ranks() const noexcept { return 1; }
  [[nodiscard]] status start(std::span<ballast::outgoing_message const>, std::span<ballast::incoming_message const>) {
    return {};
  }
  [[nodiscard]] ballast::transfer_state poll() { return {}; }
  [[nodiscard]] status wait(ballast::nanoseconds_t) { return {}; }
};

struct control {
  [[nodiscard]] index_t rank() const noexcept { return 0; }
  [[nodiscard]] index_t num_ranks() const noexcept { return 1; }
  [[nodiscard]] std::uint64_t membership() const { return 1; }
  [[nodiscard]] status all_reduce(std::span<std::int64_t>, ballast::nanoseconds_t) { return {}; }
  [[nodiscard]] status all_gather(std::span<std::uint64_t const>, std::span<std::uint64_t>, ballast::nanoseconds_t) {
    return {};
  }
  [[nodiscard]] status broadcast(std::span<std::byte>, index_t, ballast::nanoseconds_t) { return {}; }
  [[nodiscard]] ballast::vote_result vote(bool, ballast::nanoseconds_t) { return {}; }
  [[nodiscard]] ballast::vote_result recall(ballast::nanoseconds_t) { return {}; }
};

struct store : ballast::host_store {
  using host_store::host_store;
#if BALLAST_EXPECT_FAILURE == 7
  void staging() const {}
#endif
};

status hold(ballast::topology const& where, ballast::placement const& initial, store& weights, transport& wires,
            control& group) {
  ballast::rebalancing parts{recorder{1, 1, {}}, policy{}, schedule{}};
#if BALLAST_EXPECT_FAILURE == 5
  ballast::rebalancer held{where, initial, std::move(parts), weights, wires, wires};
#elif BALLAST_EXPECT_FAILURE == 6
  ballast::rebalancer held{where, initial, std::move(parts), wires, weights, group};
#elif BALLAST_EXPECT_FAILURE == 9
  auto held = ballast::make_rebalancer(where, initial, std::move(parts), weights, wires, group);
#else
  ballast::rebalancer held{where, initial, std::move(parts), weights, wires, group};
#endif
  return held.start();
}
