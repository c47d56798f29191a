// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_SUPPORT_PLACEMENT_JSON_HPP
#define BALLAST_EXAMPLES_SUPPORT_PLACEMENT_JSON_HPP

#include <ballast/detail/text.hpp>
#include <ballast/matrix_view.hpp>
#include <ballast/placement/balancedness.hpp>
#include <ballast/placement/moves.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/status.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include "file.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ballast_tools {

/// Keys stay in the order in which they were added.
using json = nlohmann::ordered_json;

// ---- writing ----

/// Text of an object, one key a line: long arrays stay on one line each.
[[nodiscard]] inline std::string format_json(json const& object) {
  std::string text;
  for (auto const& [key, value] : object.items()) {
    text += text.empty() ? "{\n  " : ",\n  ";
    text += json(key).dump() + ": " + value.dump();
  }
  return text.empty() ? "{}\n" : text + "\n}\n";
}

/// The keys that say which slot holds which expert. `physical_to_logical_map` is what SGLang's
/// `--init-expert-location` reads.
inline void add_map(json& object, ballast::placement const& in) {
  auto physical_to_logical = json::array();
  auto logical_to_physical = json::array();
  auto logical_count = json::array();
  for (ballast::index_t layer = 0; layer < in.num_layers(); ++layer) {
    physical_to_logical.push_back(in.logical_of_slot(layer));
    auto slots = json::array();
    auto counts = json::array();
    for (ballast::index_t expert = 0; expert < in.num_logical(); ++expert) {
      slots.push_back(in.replicas_of(layer, expert));
      counts.push_back(in.replica_count(layer, expert));
    }
    logical_to_physical.push_back(std::move(slots));
    logical_count.push_back(std::move(counts));
  }
  object["physical_to_logical_map"] = std::move(physical_to_logical);
  object["logical_to_physical_map"] = std::move(logical_to_physical);
  object["logical_count"] = std::move(logical_count);
}

/// The keys that say how even a placement makes the loads `[L, E]`.
inline void add_balance(json& object, ballast::topology const& where, ballast::placement const& in,
                        ballast::matrix_view<ballast::load_t const> loads) {
  auto per_layer = json::array();
  for (ballast::index_t layer = 0; layer < in.num_layers(); ++layer) {
    per_layer.push_back(ballast::balance_of(where, in, layer, loads.row(layer)).balancedness());
  }
  object["balancedness"] = ballast::balancedness(where, in, loads);
  object["balancedness_per_layer"] = std::move(per_layer);
}

/// The experts that ranks must receive to get from `current` to `next`.
inline void add_moves(json& object, ballast::topology const& where, ballast::placement const& current,
                      ballast::placement const& next) {
  auto per_layer = json::array();
  for (ballast::index_t layer = 0; layer < next.num_layers(); ++layer) {
    per_layer.push_back(ballast::count_moves(where, current, next, layer));
  }
  object["moves_per_layer"] = std::move(per_layer);
}

/// Fraction of its expert's tokens that each slot takes, `[L, P]`.
inline void add_shares(json& object, ballast::placement const& in) {
  auto shares = json::array();
  for (ballast::index_t layer = 0; layer < in.num_layers(); ++layer) {
    auto row = json::array();
    for (auto const share : in.shares(layer)) {
      row.push_back(static_cast<double>(share) / static_cast<double>(ballast::share_one));
    }
    shares.push_back(std::move(row));
  }
  object["shares"] = std::move(shares);
}

// ---- reading ----

namespace detail {

using ballast::detail::concat;

template <class... Parts>
[[nodiscard]] ballast::status bad_json(Parts const&... parts) {
  return {ballast::errc::malformed_file, concat(parts...)};
}

[[nodiscard]] inline std::string excerpt(json const& value) {
  auto text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  if (text.size() > 40) { text.replace(37, std::string::npos, "..."); }
  return text;
}

/// Find `key` as a matrix of rows x columns, or say what is there instead.
[[nodiscard]] inline ballast::status find_matrix(json const& object, char const* key, ballast::index_t rows,
                                                 ballast::index_t columns, json const*& matrix) {
  if (!object.is_object()) { return bad_json("the file holds ", excerpt(object), ", must hold a JSON object"); }
  auto const found = object.find(key);
  if (found == object.end()) { return bad_json("there is no key ", key); }
  if (!found->is_array()) { return bad_json(key, " is ", excerpt(*found), ", must be an array of layers"); }
  if (found->size() != static_cast<std::size_t>(rows)) {
    return bad_json(key, " has ", found->size(), " layers, must have ", rows);
  }
  for (std::size_t layer = 0; layer < found->size(); ++layer) {
    auto const& row = (*found)[layer];
    if (!row.is_array()) { return bad_json(key, "[", layer, "] is ", excerpt(row), ", must be an array of slots"); }
    if (row.size() != static_cast<std::size_t>(columns)) {
      return bad_json(key, "[", layer, "] has ", row.size(), " slots, must have ", columns);
    }
  }
  matrix = &*found;
  return {};
}

/// The shares of one layer, scaled so that each expert's sum to one exactly.
[[nodiscard]] inline ballast::status read_share_row(json const& row, ballast::index_t layer, ballast::placement& out) {
  using ballast::share_one;
  using ballast::share_t;
  auto const shares = out.edit_shares(layer);
  for (ballast::index_t expert = 0; expert < out.num_logical(); ++expert) {
    double sum = 0;
    std::int64_t rest = share_one;
    auto largest = out.replicas_of(layer, expert).front();
    for (auto const slot : out.replicas_of(layer, expert)) {
      auto const& value = row[static_cast<std::size_t>(slot)];
      auto const fraction = value.is_number() ? value.get<double>() : -1;
      if (fraction < 0 || fraction > 1 + 1e-6) {
        return bad_json("shares[", layer, "][", slot, "] is ", excerpt(value), ", must be a number from 0 to 1");
      }
      sum += fraction;
      auto& share = shares[static_cast<std::size_t>(slot)];
      share = static_cast<share_t>(std::lround(std::min(fraction, 1.0) * share_one));
      rest -= share;
      if (share > shares[static_cast<std::size_t>(largest)]) { largest = slot; }
    }
    if (std::abs(sum - 1) > 2e-6) {
      return bad_json("shares of layer ", layer, ", expert ", expert, " sum to ", sum, ", must be 1");
    }
    auto& share = shares[static_cast<std::size_t>(largest)];
    share = static_cast<share_t>(static_cast<std::int64_t>(share) + rest);
  }
  return {};
}

}  // namespace detail

/// Understand JSON text. @param out out: unchanged on failure
[[nodiscard]] inline ballast::status parse_json(std::string_view text, json& out) {
  try {
    out = json::parse(text);
    return {};
  } catch (json::exception const& error) { return detail::bad_json("not JSON: ", error.what()); }
}

/// Read `physical_to_logical_map`. @param out out: unchanged on failure
[[nodiscard]] inline ballast::status placement_from_json(json const& object, ballast::placement_shape shape,
                                                         ballast::placement& out) {
  constexpr auto key = "physical_to_logical_map";
  json const* matrix = nullptr;
  if (auto result = detail::find_matrix(object, key, shape.num_layers, shape.num_slots, matrix); !result.ok()) {
    return result;
  }
  std::vector<ballast::index_t> map;
  for (std::size_t layer = 0; layer < matrix->size(); ++layer) {
    for (auto const& value : (*matrix)[layer]) {
      auto const in_range =
          value.is_number_unsigned() && value.get<std::uint64_t>() < static_cast<std::uint64_t>(shape.num_logical);
      if (!in_range) {
        return detail::bad_json(key, "[", layer, "][", map.size() % static_cast<std::size_t>(shape.num_slots), "] is ",
                                detail::excerpt(value), ", must be an expert from 0 to ", shape.num_logical - 1);
      }
      map.push_back(value.get<ballast::index_t>());
    }
  }
  return out.assign(shape, map);
}

/// Read `shares` into a placement. @param in_out in/out: unchanged on failure
[[nodiscard]] inline ballast::status shares_from_json(json const& object, ballast::placement& in_out) {
  json const* matrix = nullptr;
  if (auto result = detail::find_matrix(object, "shares", in_out.num_layers(), in_out.num_slots(), matrix);
      !result.ok()) {
    return result;
  }
  auto read = in_out;
  read.make_shares_even();
  for (ballast::index_t layer = 0; layer < read.num_layers(); ++layer) {
    auto const& row = (*matrix)[static_cast<std::size_t>(layer)];
    if (auto result = detail::read_share_row(row, layer, read); !result.ok()) { return result; }
  }
  in_out = std::move(read);
  return {};
}

/// Read a JSON file. @param out out: unchanged on failure
[[nodiscard]] inline ballast::status read_json(std::string const& path, json& out) {
  std::string text;
  if (auto result = read_file(path, text); !result.ok()) { return result; }
  return in_file(path, parse_json(text, out));
}

/// Read the placement in a file. @param out out: unchanged on failure
[[nodiscard]] inline ballast::status read_placement(std::string const& path, ballast::placement_shape shape,
                                                    ballast::placement& out) {
  json object;
  if (auto result = read_json(path, object); !result.ok()) { return result; }
  return in_file(path, placement_from_json(object, shape, out));
}

}  // namespace ballast_tools

#endif
