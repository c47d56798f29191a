// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_HISTORIES_HPP
#define BALLAST_TESTS_SUPPORT_HISTORIES_HPP

#include <ballast/types.hpp>

#include <cstddef>
#include <vector>

namespace ballast_test {

/// What a recorder holds, `[H, L, E]`.
template <class Recorder>
[[nodiscard]] std::vector<ballast::load_t> history_of(Recorder const& recorder) {
  std::vector<ballast::load_t> out(static_cast<std::size_t>(recorder.num_buckets()) *
                                   static_cast<std::size_t>(recorder.num_layers()) *
                                   static_cast<std::size_t>(recorder.num_logical()));
  recorder.history(out).or_throw();
  return out;
}

/// The same, buckets added up: `[L, E]`.
template <class Recorder>
[[nodiscard]] std::vector<ballast::load_t> total_of(Recorder const& recorder) {
  std::vector<ballast::load_t> sum(static_cast<std::size_t>(recorder.num_layers()) *
                                   static_cast<std::size_t>(recorder.num_logical()));
  auto const history = history_of(recorder);
  for (std::size_t i = 0; i < history.size(); ++i) { sum[i % sum.size()] += history[i]; }
  return sum;
}

}  // namespace ballast_test

#endif
