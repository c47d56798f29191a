// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_MPI_RANKS_HPP
#define BALLAST_EXAMPLES_ENGINE_MPI_RANKS_HPP

#include "model.hpp"
#include "rank_links.hpp"
#include "settings.hpp"

namespace engine {

/// This process as one that mpirun has started, from construction to the end of MPI.
class mpi_job {
public:
  mpi_job();
  mpi_job(mpi_job const&) = delete;
  mpi_job& operator=(mpi_job const&) = delete;
  ~mpi_job();

  [[nodiscard]] index_t rank() const noexcept { return rank_; }
  [[nodiscard]] index_t num_ranks() const noexcept { return num_ranks_; }
  /// Run a function on this rank; all ranks call it. @throws what it throws
  void run(settings const& how, model const& of, rank_function const& body) const;

private:
  index_t rank_ = 0;
  index_t num_ranks_ = 1;
};

}  // namespace engine

#endif
