// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Ranks as processes that mpirun has started, perhaps on several hosts: everything goes in messages of MPI.
#include "mpi_ranks.hpp"

#include <ballast/mpi/control.hpp>
#include <ballast/mpi/transport.hpp>

#include "balancer_over.hpp"
#include "exchange_over.hpp"
#include "host_runner.hpp"

#include <mpi.h>

#include <memory>
#include <vector>

namespace engine {

namespace {

namespace mpi = ballast::mpi;

/// Rank 0 serves everything alone first, and the others wait for it.
constexpr ballast::nanoseconds_t time_to_meet = 60'000'000'000;

/// A transport and a control plane of their own.
struct cohort {
  cohort() {
    wires.failure().or_throw();
    control.failure().or_throw();
  }
  mpi::transport wires{MPI_COMM_WORLD, {.setup_timeout = time_to_meet}};
  mpi::control control{MPI_COMM_WORLD, {.setup_timeout = time_to_meet}};
};

class mpi_links final : public rank_links {
public:
  mpi_links(settings const& how, model const& of)
      : model_{of},
        exchange_{tokens_.wires, tokens_.control, how.outbox_floats(), how.timeout},
        cohorts_(how.modes.size()) {}

  [[nodiscard]] token_exchange& exchange() override { return exchange_; }
  [[nodiscard]] std::unique_ptr<model_runner> make_runner(runner_parts const& parts) override {
    return std::make_unique<host_runner>(parts, model_, exchange_, [this, parts](ballast::host_store& store) {
      auto& own = cohorts_[parts.number];
      own = std::make_unique<cohort>();
      return make_host_balancer({parts.how, parts.of(), parts.watcher}, store, own->wires, own->control);
    });
  }

private:
  model const& model_;
  cohort tokens_;
  exchange_over<mpi::transport, mpi::control> exchange_;
  std::vector<std::unique_ptr<cohort>> cohorts_;
};

}  // namespace

mpi_job::mpi_job() {
  int provided = 0;
  MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank_);
  MPI_Comm_size(MPI_COMM_WORLD, &num_ranks_);
}
mpi_job::~mpi_job() { MPI_Finalize(); }

void mpi_job::run(settings const& how, model const& of, rank_function const& body) const {
  mpi_links links{how, of};
  body(links);
}

}  // namespace engine
