// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_SIMULATED_DEVICE_ORDERING_HPP
#define BALLAST_TESTS_SUPPORT_SIMULATED_DEVICE_ORDERING_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ballast_test::simulated {

/// What is known to have happened before something: for each stream the number of its operations.
class vector_clock {
public:
  [[nodiscard]] std::uint64_t at(std::size_t stream) const noexcept {
    return stream < counts_.size() ? counts_[stream] : 0;
  }
  void set(std::size_t stream, std::uint64_t count) {
    if (stream >= counts_.size()) { counts_.resize(stream + 1); }
    counts_[stream] = count;
  }
  void join(vector_clock const& other) {
    if (counts_.size() < other.counts_.size()) { counts_.resize(other.counts_.size()); }
    for (std::size_t i = 0; i < other.counts_.size(); ++i) { counts_[i] = std::max(counts_[i], other.counts_[i]); }
  }

private:
  std::vector<std::uint64_t> counts_;
};

/// An operation, by its number on its stream.
struct operation_id {
  std::size_t stream = 0;
  std::uint64_t number = 0;
  std::string_view name;  ///< of static storage

  [[nodiscard]] bool is_before(vector_clock const& clock) const noexcept { return clock.at(stream) >= number; }
};

/// What an operation does to bytes. Additions are atomic: their order among each other does not matter.
enum class access_kind : unsigned char { reads, writes, adds };

/// Who read and wrote which bytes of a block of memory. Accesses that everything to come is ordered behind are
/// forgotten.
class access_log {
public:
  struct access {
    std::size_t begin;
    std::size_t end;
    access_kind kind;
    operation_id by;
    std::shared_ptr<bool const> is_void{};  ///< true: it is of no consequence any more; null: never
  };

  /// Note an access down. @param clock of the operation @param observed what the host has seen done
  /// @return an earlier access that conflicts and is not ordered before it; null if there is none
  access const* add(access next, vector_clock const& clock, vector_clock const& observed) {
    bool found = false;
    std::erase_if(accesses_, [this, &next, &clock, &observed, &found](access const& old) {
      if (old.by.is_before(observed) || (old.is_void != nullptr && *old.is_void)) { return true; }
      bool const overlaps = old.begin < next.end && next.begin < old.end;
      if (!overlaps || (old.kind == next.kind && next.kind != access_kind::writes)) { return is_repeated(old, next); }
      if (!old.by.is_before(clock)) {
        if (!found) { conflict_ = old; }
        found = true;
        return false;
      }
      return next.kind == access_kind::writes && next.begin <= old.begin && old.end <= next.end;
    });
    accesses_.push_back(std::move(next));
    return found ? &conflict_ : nullptr;
  }

private:
  [[nodiscard]] static bool is_repeated(access const& old, access const& next) noexcept {
    return old.by.stream == next.by.stream && old.kind == next.kind && next.begin <= old.begin && old.end <= next.end;
  }

  std::vector<access> accesses_;
  access conflict_{};
};

}  // namespace ballast_test::simulated

#endif
