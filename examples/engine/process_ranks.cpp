// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Ranks as processes of one host: bytes are read out of each other's memory.
#include <ballast/detail/text.hpp>
#include <ballast/posix/peer_copy.hpp>
#include <ballast/posix/process_group.hpp>

#include "balancer_over.hpp"
#include "exchange_over.hpp"
#include "host_runner.hpp"
#include "rank_links.hpp"

#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace engine {

namespace {

using ballast::posix::peer_copy;
using ballast::posix::process_group;

constexpr ballast::nanoseconds_t time_to_meet = 60'000'000'000;

/// A group of all ranks, and the wires between them.
struct cohort {
  cohort(std::string const& name, index_t rank, index_t num_ranks) {
    group.join(name, rank, num_ranks, time_to_meet).or_throw();
    wires = std::make_unique<peer_copy>(group);
  }
  process_group group;
  std::unique_ptr<peer_copy> wires;
};

class process_links final : public rank_links {
public:
  process_links(settings const& how, model const& of, std::string name, index_t rank)
      : model_{of},
        name_{std::move(name)},
        rank_{rank},
        tokens_{name_, rank, how.where.num_ranks()},
        exchange_{*tokens_.wires, tokens_.group, how.outbox_floats(), how.timeout},
        cohorts_(how.modes.size()) {}

  [[nodiscard]] token_exchange& exchange() override { return exchange_; }
  [[nodiscard]] std::unique_ptr<model_runner> make_runner(runner_parts const& parts) override {
    return std::make_unique<host_runner>(parts, model_, exchange_, [this, parts](ballast::host_store& store) {
      auto& own = cohorts_[parts.number];
      own = std::make_unique<cohort>(ballast::detail::concat(name_, '-', parts.number), rank_, exchange_.num_ranks());
      return make_host_balancer({parts.how, parts.of(), parts.watcher}, store, *own->wires, own->group);
    });
  }

private:
  model const& model_;
  std::string name_;
  index_t rank_;
  cohort tokens_;
  exchange_over<peer_copy, process_group> exchange_;
  std::vector<std::unique_ptr<cohort>> cohorts_;
};

[[noreturn]] void be_rank(settings const& how, model const& of, std::string const& name, index_t rank,
                          rank_function const& body) {
  int code = 0;
  try {
    process_links links{how, of, name, rank};
    body(links);
  } catch (std::exception const& error) {
    std::fprintf(stderr, "engine: rank %d: %s\n", rank, error.what());
    code = 1;
  }
  std::_Exit(code);
}

/// The processes of ranks 1 and up.
class children {
public:
  children(settings const& how, model const& of, std::string const& name, rank_function const& body)
      : stopped_{how.stop.rank} {
    for (index_t rank = 1; rank < how.where.num_ranks(); ++rank) {
      auto const child = ::fork();
      if (child == 0) { be_rank(how, of, name, rank, body); }
      if (child < 0) { ballast::status{ballast::errc::internal, "no process for a rank"}.or_throw(); }
      processes_.push_back(child);
    }
  }
  children(children const&) = delete;
  children& operator=(children const&) = delete;
  ~children() {
    for (auto const process : processes_) { end(process); }
  }

  /// @throws std::system_error naming a rank that failed
  void join() {
    if (stopped_ > 0) { end(std::exchange(processes_[static_cast<std::size_t>(stopped_) - 1], 0)); }
    for (std::size_t i = 0; i < processes_.size(); ++i) {
      auto const process = std::exchange(processes_[i], 0);
      if (process == 0) { continue; }
      int state = 0;
      ::waitpid(process, &state, 0);
      if (state != 0) {
        ballast::status{ballast::errc::peer_lost, ballast::detail::concat("rank ", i + 1, " failed")}.or_throw();
      }
    }
  }

private:
  static void end(::pid_t process) {
    if (process == 0) { return; }
    ::kill(process, SIGKILL);
    ::waitpid(process, nullptr, 0);
  }

  index_t stopped_;
  std::vector<::pid_t> processes_;  ///< 0 once it has ended
};

}  // namespace

void run_as_processes(settings const& how, model const& of, rank_function const& body) {
  auto const name = ballast::detail::concat("ballast-engine-", static_cast<std::int64_t>(::getpid()));
  std::fflush(nullptr);
  children others{how, of, name, body};
  {
    process_links links{how, of, name, 0};
    body(links);
  }
  others.join();
}

}  // namespace engine
