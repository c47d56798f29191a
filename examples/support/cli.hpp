// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_SUPPORT_CLI_HPP
#define BALLAST_EXAMPLES_SUPPORT_CLI_HPP

#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>
#include <ballast/version.hpp>

#include "file.hpp"
#include "interruption.hpp"
#include "printable.hpp"

#include <CLI/CLI.hpp>

#include <charconv>
#include <concepts>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <limits>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>

namespace ballast_tools {

/// Exit status of a tool that was given something it cannot use, or could not write its results.
inline constexpr int exit_bad_input = 2;

// ---- options ----

namespace detail {

/// Understand a whole text as a number in decimal notation; nothing where it is none, or out of the type's range.
template <class T>
[[nodiscard]] std::optional<T> parse_decimal(std::string_view text) {
  T value{};
  auto const [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) { return {}; }
  return value;
}

[[noreturn]] inline void refuse_value(std::string const& name, std::string const& given, auto const&... must_be) {
  throw CLI::ValidationError{ballast::detail::concat(name, " is '", given, "', must be ", must_be...)};
}

template <std::integral T>
[[nodiscard]] T parse_integer(std::string const& name, std::string const& given) {
  using limits = std::numeric_limits<T>;
  auto const number = parse_decimal<T>(given);
  if (!number) { refuse_value(name, given, "a decimal integer from ", limits::min(), " to ", limits::max()); }
  return *number;
}

/// An option whose one value is understood by `take(text)`.
inline CLI::Option* add_option(CLI::App& app, std::string const& name, std::string const& description, char const* type,
                               auto const& take) {
  auto const callback = [name, take](CLI::results_t const& given) {
    if (given.size() != 1) { throw CLI::ValidationError{name + " is given more than once"}; }
    take(given.front());
    return true;
  };
  return app.add_option(name, callback, description)
      ->type_name(type)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
}

}  // namespace detail

/// Add an option with a whole number, which is decimal whatever its leading zeros.
template <std::integral T>
CLI::Option* add_integer(CLI::App& app, std::string const& name, T& value, std::string const& description) {
  return detail::add_option(app, name, description, "INT", [name, &value](std::string const& given) {
    value = detail::parse_integer<T>(name, given);
  });
}
/// As above, for one that may be left out.
template <std::integral T>
CLI::Option* add_integer(CLI::App& app, std::string const& name, std::optional<T>& value,
                         std::string const& description) {
  return detail::add_option(app, name, description, "INT", [name, &value](std::string const& given) {
    value = detail::parse_integer<T>(name, given);
  });
}

/// Add an option with a number, which may be left out.
inline CLI::Option* add_number(CLI::App& app, std::string const& name, std::optional<double>& value,
                               std::string const& description) {
  return detail::add_option(app, name, description, "FLOAT", [name, &value](std::string const& given) {
    auto const number = detail::parse_decimal<double>(given);
    if (!number) { detail::refuse_value(name, given, "a decimal number"); }
    value = number;
  });
}

/// Add an option with a text that is not empty.
inline CLI::Option* add_text(CLI::App& app, std::string const& name, std::optional<std::string>& value,
                             std::string const& description, char const* type = "TEXT") {
  return detail::add_option(app, name, description, type, [name, &value](std::string const& given) {
    if (given.empty()) { throw CLI::ValidationError{name + " is empty"}; }
    value = given;
  });
}

// ---- running ----

namespace detail {

inline int complain(char const* tool, std::string_view message) {
  std::fprintf(stderr, "%s: %s\n", tool, printable(message).c_str());
  return exit_bad_input;
}

[[nodiscard]] inline std::string version_text(char const* tool) {
  return ballast::detail::concat(tool, ' ', BALLAST_VERSION_MAJOR, '.', BALLAST_VERSION_MINOR, '.',
                                 BALLAST_VERSION_PATCH, '\n');
}

/// Print what was asked for instead of a run. @return the exit status
[[nodiscard]] inline int answer(char const* tool, std::string_view text) {
  auto const result = write_file(std::string{standard_stream}, text);
  return result.ok() ? 0 : complain(tool, result.message());
}

/// Parse the command line. @return the exit status if the tool has nothing more to do
[[nodiscard]] inline std::optional<int> parse(CLI::App& app, int argc, char** argv) {
  auto const* tool = app.get_name().c_str();
  try {
    app.parse(argc, argv);
    return {};
  } catch (CLI::CallForHelp const&) { return answer(tool, app.help()); } catch (CLI::CallForVersion const&) {
    return answer(tool, version_text(tool));
  } catch (CLI::ParseError const& error) {
    // A required option may be missing because it is misspelt: name what is there and not known.
    auto const unknown = app.remaining();
    auto const* kind =
        !unknown.empty() && unknown.front().starts_with('-') ? "there is no option" : "unexpected argument";
    auto const what = unknown.empty() ? error.what() : ballast::detail::concat(kind, " '", unknown.front(), "'");
    return complain(tool, what + " (--help lists the options)");
  }
}

}  // namespace detail

/// Parse the command line into `Options`, run the tool with them, and turn what went wrong into a message on standard
/// error and an exit status: 2 for a failure, 128 + n when signal n was noted.
template <class Options, class Run>
[[nodiscard]] int run_tool(char const* name, char const* description, int argc, char** argv, Run run) noexcept {
  try {
    std::signal(SIGXFSZ, SIG_IGN);  // a file that may not grow is a failed write
    CLI::App app{description, name};
    app.set_version_flag("--version", name, "Print the version and exit");
    app.footer(
        "Files: '-' is standard input where a file is read. A file that is written is written whole or not at "
        "all, and never\nover a file that is read.");
    Options options;
    options.add_to(app);
    if (auto const done = detail::parse(app, argc, argv)) { return *done; }
    ballast::status const result = run(options);
    if (!result.ok()) { return detail::complain(name, result.message()); }
    return noted_signal() == 0 ? 0 : 128 + noted_signal();
  } catch (std::bad_alloc const&) {
    return detail::complain(name, "not enough memory for sizes as large as these");
  } catch (std::exception const& error) { return detail::complain(name, error.what()); } catch (...) {
    return detail::complain(name, "an unknown failure");
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
    add_integer(app, "--ranks", ranks, "R, GPUs of the expert-parallel group")->required();
    add_integer(app, "--nodes", nodes, "N, nodes that the ranks are spread over (1)");
    add_integer(app, "--slots-per-rank", slots_per_rank, "S, experts that a rank holds in each layer")->required();
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

/// What a trace file is, for `--help`.
inline constexpr auto trace_form =
    "trace of expert loads, CSV: a line 'steps,layers,experts', then for every step a line of\n"
    "tokens by expert for each MoE layer (decimal integers), layers within steps";

}  // namespace ballast_tools

#endif
