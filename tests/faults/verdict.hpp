// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_FAULTS_VERDICT_HPP
#define BALLAST_TESTS_FAULTS_VERDICT_HPP

#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include "faults/fault.hpp"
#include "faults/rank_life.hpp"
#include "support/processes.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

namespace ballast_test {

/// What one rank reported.
struct rank_report {
  bool ended = false;
  bool complained = false;  ///< said something that is an error in itself
  std::string complaint;
  ballast::nanoseconds_t strike = 0;
  ballast::nanoseconds_t error_at = 0;
  int error_code = 0;
  std::string error;
  int state = -1;
  bool bytes_right = false;
  std::array<std::uint64_t, fault_shape::num_layers> epochs{};
  std::array<std::vector<ballast::index_t>, fault_shape::num_layers> maps;

  [[nodiscard]] bool failed() const noexcept { return error_at != 0; }
  /// Runs forward passes: it has ended well or failed, and neither lost its cohort nor was expelled.
  [[nodiscard]] bool serves() const noexcept {
    return ended && state != static_cast<int>(ballast::rebalancer_state::cohort_lost) &&
           error_code != static_cast<int>(ballast::errc::stale_membership);
  }
};

[[nodiscard]] inline rank_report read_report(std::string const& text) {
  rank_report report;
  for (auto const& line : lines_of(text)) {
    std::istringstream words{line};
    std::string first;
    words >> first;
    if (first == "strike") {
      words >> report.strike;
    } else if (first == "error") {
      words >> report.error_at >> report.error_code;
      std::getline(words, report.error);
    } else if (first == "state") {
      words >> report.state;
    } else if (first == "bytes") {
      report.bytes_right = line == "bytes right";
      if (!report.bytes_right) { report.complaint = line; }
    } else if (first == "layer") {
      std::size_t layer = 0;
      std::string epoch;
      words >> layer >> epoch >> report.epochs.at(layer);
      for (ballast::index_t expert = 0; words >> expert;) { report.maps.at(layer).push_back(expert); }
    } else if (first == "ends") {
      report.ended = true;
    } else if (first == "cannot" || first == "the" || first == "exception") {
      report.complained = true;
      report.complaint = line;
    }
  }
  return report;
}

/// What a fault did to a group.
struct verdict {
  bool struck = false;
  int hangs = 0;          ///< ranks that did not come back
  int wrong_bytes = 0;    ///< ranks that hold other bytes than their tables say
  int lost_experts = 0;   ///< experts without a live replica
  int split_epochs = 0;   ///< layers for which two serving ranks name different epochs or maps
  int without_cause = 0;  ///< survivors without an error, or with one that does not name the rank at fault
  int by_chain = 0;       ///< survivors whose error names a rank whose error names the rank at fault
  int too_late = 0;       ///< survivors whose error came after twice the deadline
  int not_serving = 0;    ///< survivors that must not serve
  int caught = 0;         ///< for faults that can only be detected: the tests noticed
  ballast::nanoseconds_t slowest = 0;
  std::string detail;  ///< the first thing that is wrong

  [[nodiscard]] bool good() const noexcept {
    return hangs + wrong_bytes + lost_experts + split_epochs + without_cause + too_late == 0;
  }
};

/// Does the message name the rank? "rank 1" does not name rank 12.
[[nodiscard]] inline bool names_rank(std::string_view message, ballast::index_t rank) {
  auto const name = ballast::detail::concat("rank ", rank);
  for (auto at = message.find(name); at != std::string_view::npos; at = message.find(name, at + 1)) {
    auto const next = at + name.size();
    if (next == message.size() || message[next] < '0' || message[next] > '9') { return true; }
  }
  return false;
}

class judge {
public:
  judge(fault const& what, std::vector<rank_report> const& ranks, std::optional<ballast::nanoseconds_t> strike)
      : fault_{what}, ranks_{ranks}, strike_{strike} {
    for (auto const& rank : ranks) {
      if (rank.strike != 0) { strike_ = rank.strike; }
    }
  }

  [[nodiscard]] verdict operator()() {
    out_.struck = strike_.has_value();
    for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
      if (died(rank)) { continue; }
      check_end(rank);
      if (out_.struck && !fault_.harmless() && !is_victim(rank)) { check_error(rank); }
    }
    check_layers();
    if (fault_.is(fault_kind::source_overwritten) && out_.struck) { turn_detection_around(); }
    return out_;
  }

private:
  [[nodiscard]] bool is_victim(std::size_t rank) const { return rank == static_cast<std::size_t>(fault_.victim); }
  [[nodiscard]] bool died(std::size_t rank) const { return fault_.kills() && is_victim(rank) && out_.struck; }

  template <class... Parts>
  void note(int& counter, Parts const&... what) {
    ++counter;
    if (out_.detail.empty()) { out_.detail = ballast::detail::concat(what...); }
  }

  void check_end(std::size_t rank) {
    auto const& report = ranks_[rank];
    if (!report.ended || report.complained) {
      return note(out_.hangs, "rank ", rank, " did not end: ", report.complaint, " ", report.error);
    }
    if (!report.bytes_right) { note(out_.wrong_bytes, "rank ", rank, " holds wrong bytes: ", report.complaint); }
    if (!report.serves() && !is_victim(rank)) { ++out_.not_serving; }
    if ((!out_.struck || fault_.harmless()) && report.failed()) {
      note(out_.without_cause, "rank ", rank, " failed without a cause: ", report.error);
    }
  }

  void check_error(std::size_t rank) {
    auto const& report = ranks_[rank];
    if (!report.failed()) {
      // A strike may come when all work is done.
      if (!nobody_failed()) { note(out_.without_cause, "rank ", rank, " has no error"); }
      return;
    }
    if (!names_rank(report.error, fault_.victim)) { ++out_.by_chain; }
    if (!names_victim(report.error)) {
      note(out_.without_cause, "rank ", rank, " does not name rank ", fault_.victim, ": ", report.error);
    }
    auto const taken = report.error_at - *strike_;
    out_.slowest = std::max(out_.slowest, taken);
    if (taken > 2 * fault_.deadline) {
      note(out_.too_late, "rank ", rank, " took ", taken / millisecond, " ms to say: ", report.error);
    }
  }
  // Directly, or by way of other ranks: what held this rank up names the rank that held it up in turn.
  [[nodiscard]] bool names_victim(std::string_view error, std::uint64_t asked = 0) const {
    if (names_rank(error, fault_.victim)) { return true; }
    for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
      if ((asked >> rank & 1) != 0 || !names_rank(error, static_cast<ballast::index_t>(rank))) { continue; }
      if (names_victim(ranks_[rank].error, asked | std::uint64_t{1} << rank)) { return true; }
    }
    return false;
  }
  [[nodiscard]] bool nobody_failed() const {
    return std::ranges::none_of(ranks_, [](rank_report const& report) { return report.failed(); });
  }

  void check_layers() {
    auto const shape = fault_shape::placement(fault_.num_ranks);
    for (std::size_t layer = 0; layer < fault_shape::num_layers; ++layer) {
      rank_report const* first = nullptr;
      std::vector<unsigned char> alive(static_cast<std::size_t>(shape.num_logical));
      for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
        auto const& report = ranks_[rank];
        if (report.maps[layer].empty()) { continue; }
        if (report.bytes_right) { mark_alive(report, layer, rank, alive); }
        if (!report.serves()) { continue; }
        if (first == nullptr) { first = &report; }
        if (report.epochs[layer] != first->epochs[layer] || report.maps[layer] != first->maps[layer]) {
          note(out_.split_epochs, "layer ", layer, ": rank ", rank, " serves epoch ", report.epochs[layer],
               ", another rank ", first->epochs[layer], ": ", report.error);
        }
      }
      auto const lost = std::ranges::count(alive, static_cast<unsigned char>(0));
      if (lost > 0) { note(out_.lost_experts, "layer ", layer, ": ", lost, " experts have no live replica"); }
    }
  }
  static void mark_alive(rank_report const& report, std::size_t layer, std::size_t rank,
                         std::vector<unsigned char>& alive) {
    for (std::size_t slot = 0; slot < fault_shape::slots_per_rank; ++slot) {
      auto const expert = report.maps[layer][rank * fault_shape::slots_per_rank + slot];
      alive[static_cast<std::size_t>(expert)] = 1;
    }
  }

  // The engine broke its promise and spoiled bytes: what counts is that this does not go unnoticed.
  void turn_detection_around() {
    bool const noticed = out_.wrong_bytes > 0 || !nobody_failed();
    auto const hangs = out_.hangs;
    auto const split = out_.split_epochs;
    out_ = {
        .struck = true, .hangs = hangs, .split_epochs = split, .caught = noticed ? 1 : 0, .slowest = 0, .detail = {}};
    if (!noticed) { note(out_.wrong_bytes, "an overwritten source went unnoticed"); }
  }

  fault const& fault_;
  std::vector<rank_report> const& ranks_;
  std::optional<ballast::nanoseconds_t> strike_;
  verdict out_;
};

}  // namespace ballast_test

#endif
