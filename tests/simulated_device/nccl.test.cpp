// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "support/check_complaints.hpp"
#include "support/nccl_laws.hpp"
#include "support/simulated_nccl_runner.hpp"
#include "support/transport_laws.hpp"

#include <doctest/doctest.h>

#include <cstdint>
#include <string>
#include <vector>

// Communicators and transports over NCCL on simulated devices.

using namespace ballast;
using namespace ballast_test;

namespace {

template <class Law>
void check(std::vector<index_t> sizes, Law law, std::uint64_t num_seeds = 1) {
  for (auto const size : sizes) {
    for (std::uint64_t seed = 1; seed <= num_seeds; ++seed) {
      CAPTURE(size);
      CAPTURE(seed);
      check_complaints(simulated_nccl_runner{.seed = seed}.run(size, law));
    }
  }
}

/// Rank 0 cannot make an id: all ranks know it at once, and why.
template <class Endpoint>
void hears_of_a_missing_id(Endpoint& self, law_log& log) {
  if (self.rank() == 0) { simulated::fail_next_nccl("ncclGetUniqueId", ncclSystemError); }
  auto const begin = ballast::detail::now();
  nccl::communicator made;
  auto const result = nccl::communicator::create(self.control, made);
  log.expect(!result.ok() && result.message().find("ncclGetUniqueId") != std::string::npos, result.message());
  log.expect(ballast::detail::now() - begin < slack, "rank 0 is waited for");
  log.expect_ok(nccl::communicator::create(self.control, made), "create again");
  meet(self, log);
}

}  // namespace

TEST_CASE("batches over simulated NCCL arrive byte for byte") {
  check({1, 2, 4}, [](auto& self, law_log& log) { transport_law::moves_random_batches(self, log, 3, 15); }, 3);
}

TEST_CASE("many messages and lists in another order") {
  check({2, 4}, [](auto& self, law_log& log) {
    transport_law::matches_by_tag(self, log);
    transport_law::keeps_models_apart(self, log);
    transport_law::refuses_a_second_batch(self, log);
    transport_law::moves_many_messages(self, log);
  });
}

TEST_CASE("a rank without a unique id is not waited for") {
  check({2, 3}, [](auto& self, law_log& log) { hears_of_a_missing_id(self, log); });
}

TEST_CASE("a batch without bytes asks NCCL for nothing") {
  check({1, 2}, [](auto& self, law_log& log) { nccl_law::does_nothing_for_empty_batches(self, log); });
}

TEST_CASE("NCCL at its defaults works inside of by_link") {
  check({2}, [](auto& self, law_log& log) { nccl_law::works_inside_by_link(self, log); });
}

TEST_CASE("late and abandoned batches are repaired, again and again") {
  check({2, 3}, [](auto& self, law_log& log) { nccl_law::is_repaired(self, log); });
}

TEST_CASE("a kernel that never ends keeps its stream and its targets, and nobody from going on") {
  check({2}, [](auto& self, law_log& log) {
    nccl_law::goes_on_beside_a_kernel_that_never_ends(self, log, true);
    nccl_law::goes_on_beside_a_kernel_that_never_ends(self, log, false);
  });
}

TEST_CASE("a child's failure leaves its parent alone, whatever the two share") {
  check({2}, [](auto& self, law_log& log) { nccl_law::leaves_the_parent_alone(self, log); });
}

TEST_CASE("a split ends in time, and what is made late hurts nobody") {
  check({2}, [](auto& self, law_log& log) { nccl_law::splits_within_its_deadline(self, log); });
}

TEST_CASE("a rank that cannot take part is not waited for") {
  check({2, 3}, [](auto& self, law_log& log) { nccl_law::fails_together(self, log); });
}

TEST_CASE("calls that may block are made on the engine's executor") {
  check({1, 2}, [](auto& self, law_log& log) { nccl_law::calls_on_the_engines_executor(self, log); });
}

TEST_CASE("ranks connect before the first batch") {
  check({2, 3}, [](auto& self, law_log& log) { nccl_law::connects_beforehand(self, log); });
}

TEST_CASE("captures of other threads outlast batches") {
  check({2}, [](auto& self, law_log& log) { nccl_law::leaves_captures_alone(self, log); });
}

TEST_CASE("options that make no transport are refused") {
  check({1}, [](auto& self, law_log& log) { nccl_law::refuses_options(self, log); });
}
