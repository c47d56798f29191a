// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_PLACEMENT_DETAIL_LEVEL_SEARCH_HPP
#define BALLAST_PLACEMENT_DETAIL_LEVEL_SEARCH_HPP

#include <ballast/contract.hpp>
#include <ballast/placement/detail/covering_lp.hpp>
#include <ballast/placement/detail/level_model.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Decides a `level_model`: finds counts, proves that there are none, or gives up.
///
/// *Bound.* For any multipliers y >= 0 of the levels whose sum over the served levels is at most 1, let every expert
/// pick the option that is cheapest at these prices; no counts take fewer spares than the total. The multipliers come
/// from the linear relaxation, the total is evaluated exactly in integers: above the spares at hand it is a proof,
/// whatever the multipliers.
/// *Search.* Options whose reduced cost exceeds the slack are out. A few dives look for counts; then branch and bound
/// settles the experts that the relaxation leaves undecided.
class level_search {
public:
  enum class answer { yes, no, unknown };
  enum class effort { quick, full };  ///< bound and dives, or branch and bound as well

  /// @param work  in/out: units of work.
  [[nodiscard]] answer run(level_model const& model, effort how, std::int64_t& work) {
    model_ = &model;
    used_ = 0;
    reduced_.assign(model.options().size(), 0);
    banned_.assign(model.options().size(), 0);
    base_.resize(model.num_experts());
    for (std::size_t e = 0; e < model.num_experts(); ++e) { base_[e] = model.first_option(e); }
    if (bound_by_relaxation(work) > budget()) { return answer::no; }
    if (!close_experts()) { return answer::no; }
    // Few nodes find most solutions that exist; branch and bound then has the harder task of a proof.
    if (dive_from_relaxation(work) || dive_from_bases(work)) { return answer::yes; }
    if (nodes_left_ > 0) { return answer::no; }
    return how == effort::full ? branch_and_bound(work) : answer::unknown;
  }

  /// Forget the prices of earlier limits: another layer follows.
  void reset() noexcept { remembered_.clear(); }

  /// `[E]` copies of each expert after a yes; spares that are left are not handed out yet.
  [[nodiscard]] std::span<index_t const> counts() const noexcept { return counts_; }

private:
  using price_t = std::int64_t;
  static constexpr price_t one = price_t{1} << 20;  ///< price of a spare copy
  static constexpr std::int64_t num_dive_nodes = 40;
  static constexpr covering_lp::fixed sure = covering_lp::one * 7 / 8;
  static constexpr std::int64_t num_branch_nodes = 400;
  static constexpr std::size_t max_branch_columns = 1000;
  static constexpr index_t first_extras = 1;  ///< options with more extra copies join the relaxation when they pay
  static constexpr std::size_t many_columns = 256;
  static constexpr int max_rounds = 4;

  [[nodiscard]] price_t budget() const noexcept { return one * model_->num_spares(); }
  [[nodiscard]] static price_t to_price(covering_lp::fixed value) noexcept { return value * one / covering_lp::one; }

  // ---- relaxation ----

  /// A column of the relaxation: an option instead of its expert's base.
  struct column {
    std::size_t expert;
    std::size_t option;
  };

  /// Prices from the relaxation over all options, and the bound that they prove.
  [[nodiscard]] price_t bound_by_relaxation(std::int64_t& work) {
    list_columns();
    price_t value = 0;
    for (int round = 1;; ++round) {
      load_rows();
      solve(root_, work);
      value = bound_by_prices(root_);
      if (value > budget() || round == max_rounds || !add_paying_columns(root_.infeasible)) { break; }
    }
    remember_prices();
    return value;
  }
  /// Start from the options that nearly paid at the last limit, or from those that take few spares.
  void list_columns() {
    recall_prices();
    auto near = one / 2;
    do {
      columns_.clear();
      is_column_.assign(model_->options().size(), 0);
      for (std::size_t e = 0; e < model_->num_experts(); ++e) { list_columns_of(e, near); }
      near /= 2;
    } while (!remembered_.empty() && columns_.size() > many_columns && near > 0);
  }
  void list_columns_of(std::size_t e, price_t near) {
    auto const cheapest = cheapest_of(e);
    auto last_reach = reach_of(base_[e]);
    for (auto i = base_[e] + 1; i < model_->last_option(e); ++i) {
      // Further copies on the same stretch of priced levels are no better than spares.
      bool const pays = !remembered_.empty() ? priced(i) - cheapest < near && reach_of(i) != last_reach
                                             : model_->options()[i].extra <= first_extras;
      if (!pays) { continue; }
      add_column(e, i);
      last_reach = reach_of(i);
    }
  }
  /// Options left out that are cheaper at the present prices than any that is in, or all. False when there are none.
  [[nodiscard]] bool add_paying_columns(bool all) {
    bool added = false;
    for (std::size_t e = 0; e < model_->num_experts(); ++e) {
      auto cheapest = priced(base_[e]);
      for (auto i = base_[e] + 1; i < model_->last_option(e); ++i) {
        if (is_column_[i] != 0) { cheapest = std::min(cheapest, priced(i)); }
      }
      auto most_paying = base_[e];
      for (auto i = base_[e] + 1; i < model_->last_option(e); ++i) {
        if (is_column_[i] != 0) { continue; }
        if (all) { add_column(e, i); }
        if (priced(i) < cheapest - one / 64 && (most_paying == base_[e] || priced(i) < priced(most_paying))) {
          most_paying = i;
        }
      }
      if (most_paying != base_[e] && !all) { add_column(e, most_paying); }
      added = added || all || most_paying != base_[e];
    }
    std::sort(columns_.begin(), columns_.end(), [](column const& a, column const& b) { return a.option < b.option; });
    return added;
  }
  void add_column(std::size_t expert, std::size_t option) {
    columns_.push_back({expert, option});
    is_column_[option] = 1;
  }
  /// Prices belong to levels, most of which the next limit has as well.
  void remember_prices() {
    remembered_.clear();
    for (std::size_t i = 0; i < prices_.size(); ++i) {
      if (prices_[i] > 0) { remembered_.push_back({model_->levels()[i], prices_[i]}); }
    }
  }
  void recall_prices() {
    prices_.assign(model_->num_levels(), 0);
    std::size_t level = 0;
    for (auto const& old : remembered_) {
      while (level < prices_.size() && model_->levels()[level] > old.level) { ++level; }
      if (level < prices_.size()) { prices_[level] += old.price; }
    }
    sum_prices();
  }

  /// What the base options leave each level short of, and a relaxation without rows over `columns_`.
  void load_rows() {
    short_.assign(model_->num_levels() + 1, 0);
    for (auto const option : base_) {
      auto const& o = model_->options()[option];
      short_[static_cast<std::size_t>(o.position)] += o.weight;
    }
    for (std::size_t i = 1; i < model_->num_levels(); ++i) { short_[i] += short_[i - 1]; }
    costs_.clear();
    for (auto const& c : columns_) {
      costs_.push_back(model_->options()[c.option].extra - model_->options()[base_[c.expert]].extra);
    }
    costs_.push_back(1);  // a spare
    root_.lp.reset(costs_);
    root_.levels.clear();
  }

  /// A relaxation and what its rows are: levels, or -1.
  struct relaxation {
    covering_lp lp;
    std::vector<index_t> levels;
    bool infeasible = false;
  };

  void solve(relaxation& in, std::int64_t& work) {
    auto const limit = covering_lp::one * (model_->num_spares() - used_) + covering_lp::one / 16;
    in.infeasible = false;
    while (in.lp.objective() <= limit && work > 0) {
      auto const level = most_violated_level(in.lp);
      if (level < model_->num_levels()) {
        add_level(in, level);
      } else if (!add_crowded_expert(in)) {
        return;
      }
      work -= static_cast<std::int64_t>(costs_.size() * (in.lp.num_rows() + 1));
      if (!in.lp.solve(limit, work)) {
        in.infeasible = in.lp.objective() <= limit && work > 0;
        return;
      }
    }
  }
  [[nodiscard]] std::size_t most_violated_level(covering_lp const& lp) {
    moved_.assign(model_->num_levels() + 1, 0);
    for (std::size_t j = 0; j < columns_.size(); ++j) {
      auto const value = lp.value(j);
      if (value == 0) { continue; }
      auto const& base = model_->options()[base_[columns_[j].expert]];
      auto const& other = model_->options()[columns_[j].option];
      moved_[static_cast<std::size_t>(base.position)] -= value * base.weight;
      moved_[static_cast<std::size_t>(other.position)] += value * other.weight;
    }
    auto const spare = lp.value(columns_.size());
    auto worst = model_->num_levels();
    auto most = covering_lp::one / 16;
    covering_lp::fixed moved = 0;
    for (std::size_t i = 0; i < model_->num_levels(); ++i) {
      moved += moved_[i];
      auto const missing = short_[i] * covering_lp::one + moved - (model_->is_served(i) ? spare : 0);
      if (missing > most) {
        most = missing;
        worst = i;
      }
    }
    return worst;
  }
  void add_level(relaxation& in, std::size_t level) {
    coefficients_.clear();
    for (auto const& c : columns_) {
      coefficients_.push_back(model_->need(base_[c.expert], level) - model_->need(c.option, level));
    }
    coefficients_.push_back(model_->is_served(level) ? 1 : 0);
    in.lp.add_row(coefficients_, short_[level]);
    in.levels.push_back(static_cast<index_t>(level));
  }
  /// An expert takes one option only. False when all do.
  [[nodiscard]] bool add_crowded_expert(relaxation& in) {
    for (std::size_t j = 0; j < columns_.size();) {
      auto const expert = columns_[j].expert;
      covering_lp::fixed sum = 0;
      auto last = j;
      for (; last < columns_.size() && columns_[last].expert == expert; ++last) { sum += in.lp.value(last); }
      if (sum > covering_lp::one + covering_lp::one / 256) {
        coefficients_.assign(costs_.size(), 0);
        std::fill(coefficients_.begin() + static_cast<std::ptrdiff_t>(j),
                  coefficients_.begin() + static_cast<std::ptrdiff_t>(last), -1);
        in.lp.add_row(coefficients_, -1);
        in.levels.push_back(-1);
        return true;
      }
      j = last;
    }
    return false;
  }
  // ---- prices ----

  /// Take the multipliers of a relaxation over and evaluate what they prove, exactly.
  [[nodiscard]] price_t bound_by_prices(relaxation const& in) {
    row_prices_.resize(in.lp.num_rows());
    in.lp.multipliers(row_prices_);
    prices_.assign(model_->num_levels(), 0);
    for (std::size_t row = 0; row < in.levels.size(); ++row) {
      if (in.levels[row] >= 0) { prices_[static_cast<std::size_t>(in.levels[row])] += to_price(row_prices_[row]); }
    }
    sum_prices();
    price_t total = 0;
    for (std::size_t e = 0; e < model_->num_experts(); ++e) { total += cheapest_of(e); }
    return total;
  }
  /// Price of counting from a level on: the sum of the prices from there to the end.
  void sum_prices() {
    scale_served();
    reach_.resize(model_->num_levels() + 1);
    reach_.back() = 0;
    for (auto i = model_->num_levels(); i > 0; --i) { reach_[i - 1] = reach_[i] + prices_[i - 1]; }
  }
  /// Above one, ever more spares would pay for themselves.
  void scale_served() noexcept {
    auto const served = std::span{prices_}.subspan(std::min(model_->first_served(), prices_.size()));
    price_t sum = 0;
    for (auto const price : served) { sum += price; }
    if (sum <= one) { return; }
    for (auto& price : served) { price = price * one / sum; }
  }
  [[nodiscard]] price_t reach_of(std::size_t option) const noexcept {
    return reach_[static_cast<std::size_t>(model_->options()[option].position)];
  }
  [[nodiscard]] price_t priced(std::size_t option) const noexcept {
    auto const& o = model_->options()[option];
    return o.extra * one + o.weight * reach_[static_cast<std::size_t>(o.position)];
  }
  [[nodiscard]] price_t cheapest_of(std::size_t expert) const noexcept {
    auto cheapest = std::numeric_limits<price_t>::max();
    for (auto i = base_[expert]; i < model_->last_option(expert); ++i) {
      if (banned_[i] == 0) { cheapest = std::min(cheapest, priced(i)); }
    }
    return cheapest;
  }

  // ---- dives ----

  /// An expert whose count the bound leaves open.
  struct open_expert {
    std::size_t expert;
    std::size_t chosen;  ///< the option that it has now
    price_t reduced;     ///< reduced cost that it adds to every solution below this node
    bool decided;
  };
  struct candidate {
    price_t rank;  ///< reduced cost added, and a little for each spare
    std::size_t index;
    std::size_t option;
  };

  /// Drop the options that no solution can hold. Every expert's first that remains is its base. False when the bases
  /// alone take too many spares.
  [[nodiscard]] bool close_experts() {
    price_t total = 0;
    for (std::size_t e = 0; e < model_->num_experts(); ++e) { total += cheapest_of(e); }
    slack_ = budget() - total;
    open_.clear();
    used_ = 0;
    for (std::size_t e = 0; e < model_->num_experts(); ++e) {
      auto const cheapest = cheapest_of(e);
      auto const last = model_->last_option(e);
      std::size_t num_kept = 0;
      auto first_kept = last;
      for (auto i = base_[e]; i < last; ++i) {
        reduced_[i] = priced(i) - cheapest;
        banned_[i] = reduced_[i] > slack_ ? 1 : 0;
        if (banned_[i] != 0) { continue; }
        if (num_kept == 0) { first_kept = i; }
        ++num_kept;
      }
      base_[e] = first_kept;
      used_ += model_->options()[first_kept].extra;
      if (num_kept > 1) { open_.push_back({e, first_kept, 0, false}); }
    }
    short_.assign(model_->num_levels() + 1, 0);
    for (auto const option : base_) {
      auto const& o = model_->options()[option];
      short_[static_cast<std::size_t>(o.position)] += o.weight;
    }
    for (std::size_t i = 1; i < model_->num_levels(); ++i) { short_[i] += short_[i - 1]; }
    return used_ <= model_->num_spares();
  }

  /// Take what the relaxation is sure of and dive from there.
  [[nodiscard]] bool dive_from_relaxation(std::int64_t& work) {
    auto const before_short = short_;
    auto const before_open = open_;
    auto const before_used = used_;
    price_t spent = 0;
    for (std::size_t j = 0; j < columns_.size(); ++j) {
      auto const& c = columns_[j];
      if (root_.lp.value(j) < sure || banned_[c.option] != 0 || spent + reduced_[c.option] > slack_) { continue; }
      auto const found =
          std::find_if(open_.begin(), open_.end(), [&](open_expert const& o) { return o.expert == c.expert; });
      if (found == open_.end() || found->chosen >= c.option) { continue; }
      choose(static_cast<std::size_t>(found - open_.begin()), c.option);
      spent += reduced_[c.option];
    }
    bool const found = dive_counted(spent, work);
    if (!found) {
      short_ = before_short;
      open_ = before_open;
      used_ = before_used;
    }
    return found;
  }
  [[nodiscard]] bool dive_from_bases(std::int64_t& work) { return dive_counted(0, work); }
  [[nodiscard]] bool dive_counted(price_t spent, std::int64_t& work) {
    nodes_left_ = num_dive_nodes;
    bool const found = dive(spent);
    work -= (num_dive_nodes - nodes_left_) * static_cast<std::int64_t>(open_.size() * 2 + model_->num_levels());
    return found;
  }

  /// Look for a solution that extends the choices made, cheapest first. @param spent reduced cost that all of them have
  [[nodiscard]] bool dive(price_t spent) {
    if (--nodes_left_ <= 0 || used_ > model_->num_spares()) { return false; }
    auto const level = first_short_level();
    if (level == model_->num_levels()) {
      keep_counts();
      return true;
    }
    auto const first = candidates_.size();
    list_candidates(level, spent);
    // Each try takes a node, so there is no need to order more candidates than there are nodes.
    auto const num_listed = candidates_.size() - first;
    auto const last = first + std::min(num_listed, static_cast<std::size_t>(nodes_left_));
    std::partial_sort(candidates_.begin() + static_cast<std::ptrdiff_t>(first),
                      candidates_.begin() + static_cast<std::ptrdiff_t>(last), candidates_.end(),
                      [](candidate const& a, candidate const& b) {
                        return a.rank != b.rank ? a.rank < b.rank : a.option < b.option;
                      });
    bool found = false;
    auto tried = first;
    while (tried < last && !found && nodes_left_ > 0 && spent <= slack_) {
      auto const next = candidates_[tried++];
      auto const before = open_[next.index];
      auto const with = spent + reduced_[next.option] - before.reduced;
      if (with <= slack_) {
        choose(next.index, next.option);
        found = dive(with);
        if (found) { break; }
        choose(next.index, before.chosen);
        open_[next.index] = before;
      }
      // Every solution with this choice has been seen: the next ones do without, which may cost the expert more.
      banned_[next.option] = 1;
      open_[next.index].reduced = least_reduced(open_[next.index]);
      spent += open_[next.index].reduced - before.reduced;
    }
    if (tried == last && last - first < num_listed && spent <= slack_) { nodes_left_ = 0; }
    for (auto c = tried; c > first && !found; --c) {
      auto const& undone = candidates_[c - 1];
      banned_[undone.option] = 0;
      open_[undone.index].reduced = least_reduced(open_[undone.index]);
    }
    candidates_.resize(first);
    return found;
  }
  /// A level is short that all spares left could not satisfy, so a solution below holds a further choice that relieves
  /// this level by more than the spares it takes.
  void list_candidates(std::size_t level, price_t spent) {
    for (std::size_t index = 0; index < open_.size(); ++index) {
      auto const& o = open_[index];
      if (o.decided) { continue; }
      for (auto i = o.chosen + 1; i < model_->last_option(o.expert); ++i) {
        auto const extra = model_->options()[i].extra - model_->options()[o.chosen].extra;
        if (used_ + extra > model_->num_spares()) { break; }
        auto const added = reduced_[i] - o.reduced;
        if (banned_[i] == 0 && spent + added <= slack_ && helps(o.chosen, i, level)) {
          candidates_.push_back({added + extra * (one / 32), index, i});
        }
      }
    }
  }
  [[nodiscard]] price_t least_reduced(open_expert const& o) const noexcept {
    auto least = reduced_[o.chosen];
    for (auto i = o.chosen; i < model_->last_option(o.expert) && !o.decided; ++i) {
      if (banned_[i] == 0) { least = std::min(least, reduced_[i]); }
    }
    return least;
  }
  [[nodiscard]] std::size_t first_short_level() const noexcept {
    auto const spare = model_->num_spares() - used_;
    std::size_t level = 0;
    while (level < model_->num_levels() && short_[level] <= (model_->is_served(level) ? spare : 0)) { ++level; }
    return level;
  }
  [[nodiscard]] bool helps(std::size_t from, std::size_t to, std::size_t level) const noexcept {
    auto const paid = model_->is_served(level) ? model_->options()[to].extra - model_->options()[from].extra : 0;
    return model_->need(from, level) - model_->need(to, level) > paid;
  }
  void choose(std::size_t index, std::size_t option) noexcept {
    auto& o = open_[index];
    shift(o.chosen, -1);
    shift(option, +1);
    o.chosen = option;
    o.reduced = reduced_[option];
    o.decided = true;
  }
  void shift(std::size_t option, index_t sign) noexcept {
    auto const& o = model_->options()[option];
    used_ += sign * o.extra;
    for (auto i = static_cast<std::size_t>(o.position); i < model_->num_levels(); ++i) { short_[i] += sign * o.weight; }
  }
  void keep_counts() {
    counts_.resize(model_->num_experts());
    for (std::size_t e = 0; e < counts_.size(); ++e) { counts_[e] = model_->options()[base_[e]].count; }
    for (auto const& o : open_) { counts_[o.expert] = model_->options()[o.chosen].count; }
  }

  // ---- branch and bound ----

  [[nodiscard]] answer branch_and_bound(std::int64_t& work) {
    columns_.clear();
    for (auto const& o : open_) {
      for (auto i = o.chosen + 1; i < model_->last_option(o.expert); ++i) {
        if (banned_[i] == 0) { columns_.push_back({o.expert, i}); }
      }
    }
    if (columns_.size() > max_branch_columns) { return answer::unknown; }
    auto const levels = root_.levels;
    load_rows();
    for (auto const level : levels) {
      if (level >= 0) { add_level(root_, static_cast<std::size_t>(level)); }
    }
    list_tight_levels();
    if (nodes_.empty()) { nodes_.resize(1); }
    nodes_[0] = root_;
    nodes_left_ = num_branch_nodes;
    undo_.clear();
    return branch(0, work);
  }

  [[nodiscard]] answer branch(std::size_t depth, std::int64_t& work) {
    if (--nodes_left_ < 0 || work <= 0) { return answer::unknown; }
    auto const limit = covering_lp::one * (model_->num_spares() - used_) + covering_lp::one / 16;
    if (nodes_[depth].lp.num_rows() > 0) { static_cast<void>(nodes_[depth].lp.solve(limit, work)); }
    solve(nodes_[depth], work);
    work -= static_cast<std::int64_t>(costs_.size() * nodes_[depth].lp.num_rows() + model_->num_experts());
    if (bound_by_prices(nodes_[depth]) > budget() || cannot_be_covered()) { return answer::no; }
    auto const split = most_fractional(nodes_[depth].lp);
    if (split == columns_.size()) { return take_solution(nodes_[depth].lp) ? answer::yes : answer::unknown; }

    // Settle the expert: each of its options in turn, and last its base.
    auto const expert = columns_[split].expert;
    bool all_refuted = true;
    if (nodes_.size() <= depth + 1) { nodes_.resize(depth + 2); }
    for (auto option = model_->last_option(expert); option-- > base_[expert];) {
      if (banned_[option] != 0) { continue; }
      nodes_[depth + 1] = nodes_[depth];
      auto const mark = undo_.size();
      settle(nodes_[depth + 1], expert, option);
      auto const result = branch(depth + 1, work);
      for (; undo_.size() > mark; undo_.pop_back()) { banned_[undo_.back()] = 0; }
      if (result == answer::yes) { return result; }
      all_refuted = all_refuted && result == answer::no;
    }
    return all_refuted ? answer::no : answer::unknown;
  }

  /// Let an expert take an option and nothing else. At its base, other experts lose the options that one of its own
  /// dominates: a solution with such an option has a twin, no dearer, in the branch of the dominating one.
  void settle(relaxation& in, std::size_t expert, std::size_t option) {
    coefficients_.assign(costs_.size(), 0);
    for (std::size_t j = 0; j < columns_.size(); ++j) {
      auto const& c = columns_[j];
      if (banned_[c.option] != 0) { continue; }
      bool const excluded = c.expert == expert
                                ? c.option != option
                                : option == base_[expert] && banned_[base_[c.expert]] == 0 && is_dominated(j, expert);
      if (!excluded) { continue; }
      coefficients_[j] = -1;
      ban(c.option);
    }
    in.lp.add_row(coefficients_, 0);
    in.levels.push_back(-1);
    if (option == base_[expert]) { return; }
    ban(base_[expert]);
    coefficients_.assign(costs_.size(), 0);
    for (std::size_t j = 0; j < columns_.size(); ++j) { coefficients_[j] = columns_[j].option == option ? 1 : 0; }
    in.lp.add_row(coefficients_, 1);
    in.levels.push_back(-1);
  }
  void ban(std::size_t option) {
    banned_[option] = 1;
    undo_.push_back(option);
  }
  /// Levels that any choice could leave short; the others do not tell options apart.
  void list_tight_levels() {
    tight_.clear();
    auto const spare = model_->num_spares() - used_;
    for (std::size_t level = 0; level < model_->num_levels(); ++level) {
      index_t harm = 0;  // most that a spare copy can add to the need here
      for (auto const& c : columns_) { harm = std::max(harm, -gain(c, level)); }
      if (short_[level] + harm * spare > (model_->is_served(level) ? spare : 0) - spare) { tight_.push_back(level); }
    }
  }
  [[nodiscard]] index_t gain(column const& c, std::size_t level) const noexcept {
    return model_->need(base_[c.expert], level) - model_->need(c.option, level);
  }
  [[nodiscard]] bool is_dominated(std::size_t other, std::size_t expert) const {
    return std::any_of(columns_.begin(), columns_.end(), [&](column const& mine) {
      auto const index = static_cast<std::size_t>(&mine - columns_.data());
      return mine.expert == expert && costs_[index] <= costs_[other] &&
             std::all_of(tight_.begin(), tight_.end(),
                         [&](std::size_t level) { return gain(mine, level) >= gain(columns_[other], level); });
    });
  }
  /// Levels that spares do not serve and that even the best options together leave short.
  [[nodiscard]] bool cannot_be_covered() {
    for (std::size_t level = 0; level < std::min(model_->first_served(), model_->num_levels()); ++level) {
      index_t least = 0;
      for (std::size_t e = 0; e < model_->num_experts(); ++e) {
        auto best = std::numeric_limits<index_t>::max();
        for (auto i = base_[e]; i < model_->last_option(e); ++i) {
          if (banned_[i] == 0) { best = std::min(best, model_->need(i, level)); }
        }
        least += best;
      }
      if (least > 0) { return true; }
    }
    return false;
  }
  [[nodiscard]] std::size_t most_fractional(covering_lp const& lp) const noexcept {
    auto best = columns_.size();
    auto most = covering_lp::one / 64;
    for (std::size_t j = 0; j < columns_.size(); ++j) {
      auto const value = lp.value(j);
      auto const fraction = std::min(value, covering_lp::one - value);
      if (fraction > most) {
        most = fraction;
        best = j;
      }
    }
    return best;
  }
  /// Round an integral relaxation and check it exactly.
  [[nodiscard]] bool take_solution(covering_lp const& lp) {
    auto const before_short = short_;
    auto const before_used = used_;
    auto const before_open = open_;
    for (std::size_t j = 0; j < columns_.size(); ++j) {
      if (lp.value(j) < covering_lp::one / 2) { continue; }
      auto const found = std::find_if(open_.begin(), open_.end(),
                                      [&](open_expert const& o) { return o.expert == columns_[j].expert; });
      choose(static_cast<std::size_t>(found - open_.begin()), columns_[j].option);
    }
    bool const good = used_ <= model_->num_spares() && first_short_level() == model_->num_levels();
    if (good) { keep_counts(); }
    short_ = before_short;
    used_ = before_used;
    open_ = before_open;
    return good;
  }

  level_model const* model_ = nullptr;
  std::vector<std::size_t> base_;      // [E] option that each expert has unless a column replaces it
  std::vector<price_t> reduced_;       // [options]
  std::vector<unsigned char> banned_;  // [options]
  std::vector<index_t> short_;         // [levels] small copies missing
  index_t used_ = 0;                   // spares taken
  std::vector<price_t> prices_;        // [levels]
  std::vector<price_t> reach_;         // [levels + 1]
  price_t slack_ = 0;
  struct level_price {
    load_t level;
    price_t price;
  };
  std::vector<level_price> remembered_;
  std::vector<unsigned char> is_column_;  // [options]
  std::vector<column> columns_;
  std::vector<index_t> costs_;
  std::vector<index_t> coefficients_;
  std::vector<covering_lp::fixed> row_prices_;
  std::vector<covering_lp::fixed> moved_;
  relaxation root_;
  std::vector<relaxation> nodes_;
  std::vector<std::size_t> undo_;   // options banned on the way down
  std::vector<std::size_t> tight_;  // levels
  std::vector<open_expert> open_;
  std::vector<candidate> candidates_;
  std::int64_t nodes_left_ = 0;
  std::vector<index_t> counts_;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
