// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SIMULATED_DEVICE_SCHEDULES_KNOWN_FAULTS_HPP
#define BALLAST_TESTS_SIMULATED_DEVICE_SCHEDULES_KNOWN_FAULTS_HPP

#include "schedules/set_up.hpp"

#include <array>
#include <string>
#include <string_view>
#include <vector>

namespace ballast_test::schedules {

/// A fault that schedules find and that is not mended yet. Take its line away when it is: from then on it counts.
struct known_fault {
  std::string_view name;
  bool (*is_it)(set_up const& what, std::string const& complaint);
};

[[nodiscard]] inline bool holds(std::string const& text, std::string_view part) {
  return text.find(part) != std::string::npos;
}

inline constexpr std::array known_faults{
    known_fault{"the destructor of an NCCL lane waits for its device (cudaFree), whose kernels wait for this rank",
                [](set_up const& what, std::string const& complaint) {
                  return uses_nccl(what) && holds(complaint, "rule: hang");
                }},
    known_fault{"a repair during the resume of a second model leaves the first one's store with a stream that is gone",
                [](set_up const& what, std::string const& complaint) {
                  return uses_nccl(what) && what.num_models > 1 &&
                         (holds(complaint, "rule: invalid stream") || holds(complaint, "invalid resource handle"));
                }},
    known_fault{"a move without arrivals commits through staging that copies of a given-up batch still write",
                [](set_up const&, std::string const& complaint) {
                  return holds(complaint, "rule: order") && holds(complaint, "write by copy") &&
                         holds(complaint, "an earlier write by copy");
                }},
};

/// The known fault that a run has met, null if it has met none.
[[nodiscard]] inline known_fault const* find_known(set_up const& what, std::vector<std::string> const& complaints) {
  for (auto const& fault : known_faults) {
    for (auto const& complaint : complaints) {
      if (fault.is_it(what, complaint)) { return &fault; }
    }
  }
  return nullptr;
}

}  // namespace ballast_test::schedules

#endif
