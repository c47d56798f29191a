// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_SUPPORT_TOKEN_TRACE_HPP
#define BALLAST_EXAMPLES_SUPPORT_TOKEN_TRACE_HPP

#include <ballast/matrix_view.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include "file.hpp"
#include "trace.hpp"

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ballast_tools {

/// What a model's routers chose, token by token.
///
/// As a file: a line `tokens,layers,topk`, then a line of `layers * topk` expert ids for every token, layer by layer
/// (tests/data/tokens/README.md). Several such traces of the same layers and top-k may follow each other: their tokens
/// are of different traffic, and no batch holds some of both.
struct token_trace {
  ballast::index_t num_layers = 0;
  ballast::index_t top_k = 0;
  ballast::index_t num_logical = 0;
  std::vector<ballast::index_t> part_sizes;  ///< tokens of each trace
  std::vector<ballast::index_t> ids;         ///< [tokens, L, top_k]

  bool operator==(token_trace const&) const = default;

  /// First token of every whole batch. What is left at the end of a part is in none.
  [[nodiscard]] std::vector<std::size_t> batches(ballast::index_t batch_tokens) const {
    std::vector<std::size_t> firsts;
    std::size_t begin = 0;
    for (auto const size : part_sizes) {
      for (ballast::index_t at = 0; at <= size - batch_tokens; at += batch_tokens) {
        firsts.push_back(begin + static_cast<std::size_t>(at));
      }
      begin += static_cast<std::size_t>(size);
    }
    return firsts;
  }
  /// Append a layer's ids of `count` tokens. @param out in and out: [tokens, top_k]
  void append_ids(std::size_t first, std::size_t count, ballast::index_t layer,
                  std::vector<ballast::index_t>& out) const {
    auto const width = static_cast<std::size_t>(top_k);
    for (auto token = first; token < first + count; ++token) {
      auto const at =
          ids.begin() + static_cast<std::ptrdiff_t>(
                            (token * static_cast<std::size_t>(num_layers) + static_cast<std::size_t>(layer)) * width);
      out.insert(out.end(), at, at + top_k);
    }
  }
  /// Count what the experts get in every batch: each is a step. @param firsts of the batches
  [[nodiscard]] trace count(std::vector<std::size_t> const& firsts, ballast::index_t batch_tokens) const {
    trace counted{static_cast<ballast::index_t>(firsts.size()), num_layers, num_logical, {}};
    auto const per_step = static_cast<std::size_t>(num_layers) * static_cast<std::size_t>(num_logical);
    counted.tokens.resize(firsts.size() * per_step);
    auto const per_token = static_cast<std::size_t>(num_layers) * static_cast<std::size_t>(top_k);
    for (std::size_t batch = 0; batch < firsts.size(); ++batch) {
      ballast::matrix_view<ballast::load_t> const tokens{std::span{counted.tokens}.subspan(batch * per_step, per_step),
                                                         num_layers, num_logical};
      for (std::size_t i = 0; i < static_cast<std::size_t>(batch_tokens) * per_token; ++i) {
        auto const layer = i % per_token / static_cast<std::size_t>(top_k);
        ++tokens(static_cast<ballast::index_t>(layer), ids[firsts[batch] * per_token + i]);
      }
    }
    return counted;
  }
};

namespace detail {

/// Read one trace of tokens. @param most the highest id
[[nodiscard]] inline ballast::status read_tokens(csv_cursor& cursor, std::size_t text_size, ballast::load_t most,
                                                 token_trace& out) {
  using ballast::index_t;
  using ballast::load_t;
  std::array<load_t, 3> sizes{};
  if (auto result = cursor.read_numbers(sizes, 1, std::numeric_limits<index_t>::max()); !result.ok()) { return result; }
  auto const [tokens, layers, top_k] = sizes;
  if (!out.part_sizes.empty() && (layers != out.num_layers || top_k != out.top_k)) {
    return cursor.fail("another trace begins here, of ", layers, " layers and top ", top_k, ", must be of ",
                       out.num_layers, " layers and top ", out.top_k, " as the one before");
  }
  if (top_k > most + 1) { return cursor.fail("top ", top_k, " of ", most + 1, " experts"); }
  // Every id takes a byte of the file at least: no size is believed before its data is there.
  if (layers > static_cast<load_t>(text_size) / top_k) {
    return cursor.fail("the file is too short for ", layers, " layers x top ", top_k, " a line");
  }
  out.num_layers = static_cast<index_t>(layers);
  out.top_k = static_cast<index_t>(top_k);
  std::vector<load_t> row(static_cast<std::size_t>(layers * top_k));
  for (load_t token = 0; token < tokens; ++token) {
    if (cursor.at_end()) { return cursor.fail("the file ends here, after ", token, " of ", tokens, " tokens"); }
    cursor.next_line();
    if (auto result = cursor.read_numbers(row, 0, most); !result.ok()) {
      return {result.code(), concat(result.message(), " (", layers, " layers x top ", top_k, ")")};
    }
    for (auto const id : row) { out.ids.push_back(static_cast<index_t>(id)); }
  }
  out.part_sizes.push_back(static_cast<index_t>(tokens));
  return {};
}

}  // namespace detail

/// Read a trace of tokens, or several, from text.
///
/// @param num_logical  E; without it, the highest id and one.
/// @param out          out: unchanged on failure
/// @return a failure that names the line, the value's place in it, and the value
[[nodiscard]] inline ballast::status parse_token_trace(std::string_view text,
                                                       std::optional<ballast::index_t> num_logical, token_trace& out) {
  using ballast::index_t;
  auto const encoding = skip_byte_order_mark(text);
  detail::csv_cursor cursor{text};
  cursor.next_line();
  if (!encoding.ok()) { return cursor.fail(encoding.message()); }
  if (text.empty()) { return cursor.fail("the file is empty, must start with tokens,layers,topk"); }
  token_trace read;
  auto const most = ballast::load_t{num_logical.value_or(std::numeric_limits<index_t>::max())} - 1;
  for (bool goes_on = true; goes_on;) {
    if (auto result = detail::read_tokens(cursor, text.size(), most, read); !result.ok()) { return result; }
    goes_on = false;
    while (!goes_on && !cursor.at_end()) {
      cursor.next_line();
      goes_on = !cursor.line_is_empty();
    }
  }
  read.num_logical = num_logical.value_or(*std::max_element(read.ids.begin(), read.ids.end()) + 1);
  out = std::move(read);
  return {};
}

/// Read a file of them. @param out out: unchanged on failure
[[nodiscard]] inline ballast::status read_token_trace(std::string const& path,
                                                      std::optional<ballast::index_t> num_logical, token_trace& out) {
  std::string text;
  if (auto result = read_file(path, text); !result.ok()) { return result; }
  return in_file(path, parse_token_trace(text, num_logical, out));
}

}  // namespace ballast_tools

#endif
