// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// g++ alone: clang says no more than the first of several static assertions in a class.
// Each part has optional members, but for a const, a noexcept, a type: it must not be taken for a part without them.
// expect 1: Transport has a member turns.*shared_transport
// expect 1: Transport has a member expose.*peer_copier
// expect 1: Transport has a member receive_time.*receive_timer
// expect 1: Transport has a member moves_in_poll.*waiting_transport
// expect 1: Transport has a member may_write.*late_writer
// expect 1: Transport has a member warm_up.*warming_part
// expect 1: Transport has a member for_each_option.*names_options
// expect 1: Transport has a member needs_repair.*repairable_transport
// expect 2: Recorder has a member prepare_history.*preparing_recorder
// expect 2: Recorder has a member spans.*pass_telling
// expect 2: Recorder has a member place.*bucket_placing
// expect 2: Recorder has a member fade.*load_fading
// expect 2: Recorder has a member warm_up.*warming_part
// expect 2: Recorder has a member set_timeout.*bounded_part
// expect 2: Recorder has a member for_each_option.*names_options
// expect 3: Policy has a member validate.*placement_policy
// expect 3: Policy has a member follows_loads.*placement_policy
// expect 3: Policy has a member for_each_option.*names_options
// expect 3: Policy has a member interchangeable.*placement_policy
// expect 3: Policy has a member choose_layers.*layerwise_policy
// expect 3: Policy has a member plan_layers.*layerwise_policy
// expect 3: Policy has a member make_layer_planner.*divisible_policy
// expect 4: Schedule has a member step_bytes.*limits_step_bytes
// expect 4: Schedule has a member for_each_option.*names_options
// expect 5: Store has a member connect.*connecting_store
// expect 5: Store has a member publish.*publishing_store
// expect 5: Store has a member commit_tables.*joint_tables_store
// expect 5: Store has a member set_topology.*topology_following_store
// expect 5: Store has a member times_commits or take_commit_time.*commit_timer
// expect 5: Store has a member balanced_batches.*batch_counting_store
// expect 5: Store has a member warm_up.*warming_part
// expect 5: Store has a member set_timeout.*bounded_part
// expect 6: Control has a member regroup.*regrouping_plane
// expect 6: Control has a member vote_no.*explaining_plane
// expect 6: Control has a member is_expelled.*expelling_plane
// expect 7: Transport has a member may_write.*late_writer
// expect 8: make_rebalancer: Cohort has a member wires
#include <ballast/load/pass_timeline.hpp>
#include <ballast/load/window_recorder.hpp>
#include <ballast/runtime/host_store.hpp>
#include <ballast/runtime/rebalancer.hpp>
#include <ballast/schedule/schedules.hpp>
#include <ballast/transport/by_link.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>

#ifndef BALLAST_EXPECT_FAILURE
  #define BALLAST_EXPECT_FAILURE 0
#endif

using ballast::index_t;
using ballast::nanoseconds_t;
using ballast::status;
using ballast::transfer_turns;

struct transport {
  [[nodiscard]] index_t rank() const noexcept { return 0; }
  [[nodiscard]] index_t num_ranks() const noexcept { return 1; }
  [[nodiscard]] status start(std::span<ballast::outgoing_message const>, std::span<ballast::incoming_message const>) {
    return {};
  }
  [[nodiscard]] ballast::transfer_state poll() { return {}; }
  [[nodiscard]] status wait(nanoseconds_t) { return {}; }
#if BALLAST_EXPECT_FAILURE == 1
  [[nodiscard]] transfer_turns& turns();
  void expose(std::span<ballast::segment const>, std::uint32_t);
  [[nodiscard]] nanoseconds_t receive_time() noexcept;
  [[nodiscard]] bool moves_in_poll() const;
  [[nodiscard]] int may_write(std::span<ballast::incoming_message const>);
  void warm_up();
  template <class Visit>
  void for_each_option(Visit visit);
  [[nodiscard]] bool needs_repair() const noexcept;
#endif
};

struct recorder {
  static constexpr bool clears_on_dump = true;
  [[nodiscard]] status record_top_k(index_t, std::span<index_t const>);
  [[nodiscard]] status record_logical(index_t, std::span<ballast::load_t const>);
  [[nodiscard]] status record_physical(index_t, std::span<ballast::load_t const>, std::span<index_t const>,
                                       ballast::topology const&);
  [[nodiscard]] status record_local(index_t, std::span<ballast::load_t const>, index_t, std::span<index_t const>,
                                    ballast::topology const&);
  [[nodiscard]] status record_local_prefix_sums(index_t, std::span<ballast::load_t const>, index_t,
                                                std::span<index_t const>, ballast::topology const&);
  void end_pass(bool);
  [[nodiscard]] index_t num_buckets() const;
  [[nodiscard]] index_t num_layers() const;
  [[nodiscard]] index_t num_logical() const;
  [[nodiscard]] status history(std::span<ballast::load_t>) const;
  void clear();
  void describe(ballast::digest&) const;
#if BALLAST_EXPECT_FAILURE == 2
  [[nodiscard]] status prepare_history();
  void spans(std::span<ballast::pass_span>);
  void place(ballast::pass_timeline const&, std::span<index_t>) const;
  [[nodiscard]] status fade(ballast::pass_timeline const&);
  void warm_up();
  void set_timeout(nanoseconds_t);
  template <class Visit>
  void for_each_option(Visit visit);
#endif
};

struct policy {
  [[nodiscard]] status plan(ballast::load_history_view, ballast::placement const&, ballast::topology const&,
                            ballast::placement&) const;
  void describe(ballast::digest&) const;
#if BALLAST_EXPECT_FAILURE == 3
  [[nodiscard]] bool validate() const;
  bool follows_loads = true;
  void for_each_option() const;
  [[nodiscard]] bool interchangeable() const;
  [[nodiscard]] status choose_layers(ballast::load_history_view, ballast::placement const&, ballast::topology const&,
                                     ballast::placement&) const;
  [[nodiscard]] status plan_layers(ballast::load_history_view, ballast::placement const&, ballast::topology const&,
                                   ballast::placement&) const;
  [[nodiscard]] ballast::layer_planner* make_layer_planner(ballast::topology const&, index_t) const;
#endif
};

struct schedule {
  [[nodiscard]] status validate() const;
  void for_each_chunk(std::span<ballast::layer_work const>, void (*)(std::span<index_t const>)) const;
  void describe(ballast::digest&) const;
#if BALLAST_EXPECT_FAILURE == 4
  [[nodiscard]] int step_bytes() const;
  template <class Visit>
  void for_each_option(Visit visit);
#endif
};

struct store : ballast::host_store {
  using host_store::host_store;
#if BALLAST_EXPECT_FAILURE == 5
  [[nodiscard]] status connect(ballast::in_process_endpoint const&);
  [[nodiscard]] status publish(index_t, ballast::placement const&);
  [[nodiscard]] status commit_tables(std::span<index_t const>, ballast::placement const&);
  [[nodiscard]] bool set_topology(ballast::topology const&);
  [[nodiscard]] nanoseconds_t take_commit_time();
  [[nodiscard]] ballast::batch_counters balanced_batches() const;
  void warm_up();
  void set_timeout(nanoseconds_t);
#endif
};

struct plane {
  [[nodiscard]] index_t rank() const noexcept { return 0; }
  [[nodiscard]] index_t num_ranks() const noexcept { return 1; }
  [[nodiscard]] std::uint64_t membership() const;
  [[nodiscard]] status all_reduce(std::span<std::int64_t>, nanoseconds_t);
  [[nodiscard]] status all_gather(std::span<std::uint64_t const>, std::span<std::uint64_t>, nanoseconds_t);
  [[nodiscard]] status broadcast(std::span<std::byte>, index_t, nanoseconds_t);
  [[nodiscard]] ballast::vote_result vote(bool, nanoseconds_t);
  [[nodiscard]] ballast::vote_result recall(nanoseconds_t);
#if BALLAST_EXPECT_FAILURE == 6
  [[nodiscard]] status regroup();
  [[nodiscard]] status is_expelled(index_t) const;
  [[nodiscard]] ballast::vote_result vote_no(nanoseconds_t);
#endif
};

using held = ballast::rebalancer<recorder, policy, schedule, transport, store, plane>;
static_assert(sizeof(held) > 0);

#if BALLAST_EXPECT_FAILURE == 7
struct late_link : transport {
  [[nodiscard]] bool may_write(std::span<ballast::segment const>);
};
#else
using late_link = transport;
#endif
static_assert(sizeof(ballast::by_link<transport, late_link, transport>) > 0);

struct cohort {
  [[nodiscard]] transport& wires();
#if BALLAST_EXPECT_FAILURE != 8
  [[nodiscard]] plane& control();
#endif
};
inline auto hold(ballast::topology const& where, ballast::placement const& initial,
                 ballast::rebalancing<recorder, policy, schedule> parts, store& weights, cohort& ranks) {
  return ballast::make_rebalancer(where, initial, std::move(parts), weights, ranks);
}
