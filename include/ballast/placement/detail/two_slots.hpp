// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_PLACEMENT_DETAIL_TWO_SLOTS_HPP
#define BALLAST_PLACEMENT_DETAIL_TWO_SLOTS_HPP

#include <ballast/contract.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Chooses replica counts for ranks of two slots, and proves how good they are.
///
/// With two slots a rank and given counts, pairing the heaviest copy with the lightest is optimal; only the counts are
/// hard. Whether a maximum T can be reached is a covering problem. A copy heavier than T / 2 is *big* and needs a
/// partner of at most T minus its load; all others are *small*. A perfect pairing exists if and only if, for every
/// level v > T / 2, the big copies of at least v are no more than the small ones of at most T - v. Of all counts that
/// keep each copy at or below T, we look for the ones that spend fewest spare copies and satisfy every level; a spare
/// that is left can always split a lightest expert once more, which adds a small copy below every level.
///
/// *Bound:* a Lagrangian of the levels. For any multipliers y >= 0 with sum(y) <= 1, each expert picks its cheapest
/// count alone, and the total is a lower bound on the spares needed. Above the spares at hand, T is impossible: a
/// proof, whatever the multipliers. They are found by subgradient steps in integers.
/// *Search:* depth first over the experts that could repair a violated level, pruned by their reduced costs. It ends
/// with counts, with a proof that there are none, or with neither when the work is used up.
class two_slot_counter {
public:
  struct outcome {
    load_t max = 0;    ///< heaviest rank with the counts found
    load_t bound = 0;  ///< no counts and no packing have a lighter heaviest rank
  };

  /// @param loads       [E] load units of each expert, E <= 2 * num_ranks.
  /// @param num_ranks   ranks of two slots.
  /// @param counts      in/out: [E] counts to start from, 1 to num_ranks each, summing to 2 * num_ranks; better or
  ///                    the same on return.
  /// @param bound       a bound that is already known.
  /// @param good        a maximum that needs no improvement.
  /// @param work        in/out: units of work.
  outcome run(std::span<load_t const> loads, index_t num_ranks, std::span<index_t> counts, load_t bound, load_t good,
              std::int64_t& work) {
    loads_ = loads;
    num_ranks_ = num_ranks;
    spares_ = 2 * num_ranks - static_cast<index_t>(loads.size());
    multiplier_of_level_.clear();
    outcome result{max_of_pairs(counts), bound};
    load_t refuted = bound - 1;  // no counts reach this
    load_t given_up = refuted;   // the search found nothing here or below
    while (given_up + 1 < result.max && result.max > good && work > 0) {
      // Close to the end, ask for any improvement: a no is the proof that there is none.
      auto const gap = result.max - given_up;
      auto const limit = gap <= result.max / closing_gap ? result.max - 1 : given_up + gap / 2;
      switch (decide(limit, work)) {
        case answer::yes: {
          complete(best_counts_);
          auto const reached = max_of_pairs(best_counts_);
          if (reached < result.max) {
            std::copy(best_counts_.begin(), best_counts_.end(), counts.begin());
            result.max = reached;
          } else {
            given_up = limit;
          }
          break;
        }
        case answer::no: refuted = given_up = limit; break;
        case answer::unknown: given_up = limit; break;
      }
    }
    result.bound = std::max(result.bound, std::min(refuted + 1, result.max));
    return result;
  }

  /// Heaviest rank when the copies are paired heaviest with lightest. @complexity O(E log E + R)
  [[nodiscard]] load_t max_of_pairs(std::span<index_t const> counts) {
    sorted_.clear();
    for (std::size_t e = 0; e < loads_.size(); ++e) { sorted_.push_back({loads_[e] / counts[e], counts[e]}); }
    std::sort(sorted_.begin(), sorted_.end(),
              [](run_of_copies const& a, run_of_copies const& b) { return a.load < b.load; });
    copies_.clear();
    for (auto const& run : sorted_) { copies_.insert(copies_.end(), static_cast<std::size_t>(run.copies), run.load); }
    load_t max = 0;
    for (std::size_t i = 0, j = copies_.size() - 1; i < j; ++i, --j) { max = std::max(max, copies_[i] + copies_[j]); }
    return max;
  }

private:
  enum class answer { yes, no, unknown };
  static constexpr std::int64_t one = std::int64_t{1} << 20;  ///< price of a spare copy, and the most that y sums to
  static constexpr load_t closing_gap = 2000;
  static constexpr int max_steps = 400;
  static constexpr int patience = 20;
  static constexpr std::int64_t memory = 4;  ///< sixteenths of the last direction kept
  static constexpr std::int64_t max_nodes = 3000;
  static constexpr std::int64_t work_per_node = 200;

  /// One way to replicate an expert.
  struct choice {
    index_t count;
    index_t extra;     ///< spares beyond the fewest copies that stay below the limit
    index_t position;  ///< first level that the copies count at
    index_t weight;    ///< copies, negative where they are small
    std::int64_t reduced;
  };
  struct run_of_copies {
    load_t load;
    index_t copies;
  };
  struct level_price {
    load_t level;
    std::int64_t price;
  };

  /// Whether counts exist that reach `limit`; on yes they are in `best_counts_`.
  [[nodiscard]] answer decide(load_t limit, std::int64_t& work) {
    if (!collect(limit)) { return answer::no; }
    work -= static_cast<std::int64_t>(options_.size()) * 16;
    recall_prices();
    if (!bound_by_prices(work)) { return answer::no; }
    return search(work);
  }

  /// List levels and options for a limit. False when even the fewest copies need too many spares.
  [[nodiscard]] bool collect(load_t limit) {
    limit_ = limit;
    auto const half = limit / 2;
    free_ = spares_;
    least_.resize(loads_.size());
    for (std::size_t e = 0; e < loads_.size(); ++e) {
      auto const count = loads_[e] / (limit + 1) + 1;  // the fewest with load / count <= limit
      if (count > num_ranks_ || count - 1 > free_) { return false; }
      least_[e] = static_cast<index_t>(count);
      free_ -= least_[e] - 1;
    }
    levels_.clear();
    for (std::size_t e = 0; e < loads_.size(); ++e) {
      for (auto count = least_[e]; count <= most_copies(e) && loads_[e] / count > half; ++count) {
        levels_.push_back(loads_[e] / count);
      }
    }
    std::sort(levels_.begin(), levels_.end(), [](load_t a, load_t b) { return a > b; });
    levels_.erase(std::unique(levels_.begin(), levels_.end()), levels_.end());
    first_spare_level_ = first_spare_level();
    options_.clear();
    first_option_.clear();
    for (std::size_t e = 0; e < loads_.size(); ++e) {
      first_option_.push_back(options_.size());
      collect_options(e, half);
    }
    first_option_.push_back(options_.size());
    return true;
  }
  [[nodiscard]] index_t most_copies(std::size_t expert) const noexcept {
    return std::min(num_ranks_, least_[expert] + free_);
  }
  void collect_options(std::size_t expert, load_t half) {
    auto const num_levels = static_cast<index_t>(levels_.size());
    index_t last_small = num_levels + 1;
    for (auto count = least_[expert]; count <= most_copies(expert); ++count) {
      auto const load = loads_[expert] / count;
      bool const big = load > half;
      // Levels at or below a big copy's load count it; levels at or below limit - load count a small one.
      auto const position = first_level_at_most(big ? load : limit_ - load);
      // Further small copies that count no earlier are what any spare can do.
      if (!big && position == last_small && position >= first_spare_level_) { continue; }
      options_.push_back({count, count - least_[expert], position, big ? count : -count, 0});
      if (!big) { last_small = position; }
    }
  }
  /// From this level on, any spare adds one small copy: it splits an expert that is as light in one piece.
  [[nodiscard]] index_t first_spare_level() {
    auto const splitters = static_cast<std::size_t>(free_ / std::max(num_ranks_ - 1, 1));
    if (splitters >= loads_.size()) { return static_cast<index_t>(levels_.size()); }
    lightest_.assign(loads_.begin(), loads_.end());
    auto const last = lightest_.begin() + static_cast<std::ptrdiff_t>(splitters);
    std::nth_element(lightest_.begin(), last, lightest_.end());
    return first_level_at_most(limit_ - *last);
  }
  [[nodiscard]] index_t first_level_at_most(load_t load) const noexcept {
    auto const found = std::partition_point(levels_.begin(), levels_.end(), [load](load_t v) { return v > load; });
    return static_cast<index_t>(found - levels_.begin());
  }

  /// Multipliers belong to levels, so they carry over to the next limit.
  void recall_prices() {
    prices_.assign(levels_.size(), 0);
    std::size_t i = 0;
    for (auto const& old : multiplier_of_level_) {
      while (i + 1 < levels_.size() && levels_[i] > old.level) { ++i; }
      if (i < levels_.size()) { prices_[i] += old.price; }
    }
  }

  /// Raise the bound on the spares needed. False when it exceeds the spares: a proof that the limit is out of reach.
  [[nodiscard]] bool bound_by_prices(std::int64_t& work) {
    auto const budget = one * free_;
    best_value_ = std::numeric_limits<std::int64_t>::min();
    best_prices_.assign(prices_.begin(), prices_.end());
    direction_.assign(levels_.size(), 0);
    std::int64_t reach_for = one;  // how much better than the best value each step aims to be
    int idle = 0;
    for (int step = 0; step < max_steps && work > 0; ++step) {
      auto const value = evaluate_prices();
      work -= static_cast<std::int64_t>(options_.size());
      if (value > best_value_) {
        if (value > best_value_ + reach_for / 4) { idle = 0; }
        best_value_ = value;
        best_prices_.assign(prices_.begin(), prices_.end());
      }
      if (best_value_ > budget) { break; }
      if (++idle > patience) {
        reach_for = reach_for * 5 / 8;
        idle = 0;
        prices_.assign(best_prices_.begin(), best_prices_.end());
        std::fill(direction_.begin(), direction_.end(), 0);
        static_cast<void>(evaluate_prices());
      }
      std::int64_t norm = 0;
      for (std::size_t i = 0; i < direction_.size(); ++i) {
        // Levels that are satisfied and cost nothing do not pull.
        auto const pull = prices_[i] == 0 && violation_[i] < 0 ? 0 : std::int64_t{violation_[i]} * 256;
        direction_[i] = (direction_[i] * memory + pull * (16 - memory)) / 16;
        norm += direction_[i] * direction_[i] / 65536;
      }
      if (norm == 0) { norm = 1; }
      auto const missing = best_value_ + reach_for - value;
      for (std::size_t i = 0; i < prices_.size(); ++i) {
        prices_[i] = std::max<std::int64_t>(prices_[i] + missing * direction_[i] / 256 / norm, 0);
      }
      project();
    }
    remember_prices();
    return best_value_ <= budget;
  }
  /// Keep the sum of the multipliers that any spare serves at `one`: beyond, ever more small copies would pay.
  void project() {
    auto const served =
        std::span{prices_}.subspan(std::min(static_cast<std::size_t>(first_spare_level_), prices_.size()));
    std::int64_t sum = 0;
    for (auto const price : served) { sum += price; }
    // Lower all by one amount, as far as they reach: the nearest point of the simplex.
    for (int round = 0; round < 3 && sum > one; ++round) {
      std::int64_t positive = 0;
      for (auto const price : served) { positive += price > 0 ? 1 : 0; }
      auto const cut = (sum - one + positive - 1) / positive;
      sum = 0;
      for (auto& price : served) {
        price = std::max<std::int64_t>(price - cut, 0);
        sum += price;
      }
    }
    if (sum > one) {
      for (auto& price : served) { price = price * one / sum; }
    }
  }
  void remember_prices() {
    multiplier_of_level_.clear();
    for (std::size_t i = 0; i < levels_.size(); ++i) {
      if (best_prices_[i] > 0) { multiplier_of_level_.push_back({levels_[i], best_prices_[i]}); }
    }
  }

  /// Price of counting from a level on, for each level: the sum of the multipliers from there to the end.
  void sum_prices(std::span<std::int64_t const> prices) {
    reach_.resize(prices.size() + 1);
    reach_[prices.size()] = 0;
    for (std::size_t i = prices.size(); i > 0; --i) { reach_[i - 1] = reach_[i] + prices[i - 1]; }
  }
  [[nodiscard]] std::int64_t priced(choice const& o) const noexcept {
    return o.extra * one + o.weight * reach_[static_cast<std::size_t>(o.position)];
  }
  /// Let every expert pick its cheapest option. Sets `violation_` to what the levels are short of then.
  [[nodiscard]] std::int64_t evaluate_prices() {
    sum_prices(prices_);
    violation_.assign(levels_.size() + 1, 0);
    std::int64_t total = 0;
    for (std::size_t e = 0; e + 1 < first_option_.size(); ++e) {
      auto best = first_option_[e];
      auto cheapest = priced(options_[best]);
      for (auto i = best + 1; i < first_option_[e + 1]; ++i) {
        auto const price = priced(options_[i]);
        if (price < cheapest) {
          cheapest = price;
          best = i;
        }
      }
      total += cheapest;
      violation_[static_cast<std::size_t>(options_[best].position)] += options_[best].weight;
    }
    violation_.pop_back();
    for (std::size_t i = 1; i < violation_.size(); ++i) { violation_[i] += violation_[i - 1]; }
    return total;
  }

  // ---- search ----

  /// An expert whose count the bound leaves open.
  struct open_expert {
    index_t expert;
    std::size_t first;  ///< its options
    std::size_t last;
    std::size_t chosen;    ///< the one it has now
    std::int64_t reduced;  ///< reduced cost that it adds to every solution below this node
    bool decided;
  };
  struct candidate {
    std::int64_t reduced;
    std::size_t index;
    std::size_t option;
  };

  [[nodiscard]] answer search(std::int64_t& work) {
    slack_ = one * free_ - best_value_;
    sum_prices(best_prices_);
    short_.assign(levels_.size() + 1, 0);
    banned_.assign(options_.size(), 0);
    base_counts_.resize(loads_.size());
    open_.clear();
    used_ = 0;
    for (std::size_t e = 0; e < loads_.size(); ++e) { open(e); }
    for (std::size_t i = 1; i < levels_.size(); ++i) { short_[i] += short_[i - 1]; }
    auto const granted = std::min<std::int64_t>(work / work_per_node, max_nodes);
    nodes_left_ = granted;
    bool const found = descend(0);
    work -= (granted - nodes_left_) * work_per_node;
    if (found) { return answer::yes; }
    return nodes_left_ > 0 ? answer::no : answer::unknown;
  }

  /// Drop the options that no solution can hold; experts left with several are open.
  void open(std::size_t e) {
    auto const first = first_option_[e];
    auto const last = first_option_[e + 1];
    auto cheapest = std::numeric_limits<std::int64_t>::max();
    for (auto i = first; i < last; ++i) { cheapest = std::min(cheapest, priced(options_[i])); }
    std::size_t num_kept = 0;
    auto chosen = first;
    for (auto i = first; i < last; ++i) {
      options_[i].reduced = priced(options_[i]) - cheapest;
      banned_[i] = options_[i].reduced > slack_ ? 1 : 0;
      if (banned_[i] != 0) { continue; }
      if (num_kept == 0) { chosen = i; }
      ++num_kept;
    }
    base_counts_[e] = options_[chosen].count;
    used_ += options_[chosen].extra;
    short_[static_cast<std::size_t>(options_[chosen].position)] += options_[chosen].weight;
    if (num_kept > 1) { open_.push_back({static_cast<index_t>(e), first, last, chosen, 0, false}); }
  }

  /// Look for a solution that extends the choices made. @param spent reduced cost that every one of them has
  [[nodiscard]] bool descend(std::int64_t spent) {
    if (--nodes_left_ <= 0 || used_ > free_) { return false; }
    auto const level = first_short_level();
    if (level == levels_.size()) {
      best_counts_.assign(base_counts_.begin(), base_counts_.end());
      for (auto const& o : open_) { best_counts_[static_cast<std::size_t>(o.expert)] = options_[o.chosen].count; }
      return true;
    }
    auto const first = candidates_.size();
    list_candidates(level, spent);
    auto const last = candidates_.size();
    bool found = false;
    auto tried = first;
    for (; tried < last && !found && nodes_left_ > 0; ++tried) {
      auto const [reduced, index, option] = candidates_[tried];
      auto const before = open_[index];
      if (spent + options_[option].reduced - before.reduced <= slack_) {
        choose(index, option);
        found = descend(spent + options_[option].reduced - before.reduced);
        if (found) { break; }
        choose(index, before.chosen);
        open_[index] = before;
      }
      // Every solution with this choice has been seen: the next ones do without, which may cost the expert more.
      banned_[option] = 1;
      open_[index].reduced = least_reduced(open_[index]);
      spent += open_[index].reduced - before.reduced;
      if (spent > slack_) {
        ++tried;
        break;
      }
    }
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
  void list_candidates(std::size_t level, std::int64_t spent) {
    auto const first = candidates_.size();
    for (std::size_t index = 0; index < open_.size(); ++index) {
      auto const& o = open_[index];
      if (o.decided) { continue; }
      for (auto i = o.chosen + 1; i < o.last; ++i) {
        auto const added = options_[i].reduced - o.reduced;
        if (banned_[i] == 0 && spent + added <= slack_ && helps(options_[o.chosen], options_[i], level)) {
          candidates_.push_back({added, index, i});
        }
      }
    }
    std::sort(candidates_.begin() + static_cast<std::ptrdiff_t>(first), candidates_.end(),
              [](candidate const& a, candidate const& b) {
                return a.reduced != b.reduced ? a.reduced < b.reduced : a.option < b.option;
              });
  }
  [[nodiscard]] std::int64_t least_reduced(open_expert const& o) const noexcept {
    auto least = options_[o.chosen].reduced;
    for (auto i = o.first; i < o.last && !o.decided; ++i) {
      if (banned_[i] == 0) { least = std::min(least, options_[i].reduced); }
    }
    return least;
  }
  [[nodiscard]] std::size_t first_short_level() const noexcept {
    auto const first_spare = static_cast<std::size_t>(first_spare_level_);
    auto const spare = free_ - used_;
    std::size_t level = 0;
    while (level < levels_.size() && short_[level] <= (level < first_spare ? 0 : spare)) { ++level; }
    return level;
  }
  [[nodiscard]] bool helps(choice const& from, choice const& to, std::size_t level) const noexcept {
    auto const at = [level](choice const& o) { return static_cast<std::size_t>(o.position) <= level ? o.weight : 0; };
    return at(from) - at(to) > (static_cast<index_t>(level) < first_spare_level_ ? 0 : to.extra - from.extra);
  }
  void choose(std::size_t index, std::size_t option) noexcept {
    auto& o = open_[index];
    shift(options_[o.chosen], -1);
    shift(options_[option], +1);
    o.chosen = option;
    o.reduced = options_[option].reduced;
    o.decided = true;
  }
  void shift(choice const& o, index_t sign) noexcept {
    used_ += sign * o.extra;
    for (auto i = static_cast<std::size_t>(o.position); i < levels_.size(); ++i) { short_[i] += sign * o.weight; }
  }

  /// Spend what is left on the lightest copies.
  void complete(std::span<index_t> counts) {
    index_t left = 2 * num_ranks_;
    for (auto const count : counts) { left -= count; }
    for (; left > 0; --left) {
      std::size_t best = loads_.size();
      for (std::size_t e = 0; e < loads_.size(); ++e) {
        if (counts[e] >= num_ranks_) { continue; }
        if (best == loads_.size() || loads_[e] / counts[e] < loads_[best] / counts[best]) { best = e; }
      }
      ++counts[best];
    }
  }

  std::span<load_t const> loads_;
  index_t num_ranks_ = 0;
  index_t spares_ = 0;
  index_t free_ = 0;
  load_t limit_ = 0;
  std::vector<index_t> least_;
  std::vector<load_t> levels_;
  std::vector<choice> options_;
  std::vector<std::size_t> first_option_;
  std::vector<level_price> multiplier_of_level_;
  std::vector<std::int64_t> prices_;
  std::vector<std::int64_t> best_prices_;
  std::int64_t best_value_ = 0;
  std::vector<std::int64_t> direction_;
  std::vector<std::int64_t> reach_;
  std::vector<index_t> violation_;
  std::vector<run_of_copies> sorted_;
  std::vector<load_t> copies_;
  std::vector<load_t> lightest_;
  index_t first_spare_level_ = 0;
  std::int64_t slack_ = 0;
  std::vector<index_t> short_;
  index_t used_ = 0;
  std::int64_t nodes_left_ = 0;
  std::vector<index_t> base_counts_;
  std::vector<index_t> best_counts_;
  std::vector<open_expert> open_;
  std::vector<candidate> candidates_;
  std::vector<unsigned char> banned_;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
