// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_DETAIL_BALANCED_LEVEL_SEARCH_HPP
#define BALLAST_POLICIES_DETAIL_BALANCED_LEVEL_SEARCH_HPP

#include <ballast/contract.hpp>
#include <ballast/policies/detail/balanced/level_model.hpp>
#include <ballast/policies/detail/balanced/level_relaxation.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Decides a `level_model`: finds counts, proves that there are none, or gives up.
///
/// The relaxation's bound comes first. Options whose reduced cost exceeds the slack that it leaves are out. A few dives
/// look for counts; then branch and bound settles the experts that the relaxation leaves undecided.
class level_search {
public:
  enum class answer { yes, no, unknown };
  enum class effort { quick, full };  ///< bound and dives, or branch and bound as well

  /// Another layer follows.
  void reset() noexcept { relaxation_.forget_prices(); }

  /// @param work  in/out: units of work.
  [[nodiscard]] answer run(level_model const& model, effort how, std::int64_t& work) {
    model_ = &model;
    relaxation_.open(model);
    auto const bound = relaxation_.bound_root(work);
    if (bound > relaxation_.budget() || !close_experts(relaxation_.budget() - bound)) { return answer::no; }
    // Few nodes find most solutions that exist; branch and bound then has the harder task of a proof.
    if (dive_from_relaxation(work) || dive_from_bases(work)) { return answer::yes; }
    if (nodes_left_ > 0) { return answer::no; }
    return how == effort::full ? branch_and_bound(work) : answer::unknown;
  }

  /// `[E]` copies of each expert after a yes; spares that are left are not handed out yet.
  [[nodiscard]] std::span<index_t const> counts() const noexcept { return counts_; }

private:
  using price_t = level_relaxation::price_t;
  using program = level_relaxation::program;
  using column = level_relaxation::column;
  static constexpr price_t one = level_relaxation::one;
  static constexpr std::int64_t num_dive_nodes = 40;
  static constexpr std::int64_t num_branch_nodes = 400;
  static constexpr std::size_t max_branch_columns = 1000;
  static constexpr std::size_t max_moves = 512;
  static constexpr covering_lp::fixed sure = covering_lp::one * 7 / 8;  ///< values above count as chosen

  /// An expert whose count the bound leaves open.
  struct open_expert {
    std::size_t expert;
    std::size_t chosen;  ///< the option that it has now
    price_t reduced;     ///< reduced cost that it adds to every solution below this node
    bool decided;
  };
  /// A choice that a dive may make: an option for an open expert.
  struct candidate {
    price_t rank;  ///< reduced cost, and a little for each spare
    std::size_t index;
    std::size_t option;
  };
  /// What a dive changes.
  struct choices {
    index_t used;               ///< spares taken
    std::vector<index_t> need;  ///< [levels + 1]
    std::vector<open_expert> open;
  };

  /// Drop the options that no solution can hold. Every expert's first that remains is its base. False when the bases
  /// alone take too many spares.
  [[nodiscard]] bool close_experts(price_t slack) {
    slack_ = slack;
    reduced_.assign(model_->options().size(), 0);
    now_.open.clear();
    for (std::size_t e = 0; e < model_->num_experts(); ++e) {
      auto const cheapest = relaxation_.cheapest_of(e);
      auto const last = model_->last_option(e);
      std::size_t num_kept = 0;
      auto base = last;
      for (auto i = relaxation_.base(e); i < last; ++i) {
        reduced_[i] = relaxation_.priced(i) - cheapest;
        relaxation_.set_banned(i, reduced_[i] > slack_);
        if (reduced_[i] > slack_) { continue; }
        if (num_kept == 0) { base = i; }
        ++num_kept;
      }
      relaxation_.set_base(e, base);
      if (num_kept > 1) { now_.open.push_back({e, base, 0, false}); }
    }
    list_moves();
    relaxation_.measure_bases();
    now_.used = relaxation_.used();
    now_.need.assign(relaxation_.need().begin(), relaxation_.need().end());
    return now_.used <= model_->num_spares();
  }

  /// Everything that a dive may choose; only the cheapest where there is a lot.
  void list_moves() {
    moves_.clear();
    for (std::size_t index = 0; index < now_.open.size(); ++index) {
      auto const& o = now_.open[index];
      for (auto i = o.chosen + 1; i < model_->last_option(o.expert); ++i) {
        if (!relaxation_.is_banned(i)) {
          moves_.push_back({reduced_[i] + model_->options()[i].extra * (one / 32), index, i});
        }
      }
    }
    all_moves_ = moves_.size() <= max_moves;
    if (all_moves_) { return; }
    std::nth_element(moves_.begin(), moves_.begin() + max_moves, moves_.end(), is_cheaper);
    moves_.resize(max_moves);
  }
  [[nodiscard]] static bool is_cheaper(candidate const& a, candidate const& b) noexcept {
    return a.rank != b.rank ? a.rank < b.rank : a.option < b.option;
  }

  // ---- dives ----

  /// Take what the relaxation is sure of and dive from there.
  [[nodiscard]] bool dive_from_relaxation(std::int64_t& work) {
    before_ = now_;
    price_t spent = 0;
    auto const& columns = relaxation_.columns();
    for (std::size_t j = 0; j < columns.size(); ++j) {
      auto const option = columns[j].option;
      if (relaxation_.root().lp.value(j + 1) < sure || relaxation_.is_banned(option)) { continue; }
      auto const index = index_of(columns[j].expert);
      if (index == now_.open.size() || now_.open[index].chosen >= option || spent + reduced_[option] > slack_) {
        continue;
      }
      choose(index, option);
      spent += reduced_[option];
    }
    if (dive_counted(spent, work)) { return true; }
    now_ = before_;
    return false;
  }
  [[nodiscard]] bool dive_from_bases(std::int64_t& work) { return dive_counted(0, work); }
  [[nodiscard]] bool dive_counted(price_t spent, std::int64_t& work) {
    nodes_left_ = num_dive_nodes;
    bool const found = dive(spent);
    work -= (num_dive_nodes - nodes_left_) * static_cast<std::int64_t>(4 * moves_.size() + 2 * model_->num_levels());
    if (!all_moves_ && nodes_left_ > 0) { nodes_left_ = 0; }
    return found;
  }

  /// Look for a solution that extends the choices made, cheapest first. A no with nodes left is a proof.
  /// @param spent  reduced cost that all of them have.
  [[nodiscard]] bool dive(price_t spent) {
    if (--nodes_left_ <= 0 || now_.used > model_->num_spares()) { return false; }
    auto const level = first_short_level();
    if (level == model_->num_levels()) {
      keep_counts();
      return true;
    }
    auto const first = candidates_.size();
    list_candidates(level, spent);
    auto const num_listed = candidates_.size() - first;
    auto const last = first + sort_candidates(first);
    bool found = false;
    auto tried = first;
    while (tried < last && nodes_left_ > 0 && spent <= slack_) {
      auto const next = candidates_[tried++];
      found = try_candidate(next, spent);
      if (found) { break; }
      // Every solution with this choice has been seen: the next ones do without, which may cost the expert more.
      spent += rule_out(next, true);
    }
    if (tried == last && last - first < num_listed && spent <= slack_) { nodes_left_ = 0; }
    for (; tried > first && !found; --tried) { rule_out(candidates_[tried - 1], false); }
    candidates_.resize(first);
    return found;
  }
  [[nodiscard]] bool try_candidate(candidate const& next, price_t spent) {
    auto const before = now_.open[next.index];
    auto const with = spent + reduced_[next.option] - before.reduced;
    if (with > slack_) { return false; }
    choose(next.index, next.option);
    if (dive(with)) { return true; }
    choose(next.index, before.chosen);
    now_.open[next.index] = before;
    return false;
  }
  /// @return what the expert's options cost more.
  price_t rule_out(candidate const& c, bool out) noexcept {
    relaxation_.set_banned(c.option, out);
    auto& o = now_.open[c.index];
    auto const before = o.reduced;
    o.reduced = least_reduced(o);
    return o.reduced - before;
  }
  /// A level is short that all spares left could not satisfy, so a solution below holds a further choice that relieves
  /// this level by more than the spares it takes.
  void list_candidates(std::size_t level, price_t spent) {
    for (auto const& move : moves_) {
      auto const& o = now_.open[move.index];
      if (o.decided || relaxation_.is_banned(move.option) || spent + reduced_[move.option] - o.reduced > slack_) {
        continue;
      }
      auto const extra = model_->options()[move.option].extra - model_->options()[o.chosen].extra;
      if (now_.used + extra <= model_->num_spares() && helps(o.chosen, move.option, level)) {
        candidates_.push_back({move.rank - o.reduced, move.index, move.option});
      }
    }
  }
  /// Each try takes a node, so no more are put in order than there are nodes. @return how many.
  [[nodiscard]] std::size_t sort_candidates(std::size_t first) {
    auto const begin = candidates_.begin() + static_cast<std::ptrdiff_t>(first);
    auto const count = std::min(candidates_.size() - first, static_cast<std::size_t>(nodes_left_));
    std::partial_sort(begin, begin + static_cast<std::ptrdiff_t>(count), candidates_.end(), is_cheaper);
    return count;
  }
  [[nodiscard]] price_t least_reduced(open_expert const& o) const noexcept {
    auto least = reduced_[o.chosen];
    for (auto i = o.chosen; i < model_->last_option(o.expert) && !o.decided; ++i) {
      if (!relaxation_.is_banned(i)) { least = std::min(least, reduced_[i]); }
    }
    return least;
  }
  [[nodiscard]] std::size_t first_short_level() const noexcept {
    auto const spare = model_->num_spares() - now_.used;
    std::size_t level = 0;
    while (level < model_->num_levels() && now_.need[level] <= (model_->is_served(level) ? spare : 0)) { ++level; }
    return level;
  }
  [[nodiscard]] bool helps(std::size_t from, std::size_t to, std::size_t level) const noexcept {
    auto const paid = model_->is_served(level) ? model_->options()[to].extra - model_->options()[from].extra : 0;
    return model_->need(from, level) - model_->need(to, level) > paid;
  }
  [[nodiscard]] std::size_t index_of(std::size_t expert) const noexcept {
    auto const found = std::lower_bound(now_.open.begin(), now_.open.end(), expert,
                                        [](open_expert const& o, std::size_t wanted) { return o.expert < wanted; });
    return found != now_.open.end() && found->expert == expert ? static_cast<std::size_t>(found - now_.open.begin())
                                                               : now_.open.size();
  }
  void choose(std::size_t index, std::size_t option) noexcept {
    auto& o = now_.open[index];
    shift(o.chosen, -1);
    shift(option, +1);
    o.chosen = option;
    o.reduced = reduced_[option];
    o.decided = true;
  }
  void shift(std::size_t option, index_t sign) noexcept {
    auto const& o = model_->options()[option];
    now_.used += sign * o.extra;
    for (auto i = static_cast<std::size_t>(o.position); i < model_->num_levels(); ++i) {
      now_.need[i] += sign * o.weight;
    }
  }
  void keep_counts() {
    counts_.resize(model_->num_experts());
    for (std::size_t e = 0; e < counts_.size(); ++e) { counts_[e] = model_->options()[relaxation_.base(e)].count; }
    for (auto const& o : now_.open) { counts_[o.expert] = model_->options()[o.chosen].count; }
  }

  // ---- branch and bound ----

  [[nodiscard]] answer branch_and_bound(std::int64_t& work) {
    columns_.clear();
    for (auto const& o : now_.open) {
      for (auto i = o.chosen + 1; i < model_->last_option(o.expert); ++i) {
        if (!relaxation_.is_banned(i)) { columns_.push_back({o.expert, i}); }
      }
    }
    if (columns_.size() > max_branch_columns) { return answer::unknown; }
    if (nodes_.empty()) { nodes_.resize(1); }
    relaxation_.restart(nodes_[0], columns_);
    relaxation_.list_tight_levels();
    nodes_left_ = num_branch_nodes;
    banned_.clear();
    return branch(0, work);
  }

  [[nodiscard]] answer branch(std::size_t depth, std::int64_t& work) {
    if (--nodes_left_ < 0 || work <= 0) { return answer::unknown; }
    relaxation_.solve(nodes_[depth], work);
    work -= static_cast<std::int64_t>(columns_.size() * nodes_[depth].rows.size() + model_->num_experts());
    if (relaxation_.bound(nodes_[depth]) > relaxation_.budget() || relaxation_.cannot_be_covered()) {
      return answer::no;
    }
    auto const split = most_fractional(nodes_[depth].lp);
    if (split == columns_.size()) { return take_solution(nodes_[depth].lp) ? answer::yes : answer::unknown; }

    // Settle the expert: each of its options in turn, and last its base.
    auto const expert = columns_[split].expert;
    bool all_refuted = true;
    if (nodes_.size() <= depth + 1) { nodes_.resize(depth + 2); }
    for (auto option = model_->last_option(expert); option-- > relaxation_.base(expert);) {
      if (relaxation_.is_banned(option)) { continue; }
      auto const mark = banned_.size();
      nodes_[depth + 1] = nodes_[depth];
      relaxation_.settle(nodes_[depth + 1], expert, option, banned_, work);
      auto const result = branch(depth + 1, work);
      for (; banned_.size() > mark; banned_.pop_back()) { relaxation_.set_banned(banned_.back(), false); }
      if (result == answer::yes) { return result; }
      all_refuted = all_refuted && result == answer::no;
    }
    return all_refuted ? answer::no : answer::unknown;
  }
  [[nodiscard]] std::size_t most_fractional(covering_lp const& lp) const noexcept {
    auto best = columns_.size();
    auto most = covering_lp::one / 64;
    for (std::size_t j = 0; j < columns_.size(); ++j) {
      auto const value = lp.value(j + 1);
      auto const fraction = std::min(value, covering_lp::one - value);
      if (fraction > most) {
        most = fraction;
        best = j;
      }
    }
    return best;
  }
  /// Round an integral program and check it exactly.
  [[nodiscard]] bool take_solution(covering_lp const& lp) {
    before_ = now_;
    for (std::size_t j = 0; j < columns_.size(); ++j) {
      if (lp.value(j + 1) >= covering_lp::one / 2) { choose(index_of(columns_[j].expert), columns_[j].option); }
    }
    bool const holds = now_.used <= model_->num_spares() && first_short_level() == model_->num_levels();
    if (holds) { keep_counts(); }
    now_ = before_;
    return holds;
  }

  level_model const* model_ = nullptr;
  level_relaxation relaxation_;
  price_t slack_ = 0;             // reduced cost that a solution may have
  std::vector<price_t> reduced_;  // [options]
  choices now_{};
  choices before_{};
  std::vector<candidate> moves_;
  bool all_moves_ = true;
  std::vector<candidate> candidates_;
  std::vector<column> columns_;  // undecided options
  std::vector<program> nodes_;   // by depth
  std::vector<std::size_t> banned_;
  std::int64_t nodes_left_ = 0;
  std::vector<index_t> counts_;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
