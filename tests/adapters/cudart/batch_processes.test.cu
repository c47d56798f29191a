// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Every-batch balance of ranks in processes of their own. On one device their kernels take turns, so waits are long.
#include <ballast/cudart/ipc_peers.hpp>
#include <ballast/cudart/kernels/batch_balancer.cuh>
#include <ballast/posix/process_group.hpp>

#include "support/batch_ranks.cuh"
#include "support/check_complaints.hpp"
#include "support/posix_runner.hpp"

#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

using namespace ballast;
using namespace ballast_test;

namespace {

gpu_only const needs_gpu;

constexpr index_t num_tokens = 300;
constexpr index_t top_k = 4;
constexpr index_t num_logical = 24;

/// A rank with all that it needs, and the ids of all ranks for each batch: drawn alike everywhere.
struct member {
  member(posix::process_group& of, index_t num_ranks, std::uint32_t wait_nanoseconds)
      : group{of}, where{{num_ranks, 1, 24 / num_ranks + 2, 0}}, peers{of} {
    options.max_tokens = num_tokens;
    options.top_k = top_k;
    options.control.wait_nanoseconds = wait_nanoseconds;
    held = random_placement({1, num_logical, where.num_slots()}, random);
    self.emplace(where, group.rank(), held, options);
    self->balancer.expose_board(peers).or_throw();
    self->balancer.connect(peers).or_throw();
  }
  void next_batch() {
    ids.clear();
    for (index_t rank = 0; rank < where.num_ranks(); ++rank) {
      ids.push_back(batch_ids<std::int32_t>(num_tokens * top_k, num_logical, 0, random));
    }
    self->ids.write(ids[static_cast<std::size_t>(group.rank())]);
    self->num_valid.write(std::vector<std::int32_t>{num_tokens});
    self->launch(0, num_tokens, top_k);
    check_cuda(cudaStreamSynchronize(self->stream.get()), "cudaStreamSynchronize");
  }
  [[nodiscard]] std::vector<std::int32_t> own() const { return ids[static_cast<std::size_t>(group.rank())]; }
  [[nodiscard]] bool is_exact() {
    expected_batch<std::int32_t> expected{where, self->balancer.rows().row(0), options.quotas, ids};
    return self->physical.read(own().size()) == expected.physical(group.rank(), own());
  }
  [[nodiscard]] bool is_resident() const {
    auto result = own();
    dispatch_ids<std::int32_t>(self->tables.host().view(), 0, top_k, own(), result);
    return self->physical.read(own().size()) == result;
  }

  posix::process_group& group;
  topology where;
  cudart::ipc_peers<posix::process_group> peers;
  generator random{17};
  cudart::batch_options options;
  placement held;
  std::optional<batch_rank<std::int32_t>> self;
  std::vector<std::vector<std::int32_t>> ids;
};

template <class Body>
std::vector<std::string> run(index_t num_ranks, std::uint32_t wait_nanoseconds, Body body) {
  auto const name = fresh_group_name();
  return run_processes(num_ranks, [&](index_t rank, process_exit exit, law_log& log) {
    use_device_of(rank);
    posix::process_group group;
    if (!log.expect_ok(group.join(name, rank, num_ranks, patience), "join")) { return; }
    member self{group, num_ranks, wait_nanoseconds};
    body(self, exit, log);
  });
}

}  // namespace

TEST_CASE("ranks in processes of their own come to the quotas that the host says") {
  for (auto const size : rank_counts({2, 4})) {
    CAPTURE(size);
    check_complaints(run(size, 4'000'000'000u, [](member& self, process_exit, law_log& log) {
      for (int batch = 0; batch < 6; ++batch) {
        self.next_batch();
        log.expect(self.is_exact(), "batch ", batch, " went elsewhere");
      }
      log.expect(self.self->balancer.statistics(0).exact == 6, "some batches were not balanced");
      static_cast<void>(self.group.vote(true, patience));
    }));
  }
}

TEST_CASE("a rank that is killed leaves the others with the shares in force, and they go on without it") {
  check_complaints(run(3, 200'000'000u, [](member& self, process_exit exit, law_log& log) {
    self.next_batch();
    if (self.group.rank() == 2) { exit.die(); }
    for (int batch = 0; batch < 3; ++batch) {
      self.next_batch();
      log.expect(self.is_resident(), "batch ", batch, " did not go by the shares in force");
    }
    auto const told = self.self->balancer.statistics(0);
    log.expect(told.late == 3, "late is ", told.late);
    log.expect(told.late_ranks_low == 4, "late ranks are ", told.late_ranks_low);
  }));
}
