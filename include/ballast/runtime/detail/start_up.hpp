// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_DETAIL_START_UP_HPP
#define BALLAST_RUNTIME_DETAIL_START_UP_HPP

#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/parts.hpp>
#include <ballast/policies/policy.hpp>
#include <ballast/runtime/detail/fit.hpp>
#include <ballast/runtime/detail/set_up.hpp>
#include <ballast/runtime/optional_parts.hpp>
#include <ballast/status.hpp>
#include <ballast/transport/transport.hpp>
#include <ballast/types.hpp>

#include <type_traits>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Whether the parts that a rebalancer is made of fit together, as far as one rank can tell.
template <class Core>
[[nodiscard]] status check_parts(Core const& core) {
  if (auto result = core.options.validate(); !result.ok()) { return result; }
  if (core.options.relay && peer_copier<std::remove_reference_t<decltype(*core.transport)>>) {
    return {errc::invalid_option, "rebalancer: relay needs a two-sided transport, which this one is not"};
  }
  if (auto result = core.schedule.validate(); !result.ok()) { return result; }
  auto const& in_force = core.books.in_force();
  auto const& where = core.books.where();
  if (in_force.num_slots() != where.num_slots()) {
    return {errc::invalid_topology,
            concat("rebalancer: the placement has ", in_force.num_slots(), " slots, the topology ", where.num_slots())};
  }
  if (auto result = validate_policy(core.policy); !result.ok()) { return result; }
  if (core.options.moves_while_planning && may_choose_layers(core.policy)) {
    return {errc::invalid_option,
            "rebalancer: moves_while_planning, and the policy bounds what moves over all layers, so it needs them all"};
  }
  if (auto result = check_ranks(where, *core.transport, *core.store, core.ranks.control()); !result.ok()) {
    return result;
  }
  if (core.recorder.num_layers() != in_force.num_layers() || core.recorder.num_logical() != in_force.num_logical()) {
    return {errc::invalid_load, concat("rebalancer: the recorder counts ", core.recorder.num_layers(), " layers x ",
                                       core.recorder.num_logical(), " experts, the placement has ",
                                       in_force.num_layers(), " x ", in_force.num_logical())};
  }
  return {};
}

template <class Core>
[[nodiscard]] status compare_set_up(Core& core, nanoseconds_t timeout) {
  auto words = core.configuration();
  words.add("weights layout", core.layout_of_weights(), true);
  digest initial;
  core.books.in_force().describe(initial);
  words.add("initial placement", initial.value(), true);
  return words.agree(core.ranks.control(), timeout);
}

template <class Core>
[[nodiscard]] status connect_store(Core& core) {
  set_timeout(core.options.timeout, *core.store, core.recorder);
  return connect(*core.store, *core.transport);
}

template <class Core>
[[nodiscard]] status publish_tables(Core& core) {
  status result;
  auto const& in_force = core.books.in_force();
  if constexpr (publishing_store<std::remove_reference_t<decltype(*core.store)>>) {
    for (index_t layer = 0; layer < in_force.num_layers() && result.ok(); ++layer) {
      result = core.store->publish(layer, in_force, 0);
    }
  }
  return result;
}

/// `rebalancer::start`. Every rank comes to the same end: one that cannot go on says so to the others before each step
/// that they take together.
template <class Core>
[[nodiscard]] status start(Core& core, nanoseconds_t timeout) {
  if (timeout <= 0) { return {errc::invalid_option, concat("start: timeout is ", timeout, " ns, must be positive")}; }
  if (core.started) { return {errc::busy, "start: the rebalancer has started already"}; }
  auto& control = core.ranks.control();
  core.share.give_back();  // of a start that ended by an exception
  auto result = core.ranks.regroup(timeout);
  // The others hear of a store that does not fit, if they are there.
  auto own = check_mode(core.options, *core.transport);
  if (own.ok() && !core.claim.take()) {
    own = {errc::invalid_option, "rebalancer: another rebalancer has started on this store and uses it still"};
  }
  if (own.ok() && result.ok()) { own = core.refuse_expelled(); }
  if (own.ok()) { own = check_store(*core.store, core.books.where(), core.books.in_force()); }
  if (result.ok()) { result = all_ready(control, own, "start", timeout); }
  if (!own.ok()) {
    core.claim.give_back();
    return own;
  }
  if (result.ok()) { result = detail::compare_set_up(core, timeout); }
  if (result.ok()) { result = core.share.take(control, timeout); }
  if (result.ok()) {
    core.ranks.set_next_tag(core.share.first_tag());
    core.mover.set_first_region(core.share.first_region());
    result = all_ready(control, detail::connect_store(core), "connect its store", timeout);
  }
  // Some transports do this together, and should not wait for a rank that cannot.
  if (result.ok()) {
    auto warm = warm_up(*core.transport, *core.store, core.recorder);
    result = all_ready(control, warm, "warm up", timeout);
  }
  if (result.ok() && core.options.check_replicas) {
    core.books.replicas().sum_all(true);
    result = core.books.replicas().compare(control, timeout);
  }
  if (result.ok()) {
    core.books.leave_dead_out();
    result = all_ready(control, detail::publish_tables(core), "publish its tables", timeout);
  }
  core.started = result.ok();
  if (core.started) {
    core.started_layout = core.layout_of_weights();
    core.state = rebalancer_state::recording;
    core.failure = {};
  } else {
    core.share.give_back();
    core.claim.give_back();
  }
  return result;
}

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
