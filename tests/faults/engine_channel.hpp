// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_FAULTS_ENGINE_CHANNEL_HPP
#define BALLAST_TESTS_FAULTS_ENGINE_CHANNEL_HPP

#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/posix/process_group.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace ballast_test {

/// The all-gather of an engine: it knows nothing of votes, and may succeed on one rank and fail on another.
struct gather_of_group {
  ballast::posix::process_group* group;
  bool strict = false;  ///< a rank that comes too late fails, whatever the others have sent

  ballast::status operator()(std::span<std::uint64_t const> mine, std::span<std::uint64_t> all,
                             ballast::nanoseconds_t timeout) const {
    auto const deadline = ballast::detail::deadline_after(timeout);
    auto result = group->all_gather(mine, all, timeout);
    if (!strict || !result.ok() || ballast::detail::now() <= deadline) { return result; }
    auto const rank = group->rank();
    return {ballast::errc::deadline_exceeded,
            ballast::detail::concat("all-gather: rank ", rank, " came after its deadline"), rank};
  }
};
struct membership_of_group {
  ballast::posix::process_group const* group;
  std::uint64_t operator()() const { return group->membership(); }
};

/// What a rank tells the others between two steps.
struct engine_word {
  enum phase : std::uint64_t { works, meets, settles, resumes, serves, judges };
  static constexpr std::size_t max_values = 6;

  phase in = works;
  std::uint64_t flag = 0;
  std::array<std::uint64_t, max_values> values{};
};

/// The engine's own exchange between its ranks, which works whatever becomes of the rebalancers.
class engine_channel {
public:
  static constexpr ballast::nanoseconds_t patience = 60'000'000'000;

  explicit engine_channel(ballast::posix::process_group& group) : group_{&group} {}

  /// @return success when the words of all ranks are here, those of the lowest live rank for ranks that were expelled
  [[nodiscard]] ballast::status tell(engine_word const& word, ballast::nanoseconds_t timeout = patience,
                                     bool strict = false) {
    std::array<std::uint64_t, num_words> mine{word.in, word.flag};
    std::ranges::copy(word.values, mine.begin() + 2);
    all_.resize(num_words * static_cast<std::size_t>(group_->num_ranks()));
    return gather_of_group{group_, strict}(mine, all_, timeout);
  }
  [[nodiscard]] ballast::index_t num_ranks() const { return group_->num_ranks(); }
  [[nodiscard]] std::uint64_t phase_of(std::size_t rank) const { return all_[rank * num_words]; }
  [[nodiscard]] std::uint64_t flag_of(std::size_t rank) const { return all_[rank * num_words + 1]; }
  [[nodiscard]] std::uint64_t value_of(std::size_t rank, std::size_t i) const { return all_[rank * num_words + 2 + i]; }
  [[nodiscard]] std::vector<std::uint64_t> values(std::size_t i) const {
    std::vector<std::uint64_t> found;
    for (std::size_t at = 2 + i; at < all_.size(); at += num_words) { found.push_back(all_[at]); }
    return found;
  }
  [[nodiscard]] std::uint64_t max_value(std::size_t i) const { return std::ranges::max(values(i)); }
  template <class Predicate>
  [[nodiscard]] bool any(Predicate of_rank) const {
    for (std::size_t rank = 0; rank * num_words < all_.size(); ++rank) {
      if (of_rank(rank)) { return true; }
    }
    return false;
  }
  [[nodiscard]] bool any_flag(std::uint64_t flag) const {
    return any([&](std::size_t rank) { return flag_of(rank) == flag; });
  }

private:
  static constexpr std::size_t num_words = 2 + engine_word::max_values;

  ballast::posix::process_group* group_;
  std::vector<std::uint64_t> all_;  // [R, num_words]
};

}  // namespace ballast_test

#endif
