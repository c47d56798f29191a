// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_FUZZ_TRACE_FILE_HPP
#define BALLAST_TESTS_FUZZ_TRACE_FILE_HPP

#include "../../examples/support/trace.hpp"
#include "fuzz_input.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace ballast_fuzz {

/// Whatever a trace file holds: it is refused with a message, or read as counts that survive a round trip.
inline void trace_file(std::uint8_t const* data, std::size_t size) {
  std::string_view const text{reinterpret_cast<char const*>(data), size};
  ballast_tools::trace read;
  if (auto const parsed = ballast_tools::parse_trace(text, read); !parsed.ok()) {
    require(parsed.message().find("line ") != std::string::npos, "a refusal names the line");
    return;
  }
  auto const cells = static_cast<std::size_t>(read.num_steps) * static_cast<std::size_t>(read.num_layers) *
                     static_cast<std::size_t>(read.num_logical);
  require(read.tokens.size() == cells, "there are as many counts as the header says");
  auto const view = read.history();
  require(ballast::validate_loads(view).ok(), "what is read are loads");
  ballast_tools::trace again;
  require(ballast_tools::parse_trace(ballast_tools::format_trace(view), again).ok() && again == read,
          "a round trip changes nothing");
  ballast_tools::step_range steps;
  static_cast<void>(ballast_tools::parse_steps(text.substr(0, 20), read.num_steps, steps));
}

}  // namespace ballast_fuzz

#endif
