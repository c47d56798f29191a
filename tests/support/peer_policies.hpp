// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_PEER_POLICIES_HPP
#define BALLAST_TESTS_SUPPORT_PEER_POLICIES_HPP

#include <ballast/placement/placement.hpp>
#include <ballast/policies/policy.hpp>
#include <ballast/topology.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <numeric>
#include <set>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

// What other engines do, written anew from descriptions of it: oracles to compare plans with. They plan for equal ranks
// that are all alive, plainly rather than fast, and follow their models where these waste slots.
namespace ballast_test {

using ballast::index_t;
using ballast::load_t;

/// A policy from a function that fills the row of one layer: `fill(loads [E], current row [P], where, row out [P])`.
template <class Peer>
struct peer_policy {
  [[nodiscard]] ballast::status plan(ballast::load_history_view history, ballast::placement const& current,
                                     ballast::topology const& where, ballast::placement& next) const {
    next = current;
    next.drop_shares();
    std::vector<load_t> loads(static_cast<std::size_t>(history.num_logical()));
    for (index_t layer = 0; layer < history.num_layers(); ++layer) {
      ballast::sum_buckets(history, layer, loads);
      auto const now = current.logical_of_slot(layer);
      std::vector<index_t> row{now.begin(), now.end()};
      Peer::fill(loads, now, where, row);
      auto const map = next.edit(layer).logical_of_slot;
      std::copy(row.begin(), row.end(), map.begin());
      next.index_replicas(layer);
    }
    return {};
  }
  [[nodiscard]] ballast::status validate() const { return {}; }
  void describe(ballast::digest& out) const { out.add(Peer::name); }
};

/// Copies of each expert if every spare slot goes to the one whose copies are heaviest; of equal ones to the last.
inline std::vector<index_t> copies_of_heaviest(std::span<load_t const> loads, index_t num_slots) {
  std::vector<index_t> copies(loads.size(), 1);
  auto const per_copy = [&](std::size_t e) { return static_cast<double>(loads[e]) / copies[e]; };
  for (auto spare = num_slots - static_cast<index_t>(loads.size()); spare > 0; --spare) {
    std::size_t heaviest = 0;
    for (std::size_t e = 1; e < loads.size(); ++e) {
      if (per_copy(e) >= per_copy(heaviest)) { heaviest = e; }
    }
    ++copies[heaviest];
  }
  return copies;
}

/// Sort, what is equal as it was. (`std::stable_sort` of this library needs a function that is deprecated.)
template <class T, class Before>
void sort_in_place(std::vector<T>& values, Before before) {
  for (auto at = values.begin(); at != values.end(); ++at) {
    std::rotate(std::upper_bound(values.begin(), at, *at, before), at, at + 1);
  }
}

/// All copies, the heaviest first: pairs of load and expert.
inline std::vector<std::pair<double, index_t>> by_weight(std::span<load_t const> loads,
                                                         std::span<index_t const> copies) {
  std::vector<std::pair<double, index_t>> result;
  for (std::size_t e = 0; e < loads.size(); ++e) {
    for (index_t i = 0; i < copies[e]; ++i) {
      result.emplace_back(static_cast<double>(loads[e]) / copies[e], static_cast<index_t>(e));
    }
  }
  sort_in_place(result, [](auto const& a, auto const& b) { return a.first > b.first; });
  return result;
}

/// Fills ranks slot by slot, and knows what each carries.
class rank_filler {
public:
  rank_filler(ballast::topology const& where, std::span<index_t> row)
      : where_{where},
        row_{row},
        load_(static_cast<std::size_t>(where.num_ranks())),
        filled_(static_cast<std::size_t>(where.num_ranks())) {}

  void put(index_t rank, index_t expert, double load) {
    auto const at = static_cast<std::size_t>(rank);
    row_[static_cast<std::size_t>(where_.first_slot(rank) + filled_[at]++)] = expert;
    load_[at] += load;
  }
  void put_on_lightest(index_t expert, double load) {
    index_t lightest = -1;
    for (index_t rank = 0; rank < where_.num_ranks(); ++rank) {
      auto const at = static_cast<std::size_t>(rank);
      if (filled_[at] == where_.slots_per_rank()) { continue; }
      if (lightest < 0 || load_[at] < load_[static_cast<std::size_t>(lightest)]) { lightest = rank; }
    }
    put(lightest, expert, load);
  }

private:
  ballast::topology const& where_;
  std::span<index_t> row_;
  std::vector<double> load_;
  std::vector<index_t> filled_;
};

/// TensorRT-LLM: spare slots to the heaviest copies, all of equal share where nothing was counted; then the heaviest
/// copy first, to the lightest rank that has room.
struct tensorrt_llm_policy : peer_policy<tensorrt_llm_policy> {
  static constexpr std::string_view name{"tensorrt_llm"};

  [[nodiscard]] static std::vector<index_t> replicate(std::span<load_t const> loads, index_t num_slots) {
    auto const experts = static_cast<index_t>(loads.size());
    if (std::accumulate(loads.begin(), loads.end(), load_t{0}) > 0) { return copies_of_heaviest(loads, num_slots); }
    std::vector<index_t> copies(loads.size(), num_slots / experts);
    std::for_each(copies.begin(), copies.begin() + num_slots % experts, [](index_t& count) { ++count; });
    return copies;
  }
  static void fill(std::span<load_t const> loads, std::span<index_t const>, ballast::topology const& where,
                   std::span<index_t> row) {
    rank_filler ranks{where, row};
    for (auto const& [load, expert] : by_weight(loads, replicate(loads, where.num_slots()))) {
      ranks.put_on_lightest(expert, load);
    }
  }
};

/// SGLang's `deepseek_vec` for one sample of loads: spare slots to the heaviest copies, which are then dealt out as
/// cards, the heaviest first, back and forth over the ranks.
struct sglang_vec_policy : peer_policy<sglang_vec_policy> {
  static constexpr std::string_view name{"sglang_vec"};

  static void fill(std::span<load_t const> loads, std::span<index_t const>, ballast::topology const& where,
                   std::span<index_t> row) {
    rank_filler ranks{where, row};
    auto const copies = by_weight(loads, copies_of_heaviest(loads, where.num_slots()));
    for (std::size_t i = 0; i < copies.size(); ++i) {
      auto const card = static_cast<index_t>(i) % where.num_ranks();
      bool const is_back = static_cast<index_t>(i) / where.num_ranks() % 2 == 1;
      ranks.put(is_back ? where.num_ranks() - 1 - card : card, copies[i].second, copies[i].first);
    }
  }
};

/// xLLM: spare slots to the hottest expert, whose weight then shrinks in whole tokens; the spare copies first, in the
/// order of the experts, each to the lightest rank; then one copy of each expert, the heaviest first.
struct xllm_policy : peer_policy<xllm_policy> {
  static constexpr std::string_view name{"xllm"};

  static void fill(std::span<load_t const> loads, std::span<index_t const>, ballast::topology const& where,
                   std::span<index_t> row) {
    std::vector<load_t> weight{loads.begin(), loads.end()};
    std::vector<index_t> spare_copies(loads.size(), 0);
    for (auto spare = where.num_slots() - static_cast<index_t>(loads.size()); spare > 0; --spare) {
      auto const hottest = static_cast<std::size_t>(std::max_element(weight.begin(), weight.end()) - weight.begin());
      auto const copies = ++spare_copies[hottest];
      weight[hottest] = weight[hottest] * copies / (copies + 1);
    }
    // Every rank has room for so many spare copies.
    rank_filler ranks{where, row};
    for (std::size_t e = 0; e < loads.size(); ++e) {
      for (index_t i = 0; i < spare_copies[e]; ++i) {
        ranks.put_on_lightest(static_cast<index_t>(e), static_cast<double>(weight[e]));
      }
    }
    std::vector<index_t> const ones(loads.size(), 1);
    for (auto const& [load, expert] : by_weight(weight, ones)) { ranks.put_on_lightest(expert, load); }
  }
};

/// vllm-ascend's `swift`: from the placement in force, at most one expert from any rank to any other; spare slots are
/// given out anew, then experts of the hottest rank change places with lighter ones while that gains a hundredth of the
/// mean.
class swift_policy : public peer_policy<swift_policy> {
public:
  static constexpr std::string_view name{"swift"};

  static void fill(std::span<load_t const> loads, std::span<index_t const> now, ballast::topology const& where,
                   std::span<index_t> row) {
    swift_policy layer{loads, now, where};
    auto const before = layer.busiest_of(now);
    if (before < 1.01 * layer.mean_) { return; }
    layer.give_spare_slots();
    layer.exchange();
    if (layer.busiest_of(layer.row_) < before) { std::copy(layer.row_.begin(), layer.row_.end(), row.begin()); }
  }
  swift_policy() = default;

private:
  static constexpr index_t none = -1;
  static constexpr int most_exchanges = 100;

  swift_policy(std::span<load_t const> loads, std::span<index_t const> now, ballast::topology const& where)
      : where_{&where},
        loads_{loads.begin(), loads.end()},
        now_{now.begin(), now.end()},
        row_(now.size(), none),
        copies_(loads.size(), 1) {
    auto const ranks = static_cast<std::size_t>(where.num_ranks());
    sent_.assign(ranks * ranks, false);
    mean_ = static_cast<double>(std::accumulate(loads.begin(), loads.end(), load_t{0})) / where.num_ranks();
  }

  [[nodiscard]] double per_copy(index_t expert) const {
    auto const at = static_cast<std::size_t>(expert);
    return static_cast<double>(loads_[at]) / copies_[at];
  }
  [[nodiscard]] std::span<index_t> slots_of(index_t rank) {
    return std::span{row_}.subspan(static_cast<std::size_t>(where_->first_slot(rank)),
                                   static_cast<std::size_t>(where_->slots_per_rank()));
  }
  [[nodiscard]] bool holds(index_t rank, index_t expert) {
    auto const held = slots_of(rank);
    return std::find(held.begin(), held.end(), expert) != held.end();
  }
  [[nodiscard]] double load_of(index_t rank) {
    double load = 0;
    for (auto const expert : slots_of(rank)) { load += expert != none ? per_copy(expert) : 0; }
    return load;
  }
  [[nodiscard]] double busiest_of(std::span<index_t const> row) const {
    std::vector<index_t> copies(loads_.size(), 0);
    for (auto const expert : row) { ++copies[static_cast<std::size_t>(expert)]; }
    std::vector<double> per_rank(static_cast<std::size_t>(where_->num_ranks()), 0);
    for (std::size_t slot = 0; slot < row.size(); ++slot) {
      auto const expert = static_cast<std::size_t>(row[slot]);
      per_rank[static_cast<std::size_t>(where_->rank_of_slot(static_cast<index_t>(slot)))] +=
          static_cast<double>(loads_[expert]) / copies[expert];
    }
    return *std::max_element(per_rank.begin(), per_rank.end());
  }

  /// Book the transfer of an expert to a rank; false if no holder may send it there any more.
  [[nodiscard]] bool bring(index_t expert, index_t to) {
    index_t from = none;
    for (std::size_t slot = 0; slot < now_.size(); ++slot) {
      if (now_[slot] != expert) { continue; }
      auto const rank = where_->rank_of_slot(static_cast<index_t>(slot));
      if (rank == to) { return true; }
      if (from == none && !sent(rank, to)) { from = rank; }
    }
    if (from == none) { return false; }
    sent_[pair(from, to)] = true;
    received_.insert({to, expert});
    return true;
  }
  [[nodiscard]] std::size_t pair(index_t from, index_t to) const {
    return static_cast<std::size_t>(from) * static_cast<std::size_t>(where_->num_ranks()) +
           static_cast<std::size_t>(to);
  }
  [[nodiscard]] bool sent(index_t from, index_t to) const { return sent_[pair(from, to)]; }

  void give_spare_slots() {
    keep_first_copies();
    std::vector<double> weight{loads_.begin(), loads_.end()};
    std::vector<index_t> wanted;
    for (auto spare = std::count(row_.begin(), row_.end(), none); spare > 0; --spare) {
      auto const hottest = static_cast<std::size_t>(std::max_element(weight.begin(), weight.end()) - weight.begin());
      auto const extra = copies_[hottest]++;
      weight[hottest] *= static_cast<double>(extra + 1) / (extra + 2);
      wanted.push_back(static_cast<index_t>(hottest));
    }
    sort_in_place(wanted, [this](index_t a, index_t b) { return per_copy(a) > per_copy(b); });
    std::vector<index_t> homeless;
    for (auto const expert : wanted) {
      if (!place(expert)) { homeless.push_back(expert); }
    }
    fill_up(homeless);
  }
  /// The first copy of each expert, slot 0 of all ranks first, stays where it is.
  void keep_first_copies() {
    std::set<index_t> kept;
    for (index_t i = 0; i < where_->slots_per_rank(); ++i) {
      for (index_t rank = 0; rank < where_->num_ranks(); ++rank) {
        auto const slot = static_cast<std::size_t>(where_->first_slot(rank) + i);
        if (kept.insert(now_[slot]).second) { row_[slot] = now_[slot]; }
      }
    }
  }
  /// On the lightest rank with a free slot that does not hold the expert and can get it.
  bool place(index_t expert) {
    for (auto const rank : by_load()) {
      auto const held = slots_of(rank);
      auto const free = std::find(held.begin(), held.end(), none);
      if (free == held.end() || holds(rank, expert) || !bring(expert, rank)) { continue; }
      *free = expert;
      return true;
    }
    return false;
  }
  /// What is left of the slots keeps what it held; then the copies that found no home are fewer than was planned.
  void fill_up(std::vector<index_t> const& homeless) {
    for (auto const expert : homeless) { --copies_[static_cast<std::size_t>(expert)]; }
    for (std::size_t slot = 0; slot < row_.size(); ++slot) {
      if (row_[slot] != none) { continue; }
      row_[slot] = now_[slot];
      ++copies_[static_cast<std::size_t>(now_[slot])];
    }
  }
  [[nodiscard]] std::vector<index_t> by_load() {
    std::vector<std::pair<double, index_t>> order;
    for (index_t rank = 0; rank < where_->num_ranks(); ++rank) { order.emplace_back(load_of(rank), rank); }
    std::sort(order.begin(), order.end());
    std::vector<index_t> ranks;
    for (auto const& entry : order) { ranks.push_back(entry.second); }
    return ranks;
  }

  void exchange() {
    for (int i = 0; i < most_exchanges && exchange_one(); ++i) {}
  }
  /// The exchange of the hottest rank with the lightest one that has any which helps.
  bool exchange_one() {
    auto const ranks = by_load();
    auto const hot = ranks.back();
    auto const most = load_of(hot);
    for (auto const other : ranks) {
      if (other == hot || sent(hot, other) || sent(other, hot)) { continue; }
      auto const theirs = load_of(other);
      auto best = most - 0.01 * mean_;
      std::pair<index_t*, index_t*> chosen{nullptr, nullptr};
      for (auto& given : slots_of(hot)) {
        if (received_.contains({hot, given}) || holds(other, given)) { continue; }
        for (auto& taken : slots_of(other)) {
          if (received_.contains({other, taken}) || holds(hot, taken)) { continue; }
          auto const difference = per_copy(given) - per_copy(taken);
          auto const height = std::max(most - difference, theirs + difference);
          if (height <= best) {
            best = height;
            chosen = {&given, &taken};
          }
        }
      }
      if (chosen.first == nullptr) { continue; }
      sent_[pair(hot, other)] = sent_[pair(other, hot)] = true;
      received_.insert({other, *chosen.first});
      received_.insert({hot, *chosen.second});
      std::swap(*chosen.first, *chosen.second);
      return true;
    }
    return false;
  }

  ballast::topology const* where_ = nullptr;
  double mean_ = 0;
  std::vector<load_t> loads_;                       // [E]
  std::vector<index_t> now_;                        // [P]
  std::vector<index_t> row_;                        // [P] none: free
  std::vector<index_t> copies_;                     // [E]
  std::vector<bool> sent_;                          // [R, R] an expert goes from one to the other
  std::set<std::pair<index_t, index_t>> received_;  // (rank, expert)
};

/// As vllm-ascend's and xLLM's ranks start: consecutive experts, then as many of the next rank's as there is room for.
inline ballast::placement neighbours_placement(index_t num_layers, index_t num_logical,
                                               ballast::topology const& where) {
  std::vector<index_t> map;
  auto const own = num_logical / where.num_ranks();
  for (index_t layer = 0; layer < num_layers; ++layer) {
    for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
      for (index_t i = 0; i < where.slots_per_rank(); ++i) { map.push_back((rank * own + i) % num_logical); }
    }
  }
  ballast::placement result;
  result.assign({num_layers, num_logical, where.num_slots()}, map).or_throw();
  return result;
}

static_assert(ballast::placement_policy<tensorrt_llm_policy>);
static_assert(ballast::placement_policy<sglang_vec_policy>);
static_assert(ballast::placement_policy<xllm_policy>);
static_assert(ballast::placement_policy<swift_policy>);

}  // namespace ballast_test

#endif
