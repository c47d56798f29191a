// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/transport/detail/segments.hpp>

#include <doctest/doctest.h>

#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

using ballast::remote_segment;
using ballast::segment;
using ballast::detail::segment_cursor;

TEST_CASE("a cursor visits every byte once, in order, over empty segments and the ends of its calls") {
  std::string text = "abcdefghij";
  auto* const start = reinterpret_cast<std::byte*>(text.data());
  std::array<segment, 6> const parts{{{start, 0}, {start + 3, 4}, {start, 0}, {start, 0}, {start, 3}, {start, 0}}};
  std::span<segment const> const list{parts};
  for (std::size_t step = 1; step <= 8; ++step) {
    CAPTURE(step);
    segment_cursor cursor;
    std::string seen;
    std::vector<std::size_t> runs;
    for (std::size_t done = 0; done < 7; done += step) {
      cursor.advance(list, step, [&](segment const& part, std::size_t at, std::size_t run) {
        seen.append(reinterpret_cast<char const*>(part.data + at), run);
        runs.push_back(run);
      });
    }
    CHECK(seen == "defgabc");
    CHECK(cursor.run(list) == 0);
    if (step == 3) { CHECK(runs == std::vector<std::size_t>{3, 1, 2, 1}); }
  }
}

TEST_CASE("a cursor tells how far its segment reaches, and skips as it visits") {
  std::array<remote_segment, 4> const parts{{{7, 100, 2}, {8, 0, 0}, {9, 5, 6}, {9, 50, 0}}};
  std::span<remote_segment const> const list{parts};
  segment_cursor cursor;
  CHECK(cursor.run(list) == 2);
  cursor.skip(list, 2);
  CHECK(cursor.run(list) == 6);
  CHECK(cursor.part == 2);
  cursor.skip(list, 4);
  CHECK(cursor.run(list) == 2);
  CHECK(cursor.at == 4);
  cursor.skip(list, 100);
  CHECK(cursor.run(list) == 0);
  CHECK(segment_cursor{}.run(std::span<remote_segment const>{}) == 0);
}
