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
#include "model_layers.hpp"
#include "printable.hpp"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace ballast_tools {

/// What is written: keys stay in the order in which they were added.
using json = nlohmann::ordered_json;
/// What is read: a key is found quickly, however many there are.
using json_input = nlohmann::json;

/// The key that engines read a placement from.
inline constexpr auto map_key = "physical_to_logical_map";

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

/// The object that SGLang's `--init-expert-location` reads, which hands every key on as a named argument: the map
/// alone, with a row for each layer of the model. Dense layers hold no experts; their rows are what the engine starts
/// with itself, slot p holding expert p mod E.
[[nodiscard]] inline json expert_location(ballast::placement const& in, model_layers const& layers) {
  std::vector<ballast::index_t> dense_row(static_cast<std::size_t>(in.num_slots()));
  for (std::size_t slot = 0; slot < dense_row.size(); ++slot) {
    dense_row[slot] = static_cast<ballast::index_t>(slot % static_cast<std::size_t>(in.num_logical()));
  }
  json rows(static_cast<std::size_t>(layers.num_rows), dense_row);
  for (ballast::index_t layer = 0; layer < in.num_layers(); ++layer) {
    rows[static_cast<std::size_t>(layers.of_layer[static_cast<std::size_t>(layer)])] = in.logical_of_slot(layer);
  }
  json object;
  object[map_key] = std::move(rows);
  return object;
}

/// The keys of a report that say which slot holds which expert, with a row for each layer of the trace.
inline void add_map(json& object, ballast::placement const& in) {
  auto physical_to_logical = json::array();
  auto logical_to_physical = json::array();
  auto replica_counts = json::array();
  for (ballast::index_t layer = 0; layer < in.num_layers(); ++layer) {
    physical_to_logical.push_back(in.logical_of_slot(layer));
    auto slots = json::array();
    auto counts = json::array();
    for (ballast::index_t expert = 0; expert < in.num_logical(); ++expert) {
      slots.push_back(in.replicas_of(layer, expert));
      counts.push_back(in.replica_count(layer, expert));
    }
    logical_to_physical.push_back(std::move(slots));
    replica_counts.push_back(std::move(counts));
  }
  object[map_key] = std::move(physical_to_logical);
  object["logical_to_physical_map"] = std::move(logical_to_physical);
  object["replica_counts"] = std::move(replica_counts);
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

/// @pre it was read by `parse_json`, which limits how deep it is
[[nodiscard]] inline std::string json_excerpt(json_input const& value) {
  return ballast_tools::excerpt(value.dump(-1, ' ', true, json_input::error_handler_t::replace));
}

/// Why the parser was stopped.
struct refused_json {
  std::string why;
};

/// Watches a parser, and stops it by `refused_json` where a text is deeper than anything of ours, or says one thing
/// twice.
class json_guard {
public:
  bool operator()(int depth, json_input::parse_event_t event, json_input const& value) {
    using kind = json_input::parse_event_t;
    constexpr int max_depth = 32;
    if (depth >= max_depth) { throw refused_json{concat("nested deeper than ", max_depth, " levels")}; }
    switch (event) {
      case kind::object_start: keys_.emplace_back(); break;
      case kind::object_end: keys_.pop_back(); break;
      case kind::key:
        if (!keys_.back().insert(value.get_ref<std::string const&>()).second) {
          throw refused_json{concat("the key ", json_excerpt(value), " is there twice")};
        }
        break;
      default: break;
    }
    return true;
  }

private:
  std::vector<std::set<std::string>> keys_;  // of every object that is open
};

/// Find `key` as a matrix of rows x columns, or say what is there instead.
///
/// @param other_rows  as many rows will do as well
/// @param hint        what to say where there are more rows than that
[[nodiscard]] inline ballast::status find_matrix(json_input const& object, char const* key, ballast::index_t rows,
                                                 ballast::index_t other_rows, ballast::index_t columns,
                                                 json_input const*& matrix, char const* hint = "") {
  if (!object.is_object()) { return bad_json("the file holds ", json_excerpt(object), ", must hold a JSON object"); }
  auto const found = object.find(key);
  if (found == object.end()) { return bad_json("there is no key ", key); }
  if (!found->is_array()) { return bad_json(key, " is ", json_excerpt(*found), ", must be an array of layers"); }
  if (found->size() != static_cast<std::size_t>(rows) && found->size() != static_cast<std::size_t>(other_rows)) {
    auto const alternative = other_rows != rows ? concat(" or ", other_rows) : std::string{};
    bool const has_more = found->size() > static_cast<std::size_t>(std::max(rows, other_rows));
    return bad_json(key, " has ", found->size(), " layers, must have ", rows, alternative, has_more ? hint : "");
  }
  for (std::size_t layer = 0; layer < found->size(); ++layer) {
    auto const& row = (*found)[layer];
    if (!row.is_array()) {
      return bad_json(key, "[", layer, "] is ", json_excerpt(row), ", must be an array of slots");
    }
    if (row.size() != static_cast<std::size_t>(columns)) {
      return bad_json(key, "[", layer, "] has ", row.size(), " slots, must have ", columns);
    }
  }
  matrix = &*found;
  return {};
}

/// The shares of one layer, scaled so that each expert's sum to one exactly.
[[nodiscard]] inline ballast::status read_share_row(json_input const& row, ballast::index_t layer,
                                                    ballast::placement& out) {
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
        return bad_json("shares[", layer, "][", slot, "] is ", json_excerpt(value), ", must be a number from 0 to 1");
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

/// Understand JSON text; a byte order mark of UTF-8 does no harm. @param out out: unchanged on failure
[[nodiscard]] inline ballast::status parse_json(std::string_view text, json_input& out) {
  constexpr std::size_t longest_reason = 200;
  if (auto result = skip_byte_order_mark(text); !result.ok()) {
    return detail::bad_json("not JSON: ", result.message());
  }
  // The parser takes it for the end of the text.
  if (auto const at = text.find('\0'); at != std::string_view::npos) {
    return detail::bad_json("not JSON: byte ", at, " is 0");
  }
  try {
    detail::json_guard guard;
    out = json_input::parse(text, [&guard](int depth, json_input::parse_event_t event, json_input& value) {
      return guard(depth, event, value);
    });
    return {};
  } catch (detail::refused_json const& refused) {
    return detail::bad_json(refused.why);
  } catch (json_input::exception const& error) {
    // Behind the library's own "[json.exception.parse_error.101] ".
    std::string_view why{error.what()};
    if (auto const id = why.find("] "); why.starts_with('[') && id != std::string_view::npos) {
      why.remove_prefix(id + 2);
    }
    return detail::bad_json("not JSON: ", why.substr(0, longest_reason));
  }
}

/// Read `physical_to_logical_map`, which has a row for each layer of the trace or for each layer of the model.
///
/// @param out out: unchanged on failure
[[nodiscard]] inline ballast::status placement_from_json(json_input const& object, ballast::placement_shape shape,
                                                         model_layers const& layers, ballast::placement& out) {
  json_input const* matrix = nullptr;
  constexpr auto hint = "; where it has the rows of dense layers too, --moe-layers and --model-layers say which";
  if (auto result =
          detail::find_matrix(object, map_key, shape.num_layers, layers.num_rows, shape.num_slots, matrix, hint);
      !result.ok()) {
    return result;
  }
  bool const by_model_layer = matrix->size() != static_cast<std::size_t>(shape.num_layers);
  std::vector<ballast::index_t> map;
  for (ballast::index_t layer = 0; layer < shape.num_layers; ++layer) {
    auto const row = by_model_layer ? layers.of_layer[static_cast<std::size_t>(layer)] : layer;
    for (auto const& value : (*matrix)[static_cast<std::size_t>(row)]) {
      auto const expert = value.is_number_integer() ? value.get<std::int64_t>() : -1;
      auto const in_range = expert >= 0 && expert < shape.num_logical;
      if (!in_range) {
        return detail::bad_json(map_key, "[", row, "][", map.size() % static_cast<std::size_t>(shape.num_slots),
                                "] is ", detail::json_excerpt(value), ", must be an expert from 0 to ",
                                shape.num_logical - 1);
      }
      map.push_back(static_cast<ballast::index_t>(expert));
    }
  }
  return out.assign(shape, map);
}
/// As above, where there are no dense layers.
[[nodiscard]] inline ballast::status placement_from_json(json_input const& object, ballast::placement_shape shape,
                                                         ballast::placement& out) {
  return placement_from_json(object, shape, model_layers::all(shape.num_layers), out);
}

/// Read `shares` into a placement. @param in_out in/out: unchanged on failure
[[nodiscard]] inline ballast::status shares_from_json(json_input const& object, ballast::placement& in_out) {
  json_input const* matrix = &object;
  auto const rows = in_out.num_layers();
  if (auto result = detail::find_matrix(object, "shares", rows, rows, in_out.num_slots(), matrix); !result.ok()) {
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
[[nodiscard]] inline ballast::status read_json(std::string const& path, json_input& out) {
  std::string text;
  if (auto result = read_file(path, text); !result.ok()) { return result; }
  return in_file(path, parse_json(text, out));
}

/// Read the placement in a file. @param out out: unchanged on failure
[[nodiscard]] inline ballast::status read_placement(std::string const& path, ballast::placement_shape shape,
                                                    model_layers const& layers, ballast::placement& out) {
  json_input object;
  if (auto result = read_json(path, object); !result.ok()) { return result; }
  return in_file(path, placement_from_json(object, shape, layers, out));
}

}  // namespace ballast_tools

#endif
