// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_SUPPORT_MODEL_LAYERS_HPP
#define BALLAST_EXAMPLES_SUPPORT_MODEL_LAYERS_HPP

#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include "printable.hpp"

#include <array>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <optional>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace ballast_tools {

/// Which layers of a model the MoE layers of a trace are. An engine that numbers dense layers too has a row for each.
struct model_layers {
  ballast::index_t num_rows = 0;           ///< M, layers of the model, dense ones included
  std::vector<ballast::index_t> of_layer;  ///< [L] ascending, in [0, M)

  /// There are no dense layers.
  [[nodiscard]] static model_layers all(ballast::index_t num_layers) {
    model_layers result{num_layers, std::vector<ballast::index_t>(static_cast<std::size_t>(num_layers))};
    std::iota(result.of_layer.begin(), result.of_layer.end(), 0);
    return result;
  }
  [[nodiscard]] ballast::index_t num_layers() const noexcept { return static_cast<ballast::index_t>(of_layer.size()); }
};

namespace detail {

/// Layers `N`, `A:B` or `A:B:STEP`, B not included.
struct layer_range {
  ballast::index_t first = 0;
  ballast::index_t last = 0;
  ballast::index_t step = 1;
};

[[nodiscard]] inline std::optional<layer_range> parse_layer_range(std::string_view text) {
  std::array<ballast::index_t, 3> parts{0, 0, 1};
  std::size_t count = 0;
  for (bool more = true; more; ++count) {
    auto const digits = text.substr(0, text.find(':'));
    more = digits.size() < text.size();
    text.remove_prefix(digits.size() + (more ? 1 : 0));
    if (count == parts.size()) { return {}; }
    auto const [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), parts[count]);
    if (error != std::errc{} || end != digits.data() + digits.size() || parts[count] < 0) { return {}; }
  }
  if (count == 1 && parts[0] < std::numeric_limits<ballast::index_t>::max()) {
    return layer_range{parts[0], parts[0] + 1, 1};
  }
  if (count == 1 || parts[0] >= parts[1] || parts[2] < 1) { return {}; }
  return layer_range{parts[0], parts[1], parts[2]};
}

}  // namespace detail

/// Understand a list such as `3:61`, `1:48:2` or `0,2,5:9` as the model layers that a trace's layers are.
///
/// @param list        ascending; it must name as many layers as the trace has.
/// @param num_layers  L, layers of the trace.
/// @param num_rows    M, layers of the model; without it the last one is an MoE layer.
/// @param out         out: unchanged on failure
[[nodiscard]] inline ballast::status parse_model_layers(std::string_view list, ballast::index_t num_layers,
                                                        std::optional<ballast::index_t> num_rows, model_layers& out) {
  using ballast::detail::concat;
  auto const refuse = [list](auto const&... why) -> ballast::status {
    return {ballast::errc::invalid_option, concat("--moe-layers is '", excerpt(list), "', ", why...)};
  };
  model_layers read;
  auto rest = list;
  for (bool more = true; more;) {
    auto const text = rest.substr(0, rest.find(','));
    more = text.size() < rest.size();
    rest.remove_prefix(text.size() + (more ? 1 : 0));
    auto const range = detail::parse_layer_range(text);
    if (!range) { return refuse("must be a list of layers N, A:B or A:B:STEP (B not included), such as 3:61"); }
    if (!read.of_layer.empty() && range->first <= read.of_layer.back()) {
      return refuse("must ascend, but ", range->first, " comes after ", read.of_layer.back());
    }
    for (auto layer = std::int64_t{range->first}; layer < range->last; layer += range->step) {
      if (read.num_layers() == num_layers) {
        return refuse("must name the trace's ", num_layers, " layers, names more");
      }
      read.of_layer.push_back(static_cast<ballast::index_t>(layer));
    }
  }
  if (read.num_layers() != num_layers) {
    return refuse("must name the trace's ", num_layers, " layers, names ", read.num_layers());
  }
  auto const last = std::int64_t{read.of_layer.back()};
  if (num_rows && *num_rows <= last) {
    return {ballast::errc::invalid_option,
            concat("--model-layers is ", *num_rows, ", but --moe-layers names layer ", last)};
  }
  auto const rows = num_rows ? *num_rows : last + 1;
  constexpr std::int64_t max_rows = std::int64_t{1} << 20;
  if (rows > max_rows) {
    return {ballast::errc::invalid_option,
            concat(rows, " model layers are more than this tool plans for (", max_rows, ")")};
  }
  read.num_rows = static_cast<ballast::index_t>(rows);
  out = std::move(read);
  return {};
}

}  // namespace ballast_tools

#endif
