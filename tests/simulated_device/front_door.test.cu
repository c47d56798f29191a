// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// What an engine with NCCL writes to have its experts balanced, as nvcc compiles it: recorder and tables on the device,
// a shipped schedule and policy. Two ranks on simulated devices.
#include <ballast/ballast.hpp>
#include <ballast/cudart/device_store.hpp>
#include <ballast/cudart/kernels/device_recorder.cuh>
#include <ballast/nccl/cohort.hpp>
#include <ballast/policies/incremental.hpp>
#include <ballast/transport/in_process.hpp>

#include "support/check_complaints.hpp"
#include "support/gpu.hpp"
#include "support/law_log.hpp"
#include "support/simulated_device/kernel_emulations.cuh"
#include "support/simulated_device/simulated_device.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <span>
#include <string>
#include <vector>

using namespace ballast;
using namespace ballast_test;

namespace {

constexpr index_t R = 2;
constexpr index_t S = 4;
constexpr index_t L = 2;
constexpr index_t E = 6;

/// What an engine has: a communicator, a stream, a way to exchange words on the host, and weights.
struct engine {
  engine(in_process_endpoint& me, in_process_endpoint& host) : rank{me.rank()}, host_ranks{&host} {
    nccl::communicator::create(me, own).or_throw();
  }

  index_t rank;
  in_process_endpoint* host_ranks;
  nccl::communicator own;
  cudart::stream passes = cudart::stream::create();
};

void serve(engine& self, law_log& log) {
  auto const stream = self.passes.get();
  auto const comm = self.own.get();
  auto gather = [&](std::span<std::uint64_t const> mine, std::span<std::uint64_t> all, nanoseconds_t timeout) {
    return self.host_ranks->all_gather(mine, all, timeout);
  };

  topology const where{{.num_ranks = R, .num_nodes = 1, .slots_per_rank = S}};
  auto const initial = trivial_placement({L, E, where.num_slots()});
  gpu_weights weights{where, self.rank, initial, {{64, 64}}};
  nccl::cohort cohort{comm, gather, {.compute_stream = stream}};
  cudart::device_store store{where, initial, cohort};
  weights.add_to(store);  // store.add(layer, name, first slot's address, bytes of an expert) for each tensor
  auto balancer = make_rebalancer(where, initial,
                                  rebalancing{cudart::device_recorder{stream, L, E, {.passes = 2}},
                                              incremental_placement{},
                                              layers_per_chunk{1},
                                              {.interval = 2}},
                                  store, cohort);
  balancer.start().or_throw();

  for (int step = 0; step < 6; ++step) {
    for (index_t l = 0; l < L; ++l) { balancer.record_logical(l, std::vector<load_t>{1, 1, 1, 90, 1, 1}).or_throw(); }
    balancer.on_forward_pass_end().or_throw();
  }
  log.expect(balancer.epoch(0) > 0 && balancer.epoch(1) > 0, "nothing was committed");
  log.expect(balancer.current().replica_count(0, 3) > 1, "the hot expert has one replica");
  auto const error = weights.first_error(balancer.current());
  log.expect(error.empty(), "wrong at ", error);
  log.expect(store.rank() == self.rank && cohort.num_ranks() == R, "rank ", store.rank(), " of ", cohort.num_ranks());
}

template <class Body>
void on_engines(Body body) {
  simulated::reset({.num_devices = R});
  nccl::detail::spare_packs::forget();
  in_process_group group{R};
  in_process_group host{R};
  std::vector<std::vector<std::string>> complaints(R);
  group.run([&](in_process_endpoint& me) {
    law_log log{me.rank()};
    try {
      use_device_of(me.rank());
      engine self{me, host.endpoint(me.rank())};
      body(self, log);
    } catch (std::exception const& error) { log.expect(false, "exception: ", error.what()); }
    complaints[static_cast<std::size_t>(me.rank())] = log.complaints();
  });
  for (auto const& each : simulated::take_violations()) { complaints[0].push_back(each.rule + ": " + each.text); }
  for (auto const& each : complaints) { check_complaints(each); }
}

}  // namespace

TEST_CASE("an engine with NCCL balances its experts in fifteen lines") { on_engines(serve); }

TEST_CASE("a store does not take another stream than its cohort's, and a cohort no missing communicator") {
  on_engines([](engine& self, law_log& log) {
    auto gather = [&](std::span<std::uint64_t const> mine, std::span<std::uint64_t> all, nanoseconds_t timeout) {
      return self.host_ranks->all_gather(mine, all, timeout);
    };
    topology const where{{.num_ranks = R, .num_nodes = 1, .slots_per_rank = S}};
    auto const initial = trivial_placement({L, E, where.num_slots()});
    nccl::cohort cohort{self.own.get(), gather, {.compute_stream = self.passes.get()}};
    auto const other = cudart::stream::create();
    auto const says = [&](auto make) -> std::string {
      try {
        make();
      } catch (std::exception const& error) { return error.what(); }
      return {};
    };
    auto const of_store =
        says([&] { cudart::device_store const refused{where, initial, cohort, {.compute_stream = other.get()}}; });
    log.expect(of_store.find("other compute streams") != std::string::npos, of_store);
    auto const of_cohort = says([&] { nccl::cohort const refused{nullptr, gather, {}}; });
    log.expect(of_cohort.find("without a communicator") != std::string::npos, of_cohort);
  });
}
