// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// Types that satisfy exactly one concept each and nothing more, so that algorithms cannot ask for more than they say.
#ifndef BALLAST_TESTS_SUPPORT_ARCHETYPES_HPP
#define BALLAST_TESTS_SUPPORT_ARCHETYPES_HPP

#include <ballast/load/recorder.hpp>

#include <algorithm>
#include <span>

namespace ballast_test {

/// A `load_recorder` of two layers and three experts that records nothing and can only be moved.
class recorder_archetype {
public:
  static constexpr bool clears_on_dump = true;

  recorder_archetype() = default;
  recorder_archetype(recorder_archetype&&) = default;
  recorder_archetype& operator=(recorder_archetype&&) = default;

  [[nodiscard]] ballast::status record_top_k(ballast::index_t, std::span<ballast::index_t const>) { return {}; }
  [[nodiscard]] ballast::status record_logical(ballast::index_t, std::span<ballast::load_t const>) { return {}; }
  [[nodiscard]] ballast::status record_physical(ballast::index_t, std::span<ballast::load_t const>,
                                                std::span<ballast::index_t const>, ballast::topology const&) {
    return {};
  }
  [[nodiscard]] ballast::status record_local(ballast::index_t, std::span<ballast::load_t const>, ballast::index_t,
                                             std::span<ballast::index_t const>, ballast::topology const&) {
    return {};
  }
  [[nodiscard]] ballast::status record_local_prefix_sums(ballast::index_t, std::span<ballast::load_t const>,
                                                         ballast::index_t, std::span<ballast::index_t const>,
                                                         ballast::topology const&) {
    return {};
  }
  void end_pass(bool) {}
  [[nodiscard]] ballast::index_t num_buckets() const { return 1; }
  [[nodiscard]] ballast::index_t num_layers() const { return 2; }
  [[nodiscard]] ballast::index_t num_logical() const { return 3; }
  [[nodiscard]] ballast::status history(std::span<ballast::load_t> out) const {
    std::fill(out.begin(), out.end(), ballast::load_t{0});
    return {};
  }
  void clear() {}
  void describe(ballast::digest&) const {}
};
static_assert(ballast::load_recorder<recorder_archetype>);

}  // namespace ballast_test

#endif
