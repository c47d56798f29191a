// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_DETAIL_WORD_EXCHANGE_HPP
#define BALLAST_RUNTIME_DETAIL_WORD_EXCHANGE_HPP

#include <ballast/detail/text.hpp>
#include <ballast/runtime/detail/outcome.hpp>
#include <ballast/runtime/detail/planning.hpp>
#include <ballast/runtime/detail/recovery.hpp>
#include <ballast/runtime/detail/step.hpp>
#include <ballast/runtime/detail/words.hpp>
#include <ballast/runtime/rebalancer_state.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

BALLAST_BEGIN_NAMESPACE
namespace detail {

template <class Core>
[[nodiscard]] step_word word_of(Core const& core) noexcept {
  auto const committed = core.books.committed();
  if (core.is_recording() || core.is_planning() || (core.is_moving() && !core.options.asynchronous)) {
    return step_word::recording(committed, core.waited);
  }
  auto const& why = core.is_moving() ? core.mover.failure() : core.failure;
  if (!core.is_moving() || !why.ok()) { return step_word::failed(committed, failure_cause::of(why, core.rank())); }
  return step_word::moving(committed, core.mover.arrived());
}

/// `rebalancer::outgoing`.
template <class Core>
[[nodiscard]] std::uint64_t tell_word(Core& core) noexcept {
  core.told = {true, detail::word_of(core)};
  // From here on the others may commit what has arrived here.
  if (core.told.word.stands() == standing::ready) { core.mover.note_told(); }
  return core.told.word.bits();
}

/// They are of this exchange: as many as there are ranks, and this rank's own among them.
template <class Core>
[[nodiscard]] status check_words(Core const& core, std::span<std::uint64_t const> words) {
  auto const num_ranks = core.books.where().num_ranks();
  if (words.size() != static_cast<std::size_t>(num_ranks)) {
    return {errc::invalid_option,
            concat("incoming: ", words.size(), " words, must be one for each of ", num_ranks, " ranks")};
  }
  if (!core.told.open) { return {errc::invalid_option, "incoming: outgoing() was not called since the last words"}; }
  auto const own = words[static_cast<std::size_t>(core.rank())];
  if (own != core.told.word.bits()) {
    return {errc::invalid_option,
            concat("incoming: the word of rank ", core.rank(), " is ", own, ", it told ", core.told.word.bits(),
                   ": these are not the words of this exchange"),
            core.rank()};
  }
  return {};
}

/// Another rank has given its moves up. The one to name is where the trouble began.
template <class Core>
[[nodiscard]] status fail_with(Core& core, exchanged_words const& words) {
  auto const other = words.failed_rank();
  if (other < 0) { return {}; }
  auto const origin = words.origin(other);
  auto const why = make_error_code(words.of(other).cause().why);
  auto const because = origin == other ? std::string{} : concat(" because of rank ", origin);
  return core.fail({why, concat("rank ", other, " gave its moves up", because, ": ", why.message()), origin});
}
/// This rank has given its moves up. Whom it blames may itself have failed because of another.
template <class Core>
[[nodiscard]] status fail_by_own(Core& core, exchanged_words const& words) {
  auto const why = core.mover.failure();
  auto const other = why.rank();
  auto const origin = words.origin(other);
  if (other == core.rank() || origin == other) { return core.fail(why); }
  auto const cause = make_error_code(words.of(other).cause().why);
  return core.fail(
      {cause, concat(why.message(), "; rank ", other, " gave its moves up because of rank ", origin), origin});
}

/// After a group was committed, or not.
template <class Core>
[[nodiscard]] status go_on(Core& core, outcome const& committed) {
  if (!committed.ok()) { return core.conclude(committed); }
  if (!core.mover.ends_after_group()) { return detail::send_next(core); }
  core.end_cycle();
  return {};
}

/// Another rank has committed a group that this one has not: do so too, if it is here.
template <class Core>
[[nodiscard]] status catch_up(Core& core, exchanged_words const& words, index_t ahead) {
  auto const its_word = words.of(ahead);
  auto const committed = core.books.committed();
  if (!core.mover.arrived() || its_word.committed() != committed + 1) {
    return core.lose({errc::undecided,
                      concat("rank ", ahead, " has committed ", its_word.committed(), " groups, rank ", core.rank(),
                             " only ", committed),
                      ahead});
  }
  if (auto result = detail::go_on(core, core.mover.commit_group()); !result.ok()) { return result; }
  // The others may have ended the cycle earlier: plan again when they do. A rank that records while this one still
  // moves was disabled alone, and the next words end the cycle here too.
  if (its_word.stands() == standing::recording) { core.waited = its_word.waited(); }
  return detail::fail_with(core, words);
}

template <class Core>
[[nodiscard]] status take_words_moving(Core& core, exchanged_words const& words, step_word told) {
  auto& mover = core.mover;
  auto const committed = core.books.committed();
  // A rank that is ahead has heard from everybody, this one too, that the group is here.
  if (auto const ahead = words.rank_ahead(committed); ahead >= 0) { return detail::catch_up(core, words, ahead); }
  if (words.all_ready(committed)) { return detail::go_on(core, mover.commit_arrived()); }
  // Nobody commits on these words.
  if (told.stands() == standing::ready) { mover.note_answered(); }
  if (!mover.failure().ok()) { return detail::fail_by_own(core, words); }
  if (auto result = detail::fail_with(core, words); !result.ok()) { return result; }
  if (auto const idle = words.idle_rank(committed); idle >= 0 && !mover.ends_after_group()) {
    return core.fail({errc::disagreement, concat("rank ", idle, " does not move, rank ", core.rank(), " does"), idle});
  }
  if (mover.ends_after_group()) { core.stop_moving(); }
  return {};
}

template <class Core>
[[nodiscard]] status take_words(Core& core, std::span<std::uint64_t const> words) {
  if (auto result = core.refuse_unless_started("incoming"); !result.ok()) { return result; }
  if (auto result = detail::check_words(core, words); !result.ok()) { return result; }
  auto const told = std::exchange(core.told, {}).word;
  exchanged_words const all{words, core.books.where(), core.rank()};
  core.some_moved = all.any_moves();
  if (core.state == rebalancer_state::cohort_lost) { return detail::settle_by(core, all); }
  if (core.state == rebalancer_state::failed) { return core.failure; }
  // Words that were told before this rank began to move say nothing of that: the exchange may overlap the call.
  bool const of_this_cycle = told.stands() != standing::recording;
  if (core.options.asynchronous && core.is_moving() && of_this_cycle) {
    return detail::take_words_moving(core, all, told);
  }
  return detail::fail_with(core, all);
}

/// `rebalancer::incoming`.
template <class Core>
[[nodiscard]] status hear_words(Core& core, std::span<std::uint64_t const> words) {
  bool const moved = core.is_moving();
  auto result = detail::take_words(core, words);
  if (moved) { detail::prepare_if_due(core); }
  return result;
}

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
