// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_NCCL_COHORT_HPP
#define BALLAST_NCCL_COHORT_HPP

#include <ballast/config.hpp>
#include <ballast/control/engine_control.hpp>
#include <ballast/nccl/communicator.hpp>
#include <ballast/nccl/transport.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <span>
#include <utility>

BALLAST_BEGIN_NAMESPACE
namespace nccl {

/// The ranks of an engine's expert-parallel group, as it has them: agreement over an all-gather of its own on the host,
/// and bytes over a communicator split off its own. What `make_rebalancer` and `cudart::device_store` are given.
///
/// @tparam AllGather  see `engine_control`.
/// @threads  as `transport` and `engine_control`: one thread at a time, the rank's device current.
/// @lifetime the engine's communicator, stream and whatever `AllGather` uses outlive it; it outlives store and
///           rebalancer.
template <all_gather_function AllGather>
class cohort {
public:
  using control_type = engine_control<AllGather>;

  /// Called by all ranks together; waits for the others and for NCCL, no longer than the communicator's timeout.
  ///
  /// @param engine      the engine's communicator, not null; not changed. Its ranks are the group's.
  /// @param all_gather  the engine's own, on the host.
  /// @param options     `compute_stream` and `more_compute_streams` run the forward passes.
  /// @throws std::system_error, on all ranks where one has failed: as `communicator::split` and `transport`.
  cohort(ncclComm_t engine, AllGather all_gather, transport_options const& options,
         engine_control_options const& control = {})
      : control_{control_over(engine, std::move(all_gather), control)},
        transport_{split(engine, control_, options), options} {}
  cohort(cohort const&) = delete;  // stores and rebalancers refer to it
  cohort& operator=(cohort const&) = delete;
  ~cohort() = default;

  [[nodiscard]] index_t rank() const noexcept { return transport_.rank(); }
  [[nodiscard]] index_t num_ranks() const noexcept { return transport_.num_ranks(); }
  [[nodiscard]] cudaStream_t compute_stream() const noexcept { return transport_.compute_stream(); }
  [[nodiscard]] std::span<cudaStream_t const> more_compute_streams() const noexcept {
    return transport_.more_compute_streams();
  }
  /// What moves the bytes.
  [[nodiscard]] transport& wires() noexcept { return transport_; }
  /// What the ranks agree by.
  [[nodiscard]] control_type& control() noexcept { return control_; }

private:
  [[nodiscard]] static control_type control_over(ncclComm_t engine, AllGather all_gather,
                                                 engine_control_options const& options) {
    if (engine == nullptr) { status{errc::invalid_option, "nccl: a cohort without a communicator"}.or_throw(); }
    index_t rank = 0;
    index_t num_ranks = 0;
    communicator::borrow(engine).locate(rank, num_ranks).or_throw();
    return control_type{rank, num_ranks, std::move(all_gather), options};
  }
  [[nodiscard]] static communicator split(ncclComm_t engine, control_type& control, transport_options const& options) {
    communicator own;
    communicator::split(engine, control, own, options.communicator_in_force()).or_throw();
    return own;
  }

  control_type control_;
  transport transport_;
};

}  // namespace nccl
BALLAST_END_NAMESPACE

#endif
