// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POSIX_DETAIL_JOB_HPP
#define BALLAST_POSIX_DETAIL_JOB_HPP

#include <ballast/config.hpp>
#include <ballast/detail/process_watch.hpp>
#include <ballast/digest.hpp>

#include <cstdint>
#include <cstdlib>
#include <string_view>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace posix::detail {

using ballast::detail::facts_of;
using ballast::detail::identity_of;
using ballast::detail::parent_of_this_process;
using ballast::detail::process_identity;
using ballast::detail::this_process;

/// Which job this process belongs to: ranks of different jobs do not meet, even under one name.
struct job {
  /// A number that rank 0 may have published for the job.
  struct candidate {
    std::uint64_t number = 0;
    process_identity creator;  ///< rank 0 must be that process; any if there is none
  };
  std::vector<candidate> candidates;  ///< the first is what this process would publish
  char const* told_by = "";

  [[nodiscard]] std::uint64_t number() const noexcept { return candidates.front().number; }
};

[[nodiscard]] inline std::uint64_t number_of_family(process_identity const& parent) noexcept {
  return digest{}.add(std::string_view{"parent"}).add(parent.pid).add(parent.start_time).value();
}

/// Variables of launchers that have one value per launch, the same on all of its ranks.
inline constexpr char const* launch_variables[] = {"PMIX_NAMESPACE", "SLURM_STEP_ID", "TORCHELASTIC_RUN_ID",
                                                   "MASTER_PORT", "RAY_JOB_ID"};
/// Say more together with one of those.
inline constexpr char const* further_variables[] = {"SLURM_JOB_ID", "MASTER_ADDR"};

/// Mix the variables that are set into `out`. @return whether there are any
template <class Names>
[[nodiscard]] bool add_variables(Names const& names, digest& out) {
  bool any = false;
  for (char const* const name : names) {
    char const* const value = std::getenv(name);
    if (value == nullptr || *value == '\0') { continue; }
    out.add(std::string_view{name}).add(std::string_view{value});
    any = true;
  }
  return any;
}

/// @param given  what the caller says; 0: nothing.
[[nodiscard]] inline job this_job(std::uint64_t given) {
  if (given != 0) { return {{{given, {}}}, "process_group_options::job"}; }
  constexpr char const* own[] = {"BALLAST_JOB"};
  digest said;
  if (add_variables(own, said)) { return {{{said.value(), {}}}, "BALLAST_JOB"}; }
  digest launch;
  if (add_variables(launch_variables, launch)) {
    static_cast<void>(add_variables(further_variables, launch));
    return {{{launch.value(), {}}}, "the environment of a launcher"};
  }
  // Children of one process, or that process and its children.
  auto const parent = parent_of_this_process();
  return {{{number_of_family(parent), {}},
           {number_of_family(identity_of(facts_of(parent.pid).parent)), parent},
           {number_of_family(this_process()), {}}},
          "the parent process"};
}

}  // namespace posix::detail
BALLAST_END_NAMESPACE

#endif
