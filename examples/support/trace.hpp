// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_SUPPORT_TRACE_HPP
#define BALLAST_EXAMPLES_SUPPORT_TRACE_HPP

#include <ballast/detail/text.hpp>
#include <ballast/load/history.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include "file.hpp"
#include "printable.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ballast_tools {

/// Recorded loads of a model: for every step, layer and logical expert the tokens it got.
///
/// As a file: a line `steps,layers,experts`, then a line of `experts` counts for every step and layer, layers within
/// steps (tests/data/traces/README.md). Numbers are decimal; blanks around them, line ends of other systems and a
/// byte order mark of UTF-8 do no harm.
struct trace {
  ballast::index_t num_steps = 0;
  ballast::index_t num_layers = 0;
  ballast::index_t num_logical = 0;
  std::vector<ballast::load_t> tokens;  ///< [steps, L, E]

  /// The steps as buckets.
  [[nodiscard]] ballast::load_history_view history() const { return {tokens, num_steps, num_layers, num_logical}; }

  bool operator==(trace const&) const = default;
};

/// Steps [first, last) of a trace.
struct step_range {
  ballast::index_t first = 0;
  ballast::index_t last = 0;
};

namespace detail {

using ballast::detail::concat;

/// A text without the spaces, tabs and carriage returns around it.
[[nodiscard]] inline std::string_view without_blanks(std::string_view text) {
  constexpr std::string_view blanks = " \t\r";
  text.remove_prefix(std::min(text.find_first_not_of(blanks), text.size()));
  return text.substr(0, text.find_last_not_of(blanks) + 1);
}

/// Walks through a text line by line and number by number, and knows where it is.
class csv_cursor {
public:
  explicit csv_cursor(std::string_view text) : rest_{text} {}

  [[nodiscard]] bool at_end() const noexcept { return rest_.empty(); }
  [[nodiscard]] std::size_t line_number() const noexcept { return line_number_; }

  void next_line() {
    auto const end = std::min(rest_.find('\n'), rest_.size());
    line_ = rest_.substr(0, end);
    line_ = without_blanks(line_);
    rest_.remove_prefix(std::min(end + 1, rest_.size()));
    ++line_number_;
  }
  [[nodiscard]] bool line_is_empty() const noexcept { return line_.empty(); }

  /// Read the numbers of the line, which must be as many as `out` has room for, each in [least, most].
  [[nodiscard]] ballast::status read_numbers(std::span<ballast::load_t> out, ballast::load_t least,
                                             ballast::load_t most) const {
    auto const found = static_cast<std::size_t>(std::count(line_.begin(), line_.end(), ',')) + (line_.empty() ? 0 : 1);
    if (found != out.size()) { return fail("has ", found, " values, must have ", out.size()); }
    auto rest = line_;
    for (std::size_t i = 0; i < out.size(); ++i) {
      auto const field = rest.substr(0, rest.find(','));
      rest.remove_prefix(std::min(field.size() + 1, rest.size()));
      auto const value = without_blanks(field);
      auto const [end, error] = std::from_chars(value.data(), value.data() + value.size(), out[i]);
      bool const whole = error == std::errc{} && end == value.data() + value.size();
      if (!whole || out[i] < least || out[i] > most) {
        return fail("value ", i + 1, " is '", excerpt(value), "', must be an integer from ", least, " to ", most);
      }
    }
    return {};
  }

  template <class... Parts>
  [[nodiscard]] ballast::status fail(Parts const&... parts) const {
    return {ballast::errc::malformed_file, concat("line ", line_number_, ": ", parts...)};
  }

private:
  std::string_view rest_;
  std::string_view line_;
  std::size_t line_number_ = 0;
};

}  // namespace detail

/// Read a trace from text. @param out out: unchanged on failure
/// @return a failure that names the line, the value's place in it, and the value
[[nodiscard]] inline ballast::status parse_trace(std::string_view text, trace& out) {
  using ballast::index_t;
  using ballast::load_t;
  auto const encoding = skip_byte_order_mark(text);
  detail::csv_cursor cursor{text};
  cursor.next_line();
  if (!encoding.ok()) { return cursor.fail(encoding.message()); }
  if (text.empty()) { return cursor.fail("the file is empty, must start with steps,layers,experts"); }
  std::array<load_t, 3> sizes{};
  if (auto result = cursor.read_numbers(sizes, 1, std::numeric_limits<index_t>::max()); !result.ok()) { return result; }

  auto const [steps, layers, experts] = sizes;
  auto const num_rows = steps * layers;
  trace read{static_cast<index_t>(steps), static_cast<index_t>(layers), static_cast<index_t>(experts), {}};
  auto const row_size = static_cast<std::size_t>(experts);
  for (load_t row = 0; row < num_rows; ++row) {
    if (cursor.at_end()) {
      return cursor.fail("the file ends here, after ", row, " of ", num_rows, " lines of counts (", steps, " steps x ",
                         layers, " layers)");
    }
    cursor.next_line();
    // Every count takes a byte of the file at least: no size is believed before its data is there.
    if (row_size > text.size()) { return cursor.fail("the file is too short for ", experts, " experts a line"); }
    auto const first = read.tokens.size();
    read.tokens.resize(first + row_size);
    auto const numbers = std::span{read.tokens}.subspan(first);
    if (auto result = cursor.read_numbers(numbers, 0, ballast::max_layer_tokens); !result.ok()) { return result; }
  }
  while (!cursor.at_end()) {
    cursor.next_line();
    if (!cursor.line_is_empty()) {
      return cursor.fail("the file goes on, but its header promises ", num_rows, " lines of counts");
    }
  }
  out = std::move(read);
  return {};
}

/// Read a trace file. @param out out: unchanged on failure
[[nodiscard]] inline ballast::status read_trace(std::string const& path, trace& out) {
  std::string text;
  if (auto result = read_file(path, text); !result.ok()) { return result; }
  return in_file(path, parse_trace(text, out));
}

/// Write loads as the text of a trace file, a bucket a step.
[[nodiscard]] inline std::string format_trace(ballast::load_history_view history) {
  auto text = detail::concat(history.num_buckets(), ',', history.num_layers(), ',', history.num_logical(), '\n');
  auto const tokens = history.tokens();
  auto const row_size = static_cast<std::size_t>(history.num_logical());
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    ballast::detail::append(text, tokens[i]);
    text += (i + 1) % row_size == 0 ? '\n' : ',';
  }
  return text;
}

/// Understand `A:B` as the steps [A, B) of a trace with `num_steps`; without a text all of them.
[[nodiscard]] inline ballast::status parse_steps(std::optional<std::string_view> given, ballast::index_t num_steps,
                                                 step_range& out) {
  if (!given) {
    out = {0, num_steps};
    return {};
  }
  auto const text = *given;
  auto const colon = text.find(':');
  auto const number = [](std::string_view digits, ballast::index_t& value) {
    auto const [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    return error == std::errc{} && end == digits.data() + digits.size();
  };
  step_range read;
  if (colon == std::string_view::npos || !number(text.substr(0, colon), read.first) ||
      !number(text.substr(colon + 1), read.last)) {
    return {ballast::errc::invalid_option, detail::concat("--steps is '", text, "', must be A:B with integers A < B")};
  }
  if (read.first < 0 || read.first >= read.last || read.last > num_steps) {
    return {ballast::errc::invalid_option, detail::concat("--steps ", text, " is no range of the ", num_steps,
                                                          " steps of the trace (0:", num_steps, " is all of them)")};
  }
  out = read;
  return {};
}

/// Refuse a trace with more tokens in a layer and `window` steps in a row than can be planned for, naming the first.
[[nodiscard]] inline ballast::status check_windows(trace const& trace, ballast::index_t window) {
  auto const history = trace.history();
  auto const tokens_of = [&history](ballast::index_t step, ballast::index_t layer) {
    ballast::load_t sum = 0;
    for (auto const tokens : history.layer(step, layer)) {
      sum = std::min(sum + tokens, ballast::max_layer_tokens + 1);
    }
    return sum;
  };
  for (ballast::index_t layer = 0; layer < trace.num_layers; ++layer) {
    ballast::load_t sum = 0;
    for (ballast::index_t step = 0; step < trace.num_steps; ++step) {
      if (step >= window) { sum -= tokens_of(step - window, layer); }
      sum += tokens_of(step, layer);
      if (sum > ballast::max_layer_tokens) {
        return {ballast::errc::invalid_load,
                detail::concat("the tokens of layer ", layer, " in ", std::min(window, step + 1), " steps up to step ",
                               step, " exceed ", ballast::max_layer_tokens)};
      }
    }
  }
  return {};
}

/// Add steps up. @return [L, E] tokens; a sum stops above `max_layer_tokens`, where `validate_loads` refuses it
[[nodiscard]] inline std::vector<ballast::load_t> sum_steps(trace const& from, step_range steps) {
  auto const size = static_cast<std::size_t>(from.num_layers) * static_cast<std::size_t>(from.num_logical);
  std::vector<ballast::load_t> sum(size);
  for (auto step = steps.first; step < steps.last; ++step) {
    auto const tokens = from.history().bucket(step).elements();
    for (std::size_t i = 0; i < size; ++i) { sum[i] = std::min(sum[i] + tokens[i], ballast::max_layer_tokens + 1); }
  }
  return sum;
}

}  // namespace ballast_tools

#endif
