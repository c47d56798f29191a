// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_DETAIL_RECOVERY_HPP
#define BALLAST_RUNTIME_DETAIL_RECOVERY_HPP

#include <ballast/control/control.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/runtime/detail/operator_calls.hpp>
#include <ballast/runtime/detail/words.hpp>
#include <ballast/runtime/rebalancer_state.hpp>
#include <ballast/status.hpp>
#include <ballast/transport/transport.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

// The way back from a failure.

// ---- one rank that is lost ----

/// `rebalancer::settle`.
template <class Core>
[[nodiscard]] status settle(Core& core, decision outcome) {
  bool const is_open = !core.undecided.empty() || core.next_topology != nullptr;
  if (core.state != rebalancer_state::cohort_lost || !is_open) {
    return {errc::invalid_option, "settle: no layer is undecided"};
  }
  if (outcome == decision::undecided) { return {errc::invalid_option, "settle: the outcome must be commit or drop"}; }
  auto const why = core.failure;
  if (core.next_topology != nullptr) {
    if (auto settled = detail::settle_topology(core, outcome); !settled.ok()) { return settled; }
  } else if (outcome == decision::commit) {
    auto committed = core.shares.is_undecided()
                         ? core.shares.commit(core.undecided, now(), core.books, core.mover.times(), core.events)
                         : core.mover.commit_group();
    if (!committed.ok()) { return core.conclude(committed); }
  }
  core.undecided.clear();
  core.forget_cycle();
  core.state = rebalancer_state::failed;
  core.failure = {
      why.code() == errc::cohort_lost || why.code() == errc::undecided ? make_error_code(errc::deadline_exceeded)
                                                                       : why.code(),
      concat(why.message(), "; settled: ", outcome == decision::commit ? "committed" : "dropped"), why.rank()};
  return {};
}
/// Words may tell a lost rank what the others have done.
template <class Core>
[[nodiscard]] status settle_by(Core& core, exchanged_words const& words) {
  bool const is_a_group = !core.shares.is_undecided() && core.next_topology == nullptr;
  if (core.undecided.empty() || !is_a_group) { return core.failure; }
  auto const committed = core.books.committed();
  if (words.rank_ahead(committed) >= 0 || words.all_ready(committed)) {
    if (auto result = detail::settle(core, decision::commit); !result.ok()) { return result; }
  } else if (words.everybody_stands(core.options.asynchronous)) {
    if (auto result = detail::settle(core, decision::drop); !result.ok()) { return result; }
  }
  return core.failure;
}

// ---- all ranks together ----

/// `rebalancer::resume`: meet the others, whatever each has done; agree on every number.
template <class Core>
[[nodiscard]] status resume(Core& core) {
  if (auto result = core.refuse_unless_started("resume"); !result.ok()) { return result; }
  if (core.state == rebalancer_state::cohort_lost) { return core.failure; }
  auto& books = core.books;
  auto& control = core.ranks.control();
  auto const timeout = core.options.timeout;
  bool const undecided = core.mover.is_told();
  if (!undecided) { core.forget_cycle(); }
  if (auto result = core.ranks.regroup(timeout); !result.ok()) { return core.fail(std::move(result)); }
  std::uint64_t const mine[] = {books.committed(), books.step(), core.ranks.next_tag(),
                                needs_repair<typename Core::control_type>(*core.transport) ? 1u : 0u};
  constexpr std::size_t words = std::size(mine);
  std::vector<std::uint64_t> all(words * static_cast<std::size_t>(books.where().num_ranks()));
  if (auto result = control.all_gather(mine, all, timeout); !result.ok()) { return core.fail(std::move(result)); }
  std::uint64_t most[words] = {};
  for (std::size_t i = 0; i < all.size(); ++i) { most[i % words] = std::max(most[i % words], all[i]); }
  // All live ranks are here, and none of them moves: now it is known whether one of them has committed.
  if (undecided && most[0] == books.committed() + 1) {
    if (auto ended = core.mover.commit_group(); !ended.ok()) { return core.conclude(ended); }
  }
  core.forget_cycle();
  books.follow(most[0], most[1]);
  core.ranks.set_next_tag(most[2]);
  if (most[3] != 0) {
    auto result = repair(*core.transport, control, timeout);
    if (!result.ok()) { return core.fail(std::move(result)); }
  }
  digest in_force;
  books.in_force().describe(in_force);
  if (auto result = core.agree_on("placement in force", in_force.value()); !result.ok()) {
    return core.fail(std::move(result));
  }
  core.state = rebalancer_state::recording;
  core.failure = {};
  core.told = {};
  core.some_moved = false;
  core.waited = 0;
  core.share_waited = 0;
  return {};
}

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
