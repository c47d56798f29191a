// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_FUZZ_PLACEMENT_FILE_HPP
#define BALLAST_TESTS_FUZZ_PLACEMENT_FILE_HPP

#include "../../examples/support/model_layers.hpp"
#include "../../examples/support/placement_json.hpp"
#include "fuzz_input.hpp"

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace ballast_fuzz {

/// Whatever a placement file holds: it is refused with a message, or read as a valid placement that survives a round
/// trip.
inline void placement_file(std::uint8_t const* data, std::size_t size) {
  if (size < 3) { return; }
  input sizes{data, 3};
  auto const num_logical = sizes.between<ballast::index_t>(1, 8);
  ballast::placement_shape const shape{sizes.between<ballast::index_t>(0, 3), num_logical,
                                       num_logical + sizes.between<ballast::index_t>(0, 8)};
  std::string_view const text{reinterpret_cast<char const*>(data) + 3, size - 3};

  ballast_tools::json_input object;
  if (auto const parsed = ballast_tools::parse_json(text, object); !parsed.ok()) {
    require(!parsed.message().empty(), "a refusal has a message");
    return;
  }
  ballast::placement read;
  if (auto const found = ballast_tools::placement_from_json(object, shape, read); !found.ok()) {
    require(!found.message().empty(), "a refusal has a message");
    return;
  }
  require(read.shape() == shape, "the shape is the one asked for");
  require(ballast::placement::validate(shape, read.logical_of_slot().elements()).ok(), "what is read is a placement");
  auto shared = read;
  if (ballast_tools::shares_from_json(object, shared).ok() && shared.has_shares()) {
    for (ballast::index_t layer = 0; layer < shape.num_layers; ++layer) {
      for (ballast::index_t expert = 0; expert < num_logical; ++expert) {
        std::uint64_t sum = 0;
        for (auto const slot : shared.replicas_of(layer, expert)) {
          sum += shared.shares(layer)[static_cast<std::size_t>(slot)];
        }
        require(sum == ballast::share_one, "an expert's shares sum to one");
      }
    }
  }
  ballast_tools::json written;
  ballast_tools::add_map(written, read);
  ballast::placement again;
  require(ballast_tools::placement_from_json(written, shape, again).ok() && again == read,
          "a round trip changes nothing");
  auto layers = ballast_tools::model_layers::all(shape.num_layers);
  for (auto& layer : layers.of_layer) { layer = 2 * layer + 1; }
  layers.num_rows = 2 * shape.num_layers + 2;
  ballast_tools::json_input const located = ballast_tools::expert_location(read, layers);
  require(located.size() == 1, "the file of an engine has one key");
  require(ballast_tools::placement_from_json(located, shape, layers, again).ok() && again == read,
          "a round trip with dense layers changes nothing");
}

}  // namespace ballast_fuzz

#endif
