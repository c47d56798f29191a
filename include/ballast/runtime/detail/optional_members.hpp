// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_DETAIL_OPTIONAL_MEMBERS_HPP
#define BALLAST_RUNTIME_DETAIL_OPTIONAL_MEMBERS_HPP

#include <ballast/control/control.hpp>
#include <ballast/detail/options.hpp>
#include <ballast/load/recorder.hpp>
#include <ballast/parts.hpp>
#include <ballast/policies/policy.hpp>
#include <ballast/runtime/batch_counters.hpp>
#include <ballast/runtime/optional_parts.hpp>
#include <ballast/runtime/store.hpp>
#include <ballast/schedule/chunk_schedule.hpp>
#include <ballast/transport/detail/optional_members.hpp>

BALLAST_BEGIN_NAMESPACE
namespace detail {

// Parts of a rebalancer with a member that is named like an optional one and is none are refused: they would be taken
// for parts without it. Members that are overloaded or templates are not seen.

template <class Recorder>
struct optional_recorder_members {
  static_assert(
      preparing_recorder<Recorder> || !requires { &Recorder::prepare_history; },
      "Recorder has a member prepare_history, but is no preparing_recorder: void prepare_history()");
  static_assert(pass_telling<Recorder> || !(
                                              requires { &Recorder::spans; } || requires { &Recorder::forgotten; }),
                "Recorder has a member spans or forgotten, but is not pass_telling: index_t num_spans() const, void "
                "spans(std::span<pass_span>) const, std::int64_t forgotten() const");
  static_assert(
      bucket_placing<Recorder> || !requires { &Recorder::place; },
      "Recorder has a member place, but is not bucket_placing: index_t place(pass_timeline const&, "
      "std::span<index_t>) const");
  static_assert(
      load_fading<Recorder> || !requires { &Recorder::fade; },
      "Recorder has a member fade, but is not load_fading: void fade(pass_timeline const&)");
  static_assert(
      warming_part<Recorder> || !requires { &Recorder::warm_up; },
      "Recorder has a member warm_up, but is no warming_part: status warm_up()");
  static_assert(
      bounded_part<Recorder> || !requires { &Recorder::set_timeout; },
      "Recorder has a member set_timeout, but is no bounded_part: void set_timeout(nanoseconds_t) noexcept");
  static_assert(!misnames_options<Recorder>,
                "Recorder has a member for_each_option, but does not names_options: void for_each_option(Visit) "
                "const");
  static constexpr bool fit = true;
};

template <class Schedule>
struct optional_schedule_members {
  static_assert(
      limits_step_bytes<Schedule> || !requires { &Schedule::step_bytes; },
      "Schedule has a member step_bytes, but does not limits_step_bytes: std::int64_t step_bytes() const");
  static_assert(!misnames_options<Schedule>,
                "Schedule has a member for_each_option, but does not names_options: void for_each_option(Visit) "
                "const");
  static constexpr bool fit = true;
};

template <class Store, class Transport>
struct optional_store_members {
  static_assert(connecting_store<Store, Transport> ||
                    !(
                        requires { &Store::connect; } || requires { &Store::disconnect; }),
                "Store has a member connect or disconnect, but is no connecting_store of this transport: status "
                "connect(Transport const&), void disconnect(Transport&) noexcept");
  static_assert(
      publishing_store<Store> || !requires { &Store::publish; },
      "Store has a member publish, but is no publishing_store: status publish(index_t, placement const&, "
      "epoch_t)");
  static_assert(
      joint_tables_store<Store> || !requires { &Store::commit_tables; },
      "Store has a member commit_tables, but is no joint_tables_store: status commit_tables(std::span<index_t const>, "
      "placement const&, std::span<epoch_t const>)");
  static_assert(
      topology_following_store<Store> || !requires { &Store::set_topology; },
      "Store has a member set_topology, but is no topology_following_store: status or void "
      "set_topology(topology const&)");
  static_assert(commit_timer<Store> ||
                    !(
                        requires { &Store::times_commits; } || requires { &Store::take_commit_time; }),
                "Store has a member times_commits or take_commit_time, but is no commit_timer: bool times_commits() "
                "const noexcept, nanoseconds_t take_commit_time()");
  static_assert(
      batch_counting_store<Store> || !requires { &Store::balanced_batches; },
      "Store has a member balanced_batches, but is no batch_counting_store: "
      "std::optional<batch_counters> balanced_batches() const");
  static_assert(
      warming_part<Store> || !requires { &Store::warm_up; },
      "Store has a member warm_up, but is no warming_part: status warm_up()");
  static_assert(
      bounded_part<Store> || !requires { &Store::set_timeout; },
      "Store has a member set_timeout, but is no bounded_part: void set_timeout(nanoseconds_t) noexcept");
  static constexpr bool fit = true;
};

template <class Control>
struct optional_control_members {
  static_assert(regrouping_plane<Control> || !(
                                                 requires { &Control::regroup; } || requires { &Control::give_up; } ||
                                                 requires { &Control::trouble; }),
                "Control has a member regroup, give_up or trouble, but is no regrouping_plane: status "
                "regroup(nanoseconds_t), void give_up(status const&), status trouble()");
  static_assert(
      explaining_plane<Control> || !requires { &Control::vote_no; },
      "Control has a member vote_no, but is no explaining_plane: vote_result vote_no(status const&, nanoseconds_t)");
  static_assert(
      expelling_plane<Control> || !requires { &Control::is_expelled; },
      "Control has a member is_expelled, but is no expelling_plane: bool is_expelled(index_t) const");
  static constexpr bool fit = true;
};

/// All parts at once: each complains by itself.
template <class Recorder, class Policy, class Schedule, class Transport, class Store, class Control>
inline constexpr bool optional_members_fit =
    optional_recorder_members<Recorder>::fit && optional_policy_members<Policy>::fit &&
    optional_schedule_members<Schedule>::fit && optional_transport_members<Transport>::fit &&
    optional_repair_members<Transport, Control>::fit && optional_store_members<Store, Transport>::fit &&
    optional_control_members<Control>::fit;

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
