// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_FAULTS_FAULT_RUN_HPP
#define BALLAST_TESTS_FAULTS_FAULT_RUN_HPP

#include <ballast/detail/clock.hpp>
#include <ballast/detail/text.hpp>

#include "faults/fault.hpp"
#include "faults/rank_life.hpp"
#include "faults/verdict.hpp"
#include "support/processes.hpp"

#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <exception>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ballast_test {

/// Brings a group to life, strikes it from outside where the fault says so, and collects what its ranks report.
class fault_run {
public:
  explicit fault_run(fault const& what) : fault_{what} {
    auto const name = ballast::detail::concat("fault-", ::getpid(), "-", what.index);
    for (ballast::index_t rank = 0; rank < what.num_ranks; ++rank) {
      ranks_.emplace_back([&](int report) {
        try {
          live(what, rank, name, report);
        } catch (std::exception const& error) {
          write_line(report, ballast::detail::concat("exception ", error.what()));
        }
      });
    }
    open_.assign(ranks_.size(), true);
  }

  /// @param verbose  print what the ranks said
  [[nodiscard]] verdict finish(bool verbose = false) {
    auto const limit = ballast::detail::now() + 40 * fault_.deadline + 60'000 * millisecond;
    while (!all_ended() && ballast::detail::now() < limit) {
      wait_for_reports();
      strike();
    }
    std::vector<rank_report> reports;
    for (auto const& rank : ranks_) {
      reports.push_back(report_reader{}(rank.text()));
      if (verbose) { std::fprintf(stderr, "---- rank %zu\n%s", reports.size() - 1, rank.text().c_str()); }
    }
    return judge{fault_, reports, strike_}();
  }

private:
  [[nodiscard]] bool said(child_process const& rank, std::string_view line) const {
    auto const& text = rank.text();
    for (auto at = text.find(line); at != std::string::npos; at = text.find(line, at + 1)) {
      auto const end = at + line.size();
      if ((at == 0 || text[at - 1] == '\n') && end < text.size() && text[end] == '\n') { return true; }
    }
    return false;
  }
  [[nodiscard]] bool all_ended() const {
    for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
      if (open_[rank] && !said(ranks_[rank], "ends")) { return false; }
    }
    return true;
  }

  void wait_for_reports() {
    std::vector<::pollfd> questions;
    for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
      questions.push_back({open_[rank] ? ranks_[rank].report() : -1, POLLIN, 0});
    }
    ::timespec timeout{0, static_cast<long>(std::clamp<ballast::nanoseconds_t>(time_to_act(), 0, 5 * millisecond))};
    if (::ppoll(questions.data(), questions.size(), &timeout, nullptr) <= 0) { return; }
    for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
      if (questions[rank].revents != 0 && !ranks_[rank].read_some()) { open_[rank] = false; }
    }
  }

  [[nodiscard]] ballast::nanoseconds_t time_to_act() const {
    auto const next = resume_at_ ? resume_at_ : strike_at_;
    return next ? *next - ballast::detail::now() : 5 * millisecond;
  }

  void strike() {
    auto const now = ballast::detail::now();
    if (!strike_at_) { plan_strike(now); }
    if (strike_at_ && !strike_ && now >= *strike_at_ && from_outside()) {
      strike_ = now;
      victim().signal(fault_.kills() ? SIGKILL : SIGSTOP);
      if (!fault_.kills()) { resume_at_ = now + fault_.pause(); }
    }
    if (!resume_at_ && said(victim(), "stops")) { resume_at_ = now + fault_.pause(); }
    if (resume_at_ && now >= *resume_at_) {
      victim().signal(SIGCONT);
      resume_at_ = now + fault_.pause();  // again, should it have come before the stop
    }
  }
  void plan_strike(ballast::nanoseconds_t now) {
    if (fault_.is(fault_kind::pause_in_vote)) {
      if (said(victim(), "votes")) { strike_at_ = now; }
    } else if (std::ranges::all_of(ranks_, [&](auto const& rank) { return said(rank, "started"); })) {
      strike_at_ = now + fault_.delay;
    }
  }
  [[nodiscard]] bool from_outside() const {
    return fault_.is(fault_kind::kill_any_time) || fault_.is(fault_kind::pause_any_time) ||
           fault_.is(fault_kind::pause_in_vote);
  }
  [[nodiscard]] child_process const& victim() const { return ranks_[static_cast<std::size_t>(fault_.victim)]; }

  fault fault_;
  std::vector<child_process> ranks_;
  std::vector<bool> open_;
  std::optional<ballast::nanoseconds_t> strike_at_;
  std::optional<ballast::nanoseconds_t> strike_;
  std::optional<ballast::nanoseconds_t> resume_at_;
};

}  // namespace ballast_test

#endif
