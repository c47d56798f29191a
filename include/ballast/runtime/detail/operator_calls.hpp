// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_DETAIL_OPERATOR_CALLS_HPP
#define BALLAST_RUNTIME_DETAIL_OPERATOR_CALLS_HPP

#include <ballast/control/control.hpp>
#include <ballast/detail/index.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/placement/balancedness.hpp>
#include <ballast/placement/detail/dead_ranks.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/placement/validate.hpp>
#include <ballast/runtime/detail/fit.hpp>
#include <ballast/runtime/detail/outcome.hpp>
#include <ballast/runtime/detail/planning.hpp>
#include <ballast/runtime/detail/share_refresh.hpp>
#include <ballast/runtime/observer.hpp>
#include <ballast/runtime/optional_parts.hpp>
#include <ballast/runtime/rebalancer_state.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <cstddef>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

// What an operator or an engine asks for between two steps.

/// From a target that the engine gives to chunks that every rank has agreed on.
template <class Core>
[[nodiscard]] status prepare_target(Core& core, char const* call, placement const& target,
                                    std::span<index_t const> layers) {
  auto const& in_force = core.books.in_force();
  if (auto result = core.refuse_unless_recording(call); !result.ok()) { return result; }
  if (auto result = check_target(call, target, layers, in_force); !result.ok()) { return result; }
  auto const& where = core.books.where();
  core.next = in_force;
  for (auto const layer : layers) {
    core.next.copy_layer(target, layer);
    if (where.num_live_ranks() < where.num_ranks()) { keep_dead_slots(in_force, where, core.next, layer); }
  }
  if (auto result = validate_live(where, core.next); !result.ok()) {
    return {result.code(), concat(call, ": ", result.message())};
  }
  return in_force.num_layers() == 0 ? status{} : detail::prepare_moves(core);
}

/// `rebalancer::apply`.
template <class Core>
[[nodiscard]] status apply(Core& core, placement const& target, std::span<index_t const> layers) {
  if (auto result = detail::prepare_target(core, "apply", target, layers); !result.ok()) { return result; }
  while (!core.mover.at_end()) {
    if (auto ended = core.mover.move_step(); !ended.ok()) { return core.conclude(ended); }
  }
  core.end_cycle();
  return {};
}

/// `rebalancer::begin_apply`.
template <class Core>
[[nodiscard]] status begin_apply(Core& core, placement const& target, std::span<index_t const> layers) {
  if (auto result = detail::prepare_target(core, "begin_apply", target, layers); !result.ok()) { return result; }
  if (core.mover.at_end()) {
    core.end_cycle();
    return {};
  }
  core.state = rebalancer_state::moving;
  return core.options.asynchronous ? detail::send_next(core) : status{};
}

/// `rebalancer::predict`.
template <class Core>
[[nodiscard]] status predict(Core& core, prediction& out) {
  auto const& books = core.books;
  if (auto result = core.refuse_unless_recording("predict"); !result.ok()) { return result; }
  out = {};
  if (books.num_layers() == 0) { return {}; }
  if (auto result = core.refuse_expelled(); !result.ok()) { return core.fail(std::move(result)); }
  if (auto result = detail::reduce_loads(core); !result.ok()) { return core.fail(std::move(result)); }
  if (auto result = detail::plan_next(core); !result.ok()) { return result; }
  if (auto result = core.mover.plan(); !result.ok()) { return result; }
  auto const& cycle = core.mover.cycle();
  out = {balancedness(books.where(), books.in_force(), books.loads()),
         balancedness(books.where(), core.next, books.loads()),
         cycle.num_moves(),
         cycle.num_bytes(),
         static_cast<index_t>(cycle.transfers().size()),
         cycle.num_steps()};
  core.forget_cycle();
  return {};
}

/// `rebalancer::check_replicas`.
template <class Core>
[[nodiscard]] status check_all_replicas(Core& core) {
  if (auto result = core.refuse_unless_recording("check_replicas"); !result.ok()) { return result; }
  if (auto result = core.refuse_expelled(); !result.ok()) { return core.fail(std::move(result)); }
  core.books.replicas().sum_all(false);
  auto result = core.books.replicas().compare(core.ranks.control(), core.options.timeout);
  return result.ok() || result.code() == errc::corrupted ? result : core.fail(std::move(result));
}

/// Where the store's tables depend on who is alive.
template <class Store>
[[nodiscard]] status tell_store([[maybe_unused]] Store& store, [[maybe_unused]] topology const& where) {
  if constexpr (topology_following_store<Store>) {
    if constexpr (std::is_void_v<decltype(store.set_topology(where))>) {
      store.set_topology(where);
    } else {
      return store.set_topology(where);
    }
  }
  return {};
}

/// All layers are published: their tables depend on who is alive.
template <class Core>
[[nodiscard]] status enter_topology(Core& core, topology const& where, placement const& in_force) {
  auto& books = core.books;
  books.open_commit();
  books.set_topology(where);
  books.replicas().forget();  // lost experts are loaded again
  core.idle_planner.reset();
  core.next = in_force;
  split_among_live(where, core.next);
  auto const layers = numbers_below(books.num_layers());
  std::size_t commits = 0;
  if (auto result = commit_tables(*core.store, layers, core.next, books, commits); !result.ok()) {
    return core.lose(std::move(result));
  }
  if (!core.next.has_shares()) { books.drop_shares(); }
  books.count_commit();
  books.measure();
  event const what{
      .kind = event_kind::commit, .step = books.step(), .layers = layers, .balancedness = books.balancedness()};
  core.events.tell(what);
  core.mover.times().add_chunk(what, commits);
  return {};
}

/// End a change of topology of which this rank has not heard how the vote on it ended. Where that fails nothing settles
/// it any more.
template <class Core>
[[nodiscard]] status settle_topology(Core& core, decision outcome) {
  auto const next = std::move(core.next_topology);
  core.undecided.clear();
  if (outcome == decision::commit) { return detail::enter_topology(core, next->where, next->in_force); }
  auto told = detail::tell_store(*core.store, core.books.where());
  return told.ok() ? told : core.lose(std::move(told));
}

/// `rebalancer::set_topology`.
template <class Core>
[[nodiscard]] status set_topology(Core& core, topology const& where, placement const& in_force) {
  if (auto result = core.refuse_unless_recording("set_topology"); !result.ok()) { return result; }
  auto const& before = core.books.where();
  auto result = check_topology(where, in_force, before, core.books.in_force().shape(), core.rank());
  digest both;
  where.describe(both);
  in_force.describe(both);
  both.add(result.code().value());
  if (auto agreed = core.agree_on("new topology", both.value()); !agreed.ok()) { return core.fail(std::move(agreed)); }
  if (!result.ok()) { return result; }
  using pair = typename Core::live_placement;
  auto next = std::make_unique<pair>(pair{where, in_force});  // before anybody may have committed
  auto const layers = numbers_below(core.books.num_layers());
  core.ranks.begin();
  auto taken = detail::tell_store(*core.store, where);
  auto vote = core.ranks.decide(taken);
  if (vote.outcome == decision::drop || !taken.ok()) {
    static_cast<void>(detail::tell_store(*core.store, before));
    return core.fail(taken.ok() ? std::move(vote.reason) : std::move(taken));
  }
  if (vote.outcome == decision::undecided) {
    core.next_topology = std::move(next);
    return core.lose(std::move(vote.reason), layers);
  }
  return detail::enter_topology(core, where, in_force);
}

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
