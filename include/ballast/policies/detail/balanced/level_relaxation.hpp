// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_DETAIL_BALANCED_LEVEL_RELAXATION_HPP
#define BALLAST_POLICIES_DETAIL_BALANCED_LEVEL_RELAXATION_HPP

#include <ballast/contract.hpp>
#include <ballast/policies/detail/balanced/covering_lp.hpp>
#include <ballast/policies/detail/balanced/level_model.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// The linear relaxation of a `level_model`, and the bounds that its prices prove.
///
/// For any prices y >= 0 of the levels whose sum over the served levels is at most 1, let every expert pick the option
/// that is cheapest: no counts take fewer spares than the total. The prices come from the relaxation, the total is
/// evaluated exactly in integers, so it is a proof whatever the rounding of the former.
class level_relaxation {
public:
  using price_t = std::int64_t;
  static constexpr price_t one = price_t{1} << 20;  ///< price of a spare copy

  /// An option that may replace its expert's base. Column j + 1 of the program; column 0 is a spare.
  struct column {
    std::size_t expert;
    std::size_t option;
  };
  /// What a row of a program says.
  struct row {
    enum class kind : index_t {
      level,    ///< level `id` is not short
      expert,   ///< expert `id` takes at most one option
      without,  ///< column `id` is at most 0
      with,     ///< column `id` is at least 1
    };
    kind what;
    std::size_t id;
  };
  struct program {
    covering_lp lp;
    std::vector<row> rows;
    bool contradicts = false;  ///< the last solve found that the rows exclude each other
  };

  /// Forget the prices of earlier limits: another layer follows.
  void forget_prices() noexcept { remembered_.clear(); }

  /// Take a model over: every option is allowed, every expert's first one is its base.
  void open(level_model const& model) {
    model_ = &model;
    banned_.assign(model.options().size(), 0);
    base_.resize(model.num_experts());
    for (std::size_t e = 0; e < base_.size(); ++e) { base_[e] = model.first_option(e); }
    measure_bases();
  }
  /// Spares that any solution takes at least, in units of `one`, or less where the budget is known to be exceeded.
  [[nodiscard]] price_t bound_root(std::int64_t& work) {
    list_columns();
    start(root_);
    price_t value = 0;
    for (int round = 1;; ++round) {
      solve(root_, work);
      value = bound(root_);
      // What lacks columns proves little: finish without the limit, so that columns can join.
      if (root_.lp.objective() > limit() && value <= budget()) {
        solve(root_, work, unlimited);
        value = bound(root_);
      }
      if (value > budget() || round == max_rounds || work <= 0) { break; }
      auto const num_before = columns_.size();
      list_paying_columns();
      if (root_.contradicts) { list_pieces(); }
      if (columns_.size() == num_before) { break; }
      if (!root_.contradicts && !root_.lp.make_optimal(matrix{*this, root_}, work)) { break; }
    }
    remember_prices();
    return value;
  }
  /// Start a program over the given columns, with the levels that the root has found to matter.
  void restart(program& out, std::vector<column> const& columns) {
    columns_ = columns;
    steps_.clear();
    for (auto const& c : columns_) { steps_.push_back(step_of(c)); }
    measure_bases();
    start(out);
    for (auto const& r : root_.rows) {
      if (r.what == row::kind::level) { add_row(out, r); }
    }
  }
  /// Solve a program, adding the levels and experts that it violates.
  void solve(program& in, std::int64_t& work) { solve(in, work, limit()); }

  /// Take the prices of a program over and evaluate what they prove, exactly.
  [[nodiscard]] price_t bound(program const& in) {
    auto const multipliers = in.lp.multipliers();
    prices_.assign(model_->num_levels(), 0);
    for (std::size_t i = 0; i < in.rows.size(); ++i) {
      if (in.rows[i].what != row::kind::level) { continue; }
      prices_[in.rows[i].id] += std::max<fixed>(multipliers[i], 0) * one / covering_lp::one;
    }
    sum_prices();
    price_t total = 0;
    for (std::size_t e = 0; e < base_.size(); ++e) { total += cheapest_of(e); }
    return total;
  }

  /// Let an expert take an option and nothing else. At its base, other experts lose the options that one of its own
  /// dominates: a solution with such an option has a twin, no dearer, in the branch of the dominating one.
  /// @param banned  out: options banned thereby are appended.
  void settle(program& in, std::size_t expert, std::size_t option, std::vector<std::size_t>& banned,
              std::int64_t& work) {
    work -= static_cast<std::int64_t>(columns_.size() * (option == base_[expert] ? tight_.size() / 2 + 8 : 4));
    for (std::size_t j = 0; j < columns_.size(); ++j) {
      auto const& c = columns_[j];
      if (banned_[c.option] != 0) { continue; }
      bool const excluded = c.expert == expert
                                ? c.option != option
                                : option == base_[expert] && banned_[base_[c.expert]] == 0 && is_dominated(c, expert);
      if (excluded) {
        ban(c.option, banned);
        // Banned columns stay out; those that are in have to leave.
        if (in.lp.value(j + 1) > 0) { add_row(in, {row::kind::without, j}); }
      } else if (c.option == option) {
        add_row(in, {row::kind::with, j});
      }
    }
    if (option != base_[expert]) { ban(base_[expert], banned); }
  }
  /// Levels that any choice could leave short tell options apart; the others do not.
  void list_tight_levels() {
    tight_.clear();
    auto const spare = model_->num_spares() - used_;
    for (std::size_t level = 0; level < model_->num_levels(); ++level) {
      index_t harm = 0;  // most that a spare copy can add to the need here
      for (auto const& c : columns_) { harm = std::max(harm, -gain(c, level)); }
      if (need_[level] + harm * spare > (model_->is_served(level) ? 0 : -spare)) { tight_.push_back(level); }
    }
  }
  /// Whether some level that spares do not serve stays short whatever is chosen.
  [[nodiscard]] bool cannot_be_covered() const {
    for (std::size_t level = 0; level < std::min(model_->first_served(), model_->num_levels()); ++level) {
      index_t least = 0;
      for (std::size_t e = 0; e < base_.size(); ++e) { least += least_need(e, level); }
      if (least > 0) { return true; }
    }
    return false;
  }

  [[nodiscard]] price_t budget() const noexcept { return one * model_->num_spares(); }
  [[nodiscard]] program const& root() const noexcept { return root_; }
  [[nodiscard]] std::vector<column> const& columns() const noexcept { return columns_; }
  [[nodiscard]] std::size_t base(std::size_t expert) const noexcept { return base_[expert]; }
  void set_base(std::size_t expert, std::size_t option) noexcept { base_[expert] = option; }
  [[nodiscard]] bool is_banned(std::size_t option) const noexcept { return banned_[option] != 0; }
  void set_banned(std::size_t option, bool banned) noexcept { banned_[option] = banned ? 1 : 0; }
  /// What an option costs at the present prices.
  [[nodiscard]] price_t priced(std::size_t option) const noexcept {
    auto const& o = model_->options()[option];
    return o.extra * one + o.weight * reach_of(option);
  }
  /// Least price among an expert's allowed options.
  [[nodiscard]] price_t cheapest_of(std::size_t expert) const noexcept {
    auto cheapest = std::numeric_limits<price_t>::max();
    for (auto i = base_[expert]; i < model_->last_option(expert); ++i) {
      if (banned_[i] == 0) { cheapest = std::min(cheapest, priced(i)); }
    }
    return cheapest;
  }
  /// Spares that the bases take, and the small copies that they leave each level short of.
  void measure_bases() {
    used_ = 0;
    need_.assign(model_->num_levels() + 1, 0);
    for (auto const option : base_) {
      auto const& o = model_->options()[option];
      used_ += o.extra;
      need_[static_cast<std::size_t>(o.position)] += o.weight;
    }
    for (std::size_t i = 1; i < model_->num_levels(); ++i) { need_[i] += need_[i - 1]; }
  }
  [[nodiscard]] index_t used() const noexcept { return used_; }
  [[nodiscard]] std::span<index_t const> need() const noexcept { return need_; }

private:
  using fixed = covering_lp::fixed;
  static constexpr fixed unlimited = covering_lp::one << 18;
  static constexpr fixed shortfall = covering_lp::one / 16;  ///< levels short by less are left alone
  static constexpr int max_rounds = 6;
  static constexpr index_t first_extras = 1;        ///< options with more spares join when they pay
  static constexpr index_t unserved_extras = 2;     ///< the same, where spares do not serve
  static constexpr std::size_t num_piecewise = 24;  ///< lightest experts that join in pieces when rows contradict
  static constexpr std::size_t many_columns = 256;

  /// What a column changes, close together.
  struct step {
    index_t from;  ///< position of the base
    index_t to;    ///< position of the option
    index_t weight_from;
    index_t weight_to;
  };
  struct level_price {
    load_t level;
    price_t price;
  };

  // ---- columns ----

  /// Start from the options that nearly paid at the last limit, or from those that take few spares.
  void list_columns() {
    recall_prices();
    auto near = one / 2;
    do {
      columns_.clear();
      steps_.clear();
      is_column_.assign(model_->options().size(), 0);
      for (std::size_t e = 0; e < base_.size(); ++e) { list_columns_of(e, near); }
      near /= 2;
    } while (!remembered_.empty() && columns_.size() > many_columns && near > 0);
  }
  void list_columns_of(std::size_t expert, price_t near) {
    auto const cheapest = cheapest_of(expert);
    auto last = base_[expert];
    for (auto i = last + 1; i < model_->last_option(expert); ++i) {
      auto const& o = model_->options()[i];
      // Only pieces of lightest experts reach the levels that spares do not serve.
      bool const is_piece =
          o.extra <= unserved_extras && is_unserved_piece(i) && o.position != model_->options()[last].position;
      // Further copies on the same stretch of priced levels are no better than spares.
      bool const pays =
          remembered_.empty() ? o.extra <= first_extras : priced(i) - cheapest < near && reach_of(i) != reach_of(last);
      if (!pays && !is_piece) { continue; }
      list_column(expert, i);
      last = i;
    }
  }
  /// List every expert's cheapest option that is cheaper at the present prices than any that is in.
  void list_paying_columns() {
    for (std::size_t e = 0; e < base_.size(); ++e) {
      auto cheapest = priced(base_[e]);
      for (auto i = base_[e] + 1; i < model_->last_option(e); ++i) {
        if (is_column_[i] != 0) { cheapest = std::min(cheapest, priced(i)); }
      }
      auto best = base_[e];
      for (auto i = base_[e] + 1; i < model_->last_option(e); ++i) {
        if (is_column_[i] == 0 &&
            priced(i) < std::min(cheapest - one / 64, best == base_[e] ? cheapest : priced(best))) {
          best = i;
        }
      }
      if (best != base_[e]) { list_column(e, best); }
    }
  }
  /// List what rows may lack that contradict each other: lightest experts in more pieces, for levels that spares do not
  /// serve.
  void list_pieces() {
    order_.resize(base_.size());
    std::iota(order_.begin(), order_.end(), std::size_t{0});
    auto const count = std::min(order_.size(), num_piecewise);
    std::partial_sort(order_.begin(), order_.begin() + static_cast<std::ptrdiff_t>(count), order_.end(),
                      [this](std::size_t a, std::size_t b) {
                        return model_->load(a) != model_->load(b) ? model_->load(a) < model_->load(b) : a < b;
                      });
    for (std::size_t k = 0; k < count; ++k) {
      for (auto i = base_[order_[k]] + 1; i < model_->last_option(order_[k]); ++i) {
        bool const is_new = model_->options()[i].position != model_->options()[i - 1].position;
        if (is_new && is_column_[i] == 0 && is_unserved_piece(i)) { list_column(order_[k], i); }
      }
    }
  }
  [[nodiscard]] bool is_unserved_piece(std::size_t option) const noexcept {
    auto const& o = model_->options()[option];
    return o.weight < 0 && !model_->is_served(static_cast<std::size_t>(o.position));
  }
  void list_column(std::size_t expert, std::size_t option) {
    columns_.push_back({expert, option});
    steps_.push_back(step_of(columns_.back()));
    is_column_[option] = 1;
  }
  [[nodiscard]] step step_of(column const& c) const noexcept {
    auto const& from = model_->options()[base_[c.expert]];
    auto const& to = model_->options()[c.option];
    return {from.position, to.position, from.weight, to.weight};
  }
  [[nodiscard]] index_t cost_of(column const& c) const noexcept {
    return model_->options()[c.option].extra - model_->options()[base_[c.expert]].extra;
  }
  /// What an option in place of its base takes off the need of a level.
  [[nodiscard]] index_t gain(column const& c, std::size_t level) const noexcept {
    return model_->need(base_[c.expert], level) - model_->need(c.option, level);
  }
  [[nodiscard]] bool is_dominated(column const& other, std::size_t expert) const {
    return std::any_of(columns_.begin(), columns_.end(), [this, &expert, &other](column const& mine) {
      return mine.expert == expert && cost_of(mine) <= cost_of(other) &&
             std::all_of(tight_.begin(), tight_.end(),
                         [this, &mine, &other](std::size_t level) { return gain(mine, level) >= gain(other, level); });
    });
  }
  void ban(std::size_t option, std::vector<std::size_t>& banned) {
    banned_[option] = 1;
    banned.push_back(option);
  }

  // ---- rows ----

  /// The matrix of a program, for its solver.
  class matrix {
  public:
    matrix(level_relaxation& owner, program const& in) noexcept : owner_{owner}, in_{in} {}

    [[nodiscard]] std::size_t size() const noexcept { return owner_.columns_.size() + 1; }
    [[nodiscard]] index_t cost(std::size_t j) const noexcept {
      return j == 0 ? 1 : owner_.cost_of(owner_.columns_[j - 1]);
    }
    [[nodiscard]] bool is_fixed(std::size_t j) const noexcept {
      return j > 0 && owner_.banned_[owner_.columns_[j - 1].option] != 0;
    }
    [[nodiscard]] index_t coefficient(std::size_t i, std::size_t j) const noexcept {
      auto const [what, id] = in_.rows[i];
      if (j == 0) { return what == row::kind::level && owner_.model_->is_served(id) ? 1 : 0; }
      auto const& c = owner_.columns_[j - 1];
      switch (what) {
        case row::kind::level: return owner_.gain(c, id);
        case row::kind::expert: return c.expert == id ? -1 : 0;
        case row::kind::without: return j - 1 == id ? -1 : 0;
        case row::kind::with: return j - 1 == id ? 1 : 0;
      }
      return 0;
    }
    /// Levels are steps, so the sum over them is one look-up an option.
    void combine(std::span<fixed const> weights, std::span<fixed> out) const noexcept {
      auto& reach = owner_.weight_reach_;
      reach.assign(owner_.model_->num_levels() + 1, 0);
      for (std::size_t i = 0; i < in_.rows.size(); ++i) {
        if (in_.rows[i].what == row::kind::level) { reach[in_.rows[i].id] += weights[i]; }
      }
      for (auto i = reach.size() - 1; i > 0; --i) { reach[i - 1] += reach[i]; }
      out[0] = reach[std::min(owner_.model_->first_served(), reach.size() - 1)];
      for (std::size_t j = 0; j < owner_.columns_.size(); ++j) {
        auto const& s = owner_.steps_[j];
        out[j + 1] = s.weight_from * reach[static_cast<std::size_t>(s.from)] -
                     s.weight_to * reach[static_cast<std::size_t>(s.to)];
      }
      for (std::size_t i = 0; i < in_.rows.size(); ++i) { combine_others(in_.rows[i], weights[i], out); }
    }

  private:
    void combine_others(row const& r, fixed weight, std::span<fixed> out) const noexcept {
      if (weight == 0 || r.what == row::kind::level) { return; }
      if (r.what == row::kind::without) { out[r.id + 1] -= weight; }
      if (r.what == row::kind::with) { out[r.id + 1] += weight; }
      if (r.what != row::kind::expert) { return; }
      for (std::size_t j = 0; j < owner_.columns_.size(); ++j) {
        if (owner_.columns_[j].expert == r.id) { out[j + 1] -= weight; }
      }
    }
    level_relaxation& owner_;
    program const& in_;
  };

  static void start(program& out) {
    out.lp.reset();
    out.rows.clear();
    out.contradicts = false;
  }
  /// Beyond this the spares do not suffice.
  [[nodiscard]] fixed limit() const noexcept {
    return covering_lp::one * (model_->num_spares() - used_) + covering_lp::one / 16;
  }
  void solve(program& in, std::int64_t& work, fixed limit) {
    in.contradicts = false;
    for (;;) {
      if (!in.lp.make_feasible(matrix{*this, in}, limit, work)) {
        in.contradicts = in.lp.objective() <= limit && work > 0;
        return;
      }
      auto const level = most_violated_level(in.lp);
      if (level < model_->num_levels()) {
        add_row(in, {row::kind::level, level});
      } else if (!add_crowded_expert(in)) {
        return;
      }
      work -= static_cast<std::int64_t>(model_->num_levels() + in.rows.size() * in.rows.size());
    }
  }
  [[nodiscard]] std::size_t most_violated_level(covering_lp const& lp) {
    moved_.assign(model_->num_levels() + 1, 0);
    lp.for_each_value([this](std::size_t j, fixed value) {
      if (j == 0) { return; }
      auto const& from = model_->options()[base_[columns_[j - 1].expert]];
      auto const& to = model_->options()[columns_[j - 1].option];
      moved_[static_cast<std::size_t>(from.position)] -= value * from.weight;
      moved_[static_cast<std::size_t>(to.position)] += value * to.weight;
    });
    auto worst = model_->num_levels();
    auto most = shortfall;
    auto const spare = lp.value(0);
    fixed moved = 0;
    for (std::size_t i = 0; i < model_->num_levels(); ++i) {
      moved += moved_[i];
      auto const missing = need_[i] * covering_lp::one + moved - (model_->is_served(i) ? spare : 0);
      if (missing > most) {
        most = missing;
        worst = i;
      }
    }
    return worst;
  }
  /// An expert takes one option only. False when all do.
  [[nodiscard]] bool add_crowded_expert(program& in) {
    taken_.assign(base_.size(), 0);
    in.lp.for_each_value([this](std::size_t j, fixed value) {
      if (j > 0) { taken_[columns_[j - 1].expert] += value; }
    });
    auto const most = std::max_element(taken_.begin(), taken_.end());
    if (*most <= covering_lp::one + covering_lp::one / 64) { return false; }
    add_row(in, {row::kind::expert, static_cast<std::size_t>(most - taken_.begin())});
    return true;
  }
  void add_row(program& in, row r) {
    in.rows.push_back(r);
    index_t bound = 0;
    if (r.what == row::kind::level) { bound = need_[r.id]; }
    if (r.what == row::kind::expert) { bound = -1; }
    if (r.what == row::kind::with) { bound = 1; }
    in.lp.add_row(matrix{*this, in}, bound);
  }

  // ---- prices ----

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
  [[nodiscard]] index_t least_need(std::size_t expert, std::size_t level) const noexcept {
    auto least = std::numeric_limits<index_t>::max();
    for (auto i = base_[expert]; i < model_->last_option(expert); ++i) {
      if (banned_[i] == 0) { least = std::min(least, model_->need(i, level)); }
    }
    return least;
  }

  level_model const* model_ = nullptr;
  std::vector<std::size_t> base_;         // [E] option that each expert has unless a column replaces it
  std::vector<unsigned char> banned_;     // [options]
  std::vector<unsigned char> is_column_;  // [options]
  std::vector<column> columns_;
  std::vector<step> steps_;  // of each column
  index_t used_ = 0;
  std::vector<index_t> need_;    // [levels + 1]
  std::vector<price_t> prices_;  // [levels]
  std::vector<price_t> reach_;   // [levels + 1]
  std::vector<level_price> remembered_;
  std::vector<std::size_t> tight_;
  std::vector<std::size_t> order_;
  program root_;
  std::vector<fixed> weight_reach_;
  std::vector<fixed> moved_;
  std::vector<fixed> taken_;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
