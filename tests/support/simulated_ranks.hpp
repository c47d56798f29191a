// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_SIMULATED_RANKS_HPP
#define BALLAST_TESTS_SUPPORT_SIMULATED_RANKS_HPP

#include <ballast/load/alignment.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace ballast_test {

/// What `aligned_history` came to on one rank.
struct aligned {
  ballast::status result;
  std::vector<ballast::load_t> history;
};

/// Let every rank align its history, one after the other in this thread: a rank is asked again from the start until the
/// words that it waits for are known.
///
/// @param tamper  may change the words of a round before the ranks get them.
template <class Recorder, class Tamper>
[[nodiscard]] std::vector<aligned> align_all(std::vector<Recorder>& ranks, Tamper tamper) {
  std::vector<std::vector<std::uint64_t>> rounds;  // words of all ranks
  for (;;) {
    std::vector<aligned> results(ranks.size());
    std::vector<std::uint64_t> next;
    std::size_t waiting = 0;
    std::size_t words_per_rank = 0;
    for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
      std::size_t round = 0;
      auto const gather = [&](std::span<std::uint64_t const> mine, std::vector<std::uint64_t>& all) -> ballast::status {
        if (round < rounds.size()) {
          all = rounds[round++];
          return {};
        }
        if (waiting > 0 && mine.size() != words_per_rank) { return {ballast::errc::internal, "unlike sizes"}; }
        words_per_rank = mine.size();
        ++waiting;
        next.insert(next.end(), mine.begin(), mine.end());
        return {ballast::errc::busy, "not all ranks are here"};
      };
      results[rank].result = ballast::aligned_history(ranks[rank], gather, results[rank].history);
    }
    if (waiting == 0) { return results; }
    if (waiting != ranks.size()) {
      for (auto& one : results) { one.result = {ballast::errc::internal, "ranks make unlike calls"}; }
      return results;
    }
    tamper(rounds.size(), std::span{next});
    rounds.push_back(next);
  }
}
template <class Recorder>
[[nodiscard]] std::vector<aligned> align_all(std::vector<Recorder>& ranks) {
  return align_all(ranks, [](std::size_t, std::span<std::uint64_t>) {});
}

}  // namespace ballast_test

#endif
