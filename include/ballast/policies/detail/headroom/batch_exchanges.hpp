// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POLICIES_DETAIL_HEADROOM_BATCH_EXCHANGES_HPP
#define BALLAST_POLICIES_DETAIL_HEADROOM_BATCH_EXCHANGES_HPP

#include <ballast/contract.hpp>
#include <ballast/detail/index.hpp>
#include <ballast/load/history.hpp>
#include <ballast/shares/replica_shares.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <span>
#include <tuple>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Exchanges single experts of a layer until every batch of a history can be split evenly by itself, not only their
/// sum: batches of different kinds of traffic in turn, say, which a plan for their sum takes for one of no kind.
class batch_exchanges {
public:
  batch_exchanges(topology const& where, index_t num_logical)
      : where_{where}, num_logical_{num_logical}, counts_(static_cast<std::size_t>(num_logical)) {}

  /// Take one layer's batches, of which each counts as much as any other. More than `most_batches` are added up into
  /// so many, neighbours with neighbours.
  void read(load_history_view history, index_t layer) {
    loads_.clear();
    num_batches_ = 0;
    auto const groups = std::min(history.num_buckets(), most_batches);
    sum_.resize(static_cast<std::size_t>(num_logical_));
    for (index_t group = 0; group < groups; ++group) {
      std::fill(sum_.begin(), sum_.end(), load_t{0});
      auto const begin = static_cast<index_t>(std::int64_t{group} * history.num_buckets() / groups);
      auto const end = static_cast<index_t>((std::int64_t{group} + 1) * history.num_buckets() / groups);
      for (auto bucket = begin; bucket < end; ++bucket) {
        auto const tokens = history.layer(bucket, layer);
        for (std::size_t expert = 0; expert < sum_.size(); ++expert) { sum_[expert] += tokens[expert]; }
      }
      append_batch();
    }
  }
  /// With fewer there is nothing here that the sum does not say.
  [[nodiscard]] bool has_several() const noexcept { return num_batches_ > 1; }

  /// `[E]` quadratic means over the batches: what is hot now and then counts for more than what is always lukewarm.
  void write_weights(std::span<load_t> out) const {
    for (index_t expert = 0; expert < num_logical_; ++expert) {
      load_t sum = 0;
      for (index_t batch = 0; batch < num_batches_; ++batch) { sum += load(batch, expert) * load(batch, expert); }
      out[static_cast<std::size_t>(expert)] = root(sum / num_batches_);
    }
  }

  /// Exchange single experts over the edge of the bottleneck of the worst batch while the sum of the squares of what
  /// batches exceed their mean by falls.
  ///
  /// @param map        in and out: [P] the layer.
  /// @param exchanges  most that are tried.
  [[nodiscard]] status improve(std::span<index_t> map, index_t exchanges) {
    if (auto result = open(map); !result.ok()) { return result; }
    while (exchanges > 0) {
      auto const worst = static_cast<index_t>(std::max_element(excess_.begin(), excess_.end()) - excess_.begin());
      if (at(excess_, worst) <= accepted) { break; }
      list_candidates(map, worst);
      bool better = false;
      for (auto next = candidates_.begin(); !better && next != candidates_.end() && exchanges > 0;
           ++next, --exchanges) {
        better = exchange(map, next->given, next->taken);
      }
      if (!better) { break; }
    }
    return {};
  }

private:
  /// Two slots whose single experts may change places.
  struct candidate {
    load_t error;
    index_t given;
    index_t taken;
  };

  static constexpr index_t most_batches = 8;
  static constexpr std::ptrdiff_t most_candidates = 8;  ///< tried before giving up
  static constexpr int batch_bits = 24;                 ///< a batch is scaled to 2^24 tokens
  static constexpr int excess_bits = 20;                ///< an excess is told in 2^-20 of the mean
  static constexpr load_t accepted = (load_t{1} << excess_bits) / 512;

  [[nodiscard]] load_t load(index_t batch, index_t expert) const {
    return loads_[static_cast<std::size_t>(batch) * static_cast<std::size_t>(num_logical_) +
                  static_cast<std::size_t>(expert)];
  }
  [[nodiscard]] std::span<load_t const> loads_of(index_t batch) const {
    auto const size = static_cast<std::size_t>(num_logical_);
    return std::span{loads_}.subspan(static_cast<std::size_t>(batch) * size, size);
  }
  /// What is in `sum_`, unless it is nothing.
  void append_batch() {
    auto const total = std::accumulate(sum_.begin(), sum_.end(), load_t{0});
    if (total == 0) { return; }
    auto const width = std::bit_width(static_cast<std::uint64_t>(total));
    auto const shift = std::max<int>(static_cast<int>(width) + batch_bits - 62, 0);
    for (auto const tokens : sum_) { loads_.push_back(((tokens >> shift) << batch_bits) / (total >> shift)); }
    ++num_batches_;
  }
  /// The whole part of a square root.
  [[nodiscard]] static load_t root(load_t square) {
    load_t result = 0;
    for (auto bit = load_t{1} << 30; bit > 0; bit >>= 1) {
      if ((result + bit) * (result + bit) <= square) { result += bit; }
    }
    return result;
  }

  [[nodiscard]] status open(std::span<index_t const> map) {
    solvers_.resize(static_cast<std::size_t>(num_batches_));
    excess_.resize(solvers_.size());
    means_.clear();
    for (index_t batch = 0; batch < num_batches_; ++batch) {
      auto const loads = loads_of(batch);
      auto const total = std::accumulate(loads.begin(), loads.end(), load_t{0});
      means_.push_back(std::max(total * load_unit / where_.num_live_ranks(), load_t{1}));
      if (auto result = at(solvers_, batch).open(where_, map, loads); !result.ok()) { return result; }
      at(excess_, batch) = solve(batch);
    }
    return {};
  }
  /// @return what the busiest rank has above the mean; capped, so that the squares of all batches fit together
  [[nodiscard]] load_t solve(index_t batch) {
    constexpr load_t most = load_t{1} << 29;
    auto const above = at(solvers_, batch).solve(share_precision::fast) - at(means_, batch);
    return std::clamp<load_t>(above / std::max<load_t>(at(means_, batch) >> excess_bits, 1), 0, most);
  }

  /// The pairs of singles inside and outside the bottleneck that come closest to what it has too much in this batch,
  /// and change other batches least.
  void list_candidates(std::span<index_t const> map, index_t worst) {
    list_singles(map, at(solvers_, worst));
    auto const ranks = bottleneck_size(at(solvers_, worst));
    auto const wanted = (at(solvers_, worst).max_load() - at(means_, worst)) / load_unit * ranks;
    candidates_.clear();
    for (auto const given : inside_) {
      for (auto const taken : outside_) {
        auto const mine = map[static_cast<std::size_t>(given)];
        auto const other = map[static_cast<std::size_t>(taken)];
        auto const less = load(worst, mine) - load(worst, other);
        if (less <= 0) { continue; }
        load_t harm = 0;
        for (index_t batch = 0; batch < num_batches_; ++batch) {
          if (batch != worst) { harm += magnitude(load(batch, mine) - load(batch, other)); }
        }
        candidates_.push_back({magnitude(less - wanted) + harm / (4 * (num_batches_ - load_t{1})), given, taken});
      }
    }
    auto const kept = std::min<std::ptrdiff_t>(most_candidates, static_cast<std::ptrdiff_t>(candidates_.size()));
    std::partial_sort(candidates_.begin(), candidates_.begin() + kept, candidates_.end(),
                      [](candidate const& a, candidate const& b) {
                        return std::tie(a.error, a.given, a.taken) < std::tie(b.error, b.given, b.taken);
                      });
    candidates_.resize(static_cast<std::size_t>(kept));
  }
  [[nodiscard]] index_t bottleneck_size(share_solver const& solver) const {
    index_t ranks = 0;
    for (index_t rank = 0; rank < where_.num_ranks(); ++rank) {
      ranks += where_.is_live(rank) && solver.is_bottleneck(rank) ? 1 : 0;
    }
    return ranks;
  }
  void list_singles(std::span<index_t const> map, share_solver const& solver) {
    std::fill(counts_.begin(), counts_.end(), 0);
    auto const is_live = [this](index_t slot) { return where_.is_live(where_.rank_of_slot(slot)); };
    for (index_t slot = 0; slot < where_.num_slots(); ++slot) {
      at(counts_, map[static_cast<std::size_t>(slot)]) += is_live(slot) ? 1 : 0;
    }
    inside_.clear();
    outside_.clear();
    for (index_t slot = 0; slot < where_.num_slots(); ++slot) {
      if (!is_live(slot) || at(counts_, map[static_cast<std::size_t>(slot)]) != 1) { continue; }
      (solver.is_bottleneck(where_.rank_of_slot(slot)) ? inside_ : outside_).push_back(slot);
    }
  }

  /// @return whether it was better, and so was done
  [[nodiscard]] bool exchange(std::span<index_t> map, index_t given, index_t taken) {
    auto& mine = map[static_cast<std::size_t>(given)];
    auto& other = map[static_cast<std::size_t>(taken)];
    auto const before = squared_excess();
    solvers_before_ = solvers_;
    excess_before_ = excess_;
    for (index_t batch = 0; batch < num_batches_; ++batch) {
      auto& solver = at(solvers_, batch);
      solver.replace(given, other);
      solver.replace(taken, mine);
      at(excess_, batch) = solve(batch);
    }
    if (squared_excess() < before) {
      std::swap(mine, other);
      return true;
    }
    std::swap(solvers_, solvers_before_);
    std::swap(excess_, excess_before_);
    return false;
  }

  [[nodiscard]] load_t squared_excess() const {
    return std::inner_product(excess_.begin(), excess_.end(), excess_.begin(), load_t{0});
  }
  [[nodiscard]] static load_t magnitude(load_t value) { return value < 0 ? -value : value; }

  topology const& where_;
  index_t num_logical_;
  index_t num_batches_ = 0;
  std::vector<load_t> loads_;  ///< [batches, E], each batch 2^24 tokens or a little less
  std::vector<load_t> sum_;    ///< [E]
  std::vector<share_solver> solvers_;
  std::vector<share_solver> solvers_before_;
  std::vector<load_t> means_;   ///< [batches] of a rank, in load units
  std::vector<load_t> excess_;  ///< [batches] of the busiest rank over the mean
  std::vector<load_t> excess_before_;
  std::vector<index_t> counts_;  ///< [E] live replicas
  std::vector<index_t> inside_;  ///< slots of single experts, of the bottleneck
  std::vector<index_t> outside_;
  std::vector<candidate> candidates_;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
