// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "serve.hpp"

#include <ballast/detail/clock.hpp>

#include "served_mode.hpp"

#include <algorithm>
#include <cstddef>
#include <deque>
#include <utility>

namespace engine {

namespace {

class serving_rank {
public:
  serving_rank(settings const& how, std::span<request const> requests, rank_links& links)
      : ranks_{links.exchange()}, turn_{how.turn}, may_lose_rank_{how.stop.rank >= 0} {
    for (std::size_t number = 0; number < how.modes.size(); ++number) {
      modes_.emplace_back(how, requests, number, links);
    }
    for (auto& one : modes_) { one.start().or_throw(); }
    // Nobody serves while another rank still gets memory.
    std::vector<std::uint64_t> all(static_cast<std::size_t>(ranks_.num_ranks()));
    ranks_.all_gather(std::vector<std::uint64_t>{1}, all).or_throw();
  }

  void serve_all() {
    while (auto* const one = next_mode()) {
      auto const began = ballast::detail::now();
      if (auto const result = one->step(); !result.ok()) { go_on_after(result, one->num_steps(), began); }
    }
    for (auto& one : modes_) { one.check_replicas(); }
  }

  void add_routing_up() { ranks_.all_reduce(modes_.front().routing()).or_throw(); }
  /// Compare with the reference what came out of all ranks; without one, with what came out of the first mode.
  void compare(std::size_t num_requests, std::vector<std::uint64_t> expected) {
    std::vector<std::int64_t> outcomes(num_requests);
    for (auto& one : modes_) {
      if (one.record().is_nonsense) { continue; }
      one.write_outcomes(outcomes);
      ranks_.all_reduce(outcomes).or_throw();
      if (expected.empty()) { expected.assign(outcomes.begin(), outcomes.end()); }
      for (std::size_t i = 0; i < expected.size(); ++i) {
        if (static_cast<std::uint64_t>(outcomes[i]) != expected[i]) { one.record().wrong.push_back(i); }
      }
    }
  }

  [[nodiscard]] serve_record take_record() {
    serve_record taken{{}, std::move(stop_), std::move(modes_.front().routing())};
    for (auto& one : modes_) { taken.modes.push_back(std::move(one.record())); }
    return taken;
  }

private:
  /// Modes take turns, and another one begins each time.
  [[nodiscard]] served_mode* next_mode() {
    auto const turns_of = [this](auto const& one) { return one.num_steps() / turn_; };
    auto const fewest = turns_of(*std::ranges::min_element(
        modes_, {}, [&](auto const& one) { return std::pair{one.is_done(), turns_of(one)}; }));
    for (std::size_t i = 0; i < modes_.size(); ++i) {
      auto& one = modes_[(i + static_cast<std::size_t>(fewest)) % modes_.size()];
      if (!one.is_done() && turns_of(one) == fewest) { return &one; }
    }
    return nullptr;
  }

  /// A rank does not answer: the others meet, take back what only some of them have finished, and serve without it.
  void go_on_after(ballast::status const& why, index_t pass, ballast::nanoseconds_t began) {
    auto const told = ballast::detail::now();
    if (!may_lose_rank_) { why.or_throw(); }
    if (why.rank() == ballast::status::no_rank || why.rank() == ranks_.rank() || stop_.rank >= 0) { why.or_throw(); }
    stop_ = {why.rank(), pass - 1, why.message(), told - began, 0};
    ranks_.go_on_without(stop_.rank).or_throw();
    std::vector<std::uint64_t> mine;
    mine.reserve(modes_.size());
    for (auto const& one : modes_) { mine.push_back(static_cast<std::uint64_t>(one.num_finished())); }
    std::vector<std::uint64_t> all(mine.size() * static_cast<std::size_t>(ranks_.num_ranks()));
    ranks_.all_gather(mine, all).or_throw();
    for (std::size_t number = 0; number < modes_.size(); ++number) {
      auto fewest = mine[number];
      for (auto i = number; i < all.size(); i += mine.size()) { fewest = std::min(fewest, all[i]); }
      modes_[number].undo_steps_after(static_cast<std::size_t>(fewest));
      modes_[number].go_on_without(stop_.rank).or_throw();
    }
    stop_.went_on_after = ballast::detail::now() - began;
  }

  token_exchange& ranks_;
  index_t turn_;
  bool may_lose_rank_;
  std::deque<served_mode> modes_;
  stop_record stop_;
};

}  // namespace

void serve(settings const& how, std::span<request const> requests, std::span<std::uint64_t const> expected,
           rank_links& links, serve_record& out) {
  serving_rank rank{how, requests, links};
  rank.serve_all();
  rank.compare(requests.size(), {expected.begin(), expected.end()});
  if (how.keeps_routing) { rank.add_routing_up(); }
  if (links.exchange().rank() == 0) { out = rank.take_record(); }
}

}  // namespace engine
