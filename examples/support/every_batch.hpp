// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_SUPPORT_EVERY_BATCH_HPP
#define BALLAST_EXAMPLES_SUPPORT_EVERY_BATCH_HPP

#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include "cli.hpp"
#include "policies.hpp"

#include <CLI/CLI.hpp>

#include <optional>
#include <string>

namespace ballast_tools {

/// Options of a replay that balances every batch by itself, in the order of `--help`. Those that other replays have too
/// are filled in by the tool.
struct every_batch_options {
  bool wanted = false;
  std::optional<std::string> tokens;
  std::optional<ballast::index_t> batch_tokens;
  std::optional<ballast::index_t> num_logical;
  std::optional<ballast::index_t> plan_on;
  std::optional<std::string> plot;

  // Of every replay.
  std::optional<std::string> trace;
  std::optional<std::string> json;
  std::optional<ballast::index_t> interval;
  topology_options topology;
  policy_options policy;

  void add_to(CLI::App& app);
  /// Name an option that is only for this kind of replay, if one is given; else null.
  [[nodiscard]] char const* first_given() const;
};

/// Place the experts once, or every so many batches, and show how evenly each later batch falls on the ranks when it is
/// split in different ways, up to quotas for this very batch.
[[nodiscard]] ballast::status replay_every_batch(every_batch_options options);

}  // namespace ballast_tools

#endif
