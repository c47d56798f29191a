// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Ranks as processes of one host: bytes are read out of each other's memory.
#include <ballast/detail/text.hpp>
#include <ballast/posix/peer_copy.hpp>
#include <ballast/posix/process_group.hpp>

#include "balancer_over.hpp"
#include "exchange_over.hpp"
#include "host_runner.hpp"
#include "rank_links.hpp"
#include "rank_processes.hpp"

#include <unistd.h>

#include <memory>
#include <string>
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

}  // namespace

void run_as_processes(settings const& how, model const& of, rank_function const& body) {
  auto const name = ballast::detail::concat("ballast-engine-", static_cast<std::int64_t>(::getpid()));
  auto const be = [&](index_t rank) {
    process_links links{how, of, name, rank};
    body(links);
  };
  rank_processes others{how.where.num_ranks(), how.stop.rank, be};
  be(0);
  others.join();
}

}  // namespace engine
