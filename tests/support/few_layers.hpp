// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_FEW_LAYERS_HPP
#define BALLAST_TESTS_SUPPORT_FEW_LAYERS_HPP

#include <ballast/digest.hpp>
#include <ballast/schedule/chunk_schedule.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <span>
#include <string_view>
#include <vector>

namespace ballast_test {

/// A chunk for so many changed layers, without range-v3: it compiles in a fraction of the time, and in .cu files.
struct few_layers {
  ballast::index_t layers = 1;
  [[nodiscard]] ballast::status validate() const { return {}; }
  template <class Sink>
  void for_each_chunk(std::span<ballast::layer_work const> work, Sink sink) const {
    std::vector<ballast::index_t> chunk;
    for (auto const& item : work) {
      if (item.changed) { chunk.push_back(item.layer); }
      if (static_cast<ballast::index_t>(chunk.size()) < layers) { continue; }
      sink(std::span<ballast::index_t const>{chunk});
      chunk.clear();
    }
    if (!chunk.empty()) { sink(std::span<ballast::index_t const>{chunk}); }
  }
  void describe(ballast::digest& out) const { out.add(std::string_view{"few_layers"}).add(layers); }
};

}  // namespace ballast_test

#endif
