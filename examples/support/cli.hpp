// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_SUPPORT_CLI_HPP
#define BALLAST_EXAMPLES_SUPPORT_CLI_HPP

#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include <CLI/CLI.hpp>

#include <cstdint>
#include <cstdio>
#include <exception>
#include <new>
#include <optional>
#include <string>

namespace ballast_tools {

/// Exit status of a tool that was given something it cannot use.
inline constexpr int exit_bad_input = 2;

namespace detail {
/// Parse the command line. @return the exit status if the tool has nothing more to do
[[nodiscard]] inline std::optional<int> parse(CLI::App& app, int argc, char** argv) {
  try {
    app.parse(argc, argv);
    return {};
  } catch (CLI::ParseError const& error) {
    if (error.get_exit_code() == 0) { return app.exit(error); }
    std::fprintf(stderr, "%s: %s (--help lists the options)\n", app.get_name().c_str(), error.what());
    return exit_bad_input;
  }
}
}  // namespace detail

/// Parse the command line into `Options`, run the tool with them, and turn what went wrong into a message on standard
/// error and an exit status.
template <class Options, class Run>
[[nodiscard]] int run_tool(char const* name, char const* description, int argc, char** argv, Run run) noexcept {
  auto const complain = [name](char const* message) {
    std::fprintf(stderr, "%s: %s\n", name, message);
    return exit_bad_input;
  };
  try {
    CLI::App app{description, name};
    Options options;
    options.add_to(app);
    if (auto const done = detail::parse(app, argc, argv)) { return *done; }
    ballast::status const result = run(options);
    return result.ok() ? 0 : complain(result.message().c_str());
  } catch (std::bad_alloc const&) {
    return complain("not enough memory for sizes as large as these");
  } catch (std::exception const& error) { return complain(error.what()); } catch (...) {
    return complain("an unknown failure");
  }
}

/// Slots of a layer, and of all layers, beyond which a size is taken for a slip of the pen: memory is asked for only
/// below it.
inline constexpr std::int64_t max_slots = std::int64_t{1} << 24;
inline constexpr std::int64_t max_slots_of_all_layers = std::int64_t{1} << 28;

/// Refuse sizes that no machine of ours plans for.
[[nodiscard]] inline ballast::status check_size(ballast::index_t layers, std::int64_t slots) {
  if (slots > max_slots || layers * slots > max_slots_of_all_layers) {
    return {ballast::errc::invalid_option,
            ballast::detail::concat(layers, " layers x ", slots, " slots is more than this tool plans for (",
                                    max_slots_of_all_layers, " slots, ", max_slots, " in a layer)")};
  }
  return {};
}

/// Options that describe the group of ranks.
struct topology_options {
  ballast::index_t ranks = 0;
  ballast::index_t nodes = 1;
  ballast::index_t slots_per_rank = 0;

  void add_to(CLI::App& app) {
    app.add_option("--ranks", ranks, "R, GPUs of the expert-parallel group")->required();
    app.add_option("--nodes", nodes, "N, nodes that the ranks are spread over (1)");
    app.add_option("--slots-per-rank", slots_per_rank, "S, experts that a rank holds in each layer")->required();
  }
  /// @param out out: unchanged on failure
  [[nodiscard]] ballast::status make(ballast::topology& out) const {
    ballast::topology_shape const shape{ranks, nodes, slots_per_rank, 0};
    if (auto result = ballast::topology::validate(shape); !result.ok()) { return result; }
    if (auto result = check_size(1, static_cast<std::int64_t>(ranks) * slots_per_rank); !result.ok()) { return result; }
    out = ballast::topology{shape};
    return {};
  }
};

}  // namespace ballast_tools

#endif
