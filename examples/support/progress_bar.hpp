// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_SUPPORT_PROGRESS_BAR_HPP
#define BALLAST_EXAMPLES_SUPPORT_PROGRESS_BAR_HPP

#include <unistd.h>

#include <cstdio>
#include <string>

namespace ballast_tools {

/// A line on standard error that fills up, drawn only where a person is looking: on a terminal.
class progress_bar {
public:
  explicit progress_bar(int total) : total_{total}, visible_{total > 0 && ::isatty(STDERR_FILENO) == 1} {}
  progress_bar(progress_bar const&) = delete;
  progress_bar& operator=(progress_bar const&) = delete;
  /// Leaves the line clean for what is printed next.
  ~progress_bar() {
    if (drawn_ >= 0) { std::fprintf(stderr, "\r\033[K"); }
  }

  void show(int done) {
    int const percent = visible_ ? static_cast<int>(100LL * done / total_) : drawn_;
    if (percent == drawn_) { return; }
    drawn_ = percent;
    auto const filled = static_cast<std::size_t>(width * percent / 100);
    auto const bar = std::string(filled, '#') + std::string(width - filled, '.');
    std::fprintf(stderr, "\r[%s] %3d %%  pass %d of %d", bar.c_str(), percent, done, total_);
    std::fflush(stderr);
  }

private:
  static constexpr int width = 40;

  int total_;
  bool visible_;
  int drawn_ = -1;
};

}  // namespace ballast_tools

#endif
