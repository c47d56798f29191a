// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_SHARES_QUOTAS_HPP
#define BALLAST_SHARES_QUOTAS_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/index.hpp>
#include <ballast/detail/options.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/shares/quota_row.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE

/// How far quotas are worked out; the same on every rank.
struct quota_options {
  index_t sweeps = 16;    ///< at most, over all pairs of replicas
  index_t searches = 48;  ///< at most, for what sweeps leave; 0: none
  /// Accepted is an excess of 2^-tolerance_bits over the lower bound; 31: none.
  index_t tolerance_bits = 11;
  /// Rows to which a grouped GEMM pads an expert's tokens: ranks are charged in tiles of so many, and quotas are whole
  /// tiles but for the last one of an expert. 1: tokens.
  index_t tile = 1;

  /// As many steps as it takes: the optimum.
  [[nodiscard]] static constexpr quota_options exact(index_t tile = 1) noexcept {
    return {16, std::numeric_limits<index_t>::max(), 31, tile};
  }
  /// Refuse values that make no sense, naming them.
  [[nodiscard]] status validate() const {
    auto const refuse = [](auto const&... parts) {
      return status{errc::invalid_option, detail::concat("quotas: ", parts...)};
    };
    if (sweeps < 0) { return refuse("sweeps is ", sweeps, ", must not be negative"); }
    if (searches < 0) { return refuse("searches is ", searches, ", must not be negative"); }
    if (tolerance_bits < 1 || tolerance_bits > 31) {
      return refuse("tolerance_bits is ", tolerance_bits, ", must be in [1, 31]");
    }
    if (tile < 1) { return refuse("tile is ", tile, ", must be at least 1"); }
    return {};
  }
  template <class Visit>
  void for_each_option(Visit visit) const {
    visit("sweeps", detail::option_bits(sweeps));
    visit("searches", detail::option_bits(searches));
    visit("tolerance_bits", detail::option_bits(tolerance_bits));
    visit("tile", detail::option_bits(tile));
  }
  void describe(digest& out) const { detail::describe_options(*this, out); }
};

/// What a solution is worth, in tiles (tokens, if a tile is one).
struct quota_balance {
  index_t max = 0;       ///< of the busiest rank
  index_t bound = 0;     ///< no quotas can bring it below that
  index_t resident = 0;  ///< of the busiest rank under the shares in force
  index_t total = 0;     ///< of all live ranks
  index_t sweeps = 0;
  index_t searches = 0;

  bool operator==(quota_balance const&) const = default;
};

/// Most tokens of a batch and layer: sums stay within 31 bits.
inline constexpr load_t max_batch_tokens = load_t{1} << 30;

/// Works out for one batch and layer how many of each expert's tokens each replica takes, so that the busiest rank has
/// as few as possible. Whole numbers; they add up to the expert's tokens.
///
/// *Sweeps*: each pair of replicas levels its two ranks out, class by class. *Searches*: what is still above the bound
/// goes along shortest paths of replicas to ranks below it, and where no path is left, the ranks that can be reached
/// are a bottleneck: their mean is a better bound. Enough searches give the optimum and the proof that it is one.
///
/// Kernels do the same steps in the same order: this is their oracle, number for number.
///
/// @threads distinct solvers are independent.
class quota_solver {
public:
  /// @param row      replicas of the layer; must live while results are read.
  /// @param tokens   [E] of the batch, of all ranks together, >= 0, at most `max_batch_tokens` together. Those of
  ///                 experts that no live rank holds are left out.
  /// @param from     where sweeps start: [movable] parts of an expert's tokens, as `parts` gave them for an earlier
  /// batch
  ///                 on the same row; must live while results are read. Empty: the shares in force. Ranks that start
  ///                 from different parts come to different quotas.
  /// @return what was reached: never above the shares in force where it starts from them; from other parts it may be.
  /// @pre `options.validate().ok()`; the row is published and has a live rank
  /// @complexity O(sweeps * pairs + searches * (movable + R)); allocates only while sizes grow.
  /// @throws std::bad_alloc
  /// @determinism integers, in ascending order of positions.
  quota_balance solve(quota_row row, std::span<index_t const> tokens, quota_options const& options = {},
                      std::span<index_t const> from = {}) {
    BALLAST_EXPECTS(tokens.size() == static_cast<std::size_t>(row.shape().num_logical), "quotas: tokens are not [E]");
    BALLAST_EXPECTS(options.validate().ok(), "quotas: options");
    BALLAST_EXPECTS(row.sizes().num_live_ranks > 0, "quotas: the row is not published, or has no live rank");
    check(tokens);
    auto const movable = static_cast<std::size_t>(row.sizes().num_movable);
    BALLAST_EXPECTS(from.empty() || from.size() == movable, "quotas: parts to start from are not [movable]");
    row_ = row;
    from_ = {row.share(), movable};
    start(tokens, options);
    auto const accepted = [this, &options] { return balance_.bound + (balance_.bound >> options.tolerance_bits); };
    balance_.resident = max_load();
    if (!from.empty()) {
      from_ = from;
      split(tokens, options.tile);
    }
    balance_.max = max_load();
    while (balance_.max > accepted() && balance_.sweeps < options.sweeps) {
      sweep(balance_.sweeps++);
      balance_.max = max_load();
    }
    while (balance_.max > accepted() && balance_.searches < options.searches) {
      ++balance_.searches;
      auto const target = search(balance_.bound, accepted());
      if (target != none) {
        hand_along(target, balance_.bound);
        balance_.max = max_load();
      } else {
        balance_.bound = mean_of_reached();  // grows: a source is above the bound, and no rank reached is below it
      }
    }
    to_tokens(tokens, options.tile);
    return balance_;
  }

  /// `[replicas]` tokens that each replica takes, by position.
  [[nodiscard]] std::span<index_t const> quotas() const noexcept { return quotas_; }
  /// `[R]` tiles of each rank.
  [[nodiscard]] std::span<index_t const> rank_loads() const noexcept { return load_; }
  /// The quotas as parts of an expert's tokens, for the next batch to start from.
  ///
  /// @param out  out: [movable] in units of 1 / `share_one`; an expert without tokens has what this batch started from.
  ///             May be what `solve` started from.
  void parts(std::span<index_t> out) const {
    BALLAST_EXPECTS(out.size() == from_.size(), "quotas: parts are not [movable]");
    for (index_t group = 0; group < row_.sizes().num_groups; ++group) {
      auto const first = row_.group_first()[group];
      auto const end = row_.group_first()[group + 1];
      auto const all = std::accumulate(quotas_.begin() + first, quotas_.begin() + end, index_t{0});
      for (index_t position = first; position < end; ++position) {
        detail::at(out, position) = all == 0
                                        ? detail::at(from_, position)
                                        : static_cast<index_t>(load_t{detail::at(quotas_, position)} * share_one / all);
      }
    }
  }

private:
  static constexpr index_t none = -1;
  static constexpr index_t unreached = std::numeric_limits<index_t>::max();

  /// Replicas of an expert of which one hands tokens to the other.
  struct path_step {
    index_t from;
    index_t to;
  };

  [[nodiscard]] static index_t divide_up(index_t a, index_t b) { return a / b + (a % b != 0 ? 1 : 0); }

  static void check(std::span<index_t const> tokens) {
    index_t signs = 0;
    load_t sum = 0;
    for (auto const of_expert : tokens) {
      signs |= of_expert;
      sum += of_expert;
    }
    if (signs >= 0 && sum <= max_batch_tokens) { return; }
    for ([[maybe_unused]] auto const of_expert : tokens) {
      BALLAST_EXPECTS_WITHIN(of_expert, 0, max_batch_tokens, "quotas: tokens of an expert");
    }
    BALLAST_EXPECTS_WITHIN(sum, 0, max_batch_tokens, "quotas: tokens of the batch");
  }

  /// What there is, the bound that follows from it, and every expert split by the shares in force.
  void start(std::span<index_t const> tokens, quota_options const& options) {
    auto const& sizes = row_.sizes();
    level_.resize(static_cast<std::size_t>(row_.shape().num_ranks));
    flow_.resize(static_cast<std::size_t>(sizes.num_movable));
    path_.reserve(level_.size());
    balance_ = {};
    stay(tokens, options.tile);
    balance_.bound = max_load();
    split(tokens, options.tile);
    balance_.total = std::accumulate(load_.begin(), load_.end(), index_t{0});
    balance_.bound = std::max(balance_.bound, divide_up(balance_.total, sizes.num_live_ranks));
  }
  /// What cannot be split, where it is.
  void stay(std::span<index_t const> tokens, index_t tile) {
    load_.assign(static_cast<std::size_t>(row_.shape().num_ranks), 0);
    for (index_t position = row_.sizes().num_movable; position < row_.sizes().num_replicas; ++position) {
      auto const& at = row_.holders()[position];
      load_[at.rank] += divide_up(tokens[at.expert], tile);
    }
  }
  /// Every expert by the parts to start from.
  void split(std::span<index_t const> tokens, index_t tile) {
    stay(tokens, tile);
    for (index_t group = 0; group < row_.sizes().num_groups; ++group) {
      auto const first = row_.group_first()[group];
      auto const end = row_.group_first()[group + 1];
      auto const all = divide_up(tokens[row_.holders()[first].expert], tile);
      auto rest = all;
      for (index_t position = first; position < end; ++position) {
        auto const wanted = static_cast<index_t>(load_t{all} * detail::at(from_, position) / share_one);
        auto const load = position + 1 == end ? rest : wanted;
        rest -= load;
        detail::at(flow_, position) = load;
        load_[row_.holders()[position].rank] += load;
      }
    }
  }

  [[nodiscard]] index_t max_load() const { return *std::max_element(load_.begin(), load_.end()); }

  // ---- sweeps ----

  /// Level every pair's ranks out. From the third sweep on large steps go a quarter too far, which gets further sooner.
  /// What cannot be halved goes to one side or the other in turn, and so finds its way.
  void sweep(index_t number) {
    index_t begin = 0;
    for (index_t c = 0; c < row_.sizes().num_classes; ++c) {
      auto const end = row_.class_end()[c];
      for (index_t i = begin; i < end; ++i) { level_out(row_.pairs()[i], number, i - begin); }
      begin = end;
    }
  }
  void level_out(quota_pair const& pair, index_t sweep, index_t place_in_class) {
    constexpr index_t few = 16;
    constexpr index_t first_long = 2;
    auto& load_a = load_[pair.rank_a];
    auto& load_b = load_[pair.rank_b];
    auto const difference = load_a - load_b;
    auto step = (difference + ((sweep + place_in_class) & 1)) >> 1;
    if (sweep >= first_long && (difference > few || difference < -few)) { step += difference >> 3; }
    auto const moved = std::clamp(step, -flow_[pair.b], flow_[pair.a]);
    flow_[pair.a] -= moved;
    flow_[pair.b] += moved;
    load_a -= moved;
    load_b += moved;
  }

  // ---- searches ----

  /// Find the nearest rank below the bound that ranks above `accepted` can hand tokens to; of equally near ones the
  /// lightest. @return `none` if there is none.
  [[nodiscard]] index_t search(index_t bound, index_t accepted) {
    for (index_t rank = 0; rank < row_.shape().num_ranks; ++rank) {
      detail::at(level_, rank) = detail::at(load_, rank) > accepted ? 0 : unreached;
    }
    index_t target = none;
    bool grows = true;
    for (index_t level = 0; grows && target == none; ++level) {
      grows = reach_from(level);
      target = lightest_below(bound, level + 1);
    }
    return target;
  }
  /// Reach the ranks that those of a level can hand tokens to. @return false if there is none that is not reached
  [[nodiscard]] bool reach_from(index_t level) {
    bool any = false;
    for (index_t position = 0; position < row_.sizes().num_movable; ++position) {
      if (!hands_over(position, level)) { continue; }
      auto const group = row_.holders()[position].group;
      for (index_t other = row_.group_first()[group]; other < row_.group_first()[group + 1]; ++other) {
        auto& other_level = level_[row_.holders()[other].rank];
        if (other_level != unreached) { continue; }
        other_level = level + 1;
        any = true;
      }
    }
    return any;
  }
  [[nodiscard]] bool hands_over(index_t position, index_t level) const {
    return detail::at(flow_, position) > 0 && level_[row_.holders()[position].rank] == level;
  }
  [[nodiscard]] index_t lightest_below(index_t bound, index_t level) const {
    index_t lightest = none;
    for (index_t rank = 0; rank < row_.shape().num_ranks; ++rank) {
      if (detail::at(level_, rank) != level || detail::at(load_, rank) >= bound) { continue; }
      if (lightest == none || detail::at(load_, rank) < detail::at(load_, lightest)) { lightest = rank; }
    }
    return lightest;
  }
  /// Hand as much along the path to `target` as its replicas have, and both its ends can use.
  void hand_along(index_t target, index_t bound) {
    auto amount = bound - detail::at(load_, target);
    auto source = target;
    path_.clear();
    while (detail::at(level_, source) > 0) {
      path_.push_back(step_before(source));
      amount = std::min(amount, detail::at(flow_, path_.back().from));
      source = row_.holders()[path_.back().from].rank;
    }
    amount = std::min(amount, detail::at(load_, source) - bound);
    detail::at(load_, source) -= amount;
    detail::at(load_, target) += amount;
    for (auto const& step : path_) {
      detail::at(flow_, step.from) -= amount;
      detail::at(flow_, step.to) += amount;
    }
  }
  /// The step that reaches a rank: from the lowest rank of the level before, and there the lowest position.
  [[nodiscard]] path_step step_before(index_t rank) const {
    path_step best{none, none};
    for (auto i = row_.rank_first()[rank]; i < row_.rank_first()[rank + 1]; ++i) {
      auto const to = row_.by_rank()[i];
      auto const group = row_.holders()[to].group;
      for (index_t from = row_.group_first()[group]; from < row_.group_first()[group + 1]; ++from) {
        if (!hands_over(from, detail::at(level_, rank) - 1)) { continue; }
        auto const key = [this](index_t position) { return std::pair{row_.holders()[position].rank, position}; };
        if (best.from == none || key(from) < key(best.from)) { best = {from, to}; }
      }
    }
    return best;
  }
  /// Of the ranks that the last search reached, rounded up: their experts cannot leave them.
  [[nodiscard]] index_t mean_of_reached() const {
    load_t sum = 0;
    load_t count = 0;
    for (index_t rank = 0; rank < row_.shape().num_ranks; ++rank) {
      if (detail::at(level_, rank) == unreached) { continue; }
      sum += detail::at(load_, rank);
      ++count;
    }
    return static_cast<index_t>((sum + count - 1) / count);
  }

  /// Tiles to tokens; the last replica of an expert that has any takes what does not fill one.
  void to_tokens(std::span<index_t const> tokens, index_t tile) {
    auto const& sizes = row_.sizes();
    quotas_.resize(static_cast<std::size_t>(sizes.num_replicas));
    for (index_t position = sizes.num_movable; position < sizes.num_replicas; ++position) {
      detail::at(quotas_, position) = tokens[row_.holders()[position].expert];
    }
    for (index_t group = 0; group < sizes.num_groups; ++group) {
      auto const first = row_.group_first()[group];
      auto rest = tokens[row_.holders()[first].expert];
      for (index_t position = first; position < row_.group_first()[group + 1]; ++position) {
        auto const quota = static_cast<index_t>(
            std::min(static_cast<load_t>(rest), static_cast<load_t>(detail::at(flow_, position)) * tile));
        detail::at(quotas_, position) = quota;
        rest -= quota;
      }
    }
  }

  quota_row row_;
  std::span<index_t const> from_;  ///< [movable]
  quota_balance balance_;
  std::vector<index_t> load_;    ///< [R] tiles
  std::vector<index_t> flow_;    ///< [movable] tiles
  std::vector<index_t> quotas_;  ///< [replicas] tokens
  std::vector<index_t> level_;   ///< [R] hops from the nearest source, `unreached` where none reaches
  std::vector<path_step> path_;  ///< the last step first
};

BALLAST_END_NAMESPACE

#endif
