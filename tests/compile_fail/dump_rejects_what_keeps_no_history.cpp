// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// expect 1: dump & load_recorder
#include <ballast/load/recorder.hpp>

#include <algorithm>
#include <span>

struct last_pass : ballast::pass_counter {
  static constexpr bool clears_on_dump = false;

  using pass_counter::pass_counter;
  void end_pass(bool) {}
  [[nodiscard]] ballast::index_t num_buckets() const { return 1; }
  void clear() {}
  void describe(ballast::digest& out) const { describe_shape(out); }
#ifndef BALLAST_EXPECT_FAILURE
  [[nodiscard]] ballast::status history(std::span<ballast::load_t> out) const {
    std::ranges::copy(pass(), out.begin());
    return {};
  }
#endif
};

template <ballast::load_recorder Recorder>
void dump(Recorder const& recorder, std::span<ballast::load_t> out) {
  recorder.history(out).or_throw();
}

void dump_last_pass(last_pass const& recorder, std::span<ballast::load_t> out) { dump(recorder, out); }
