// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "../../examples/support/printable.hpp"

#include <doctest/doctest.h>

#include <string>

using namespace std::string_literals;
using ballast_tools::excerpt;
using ballast_tools::printable;

TEST_CASE("what can be read stays what it is") {
  for (auto const& text : {""s, "plan.json: line 2"s, R"(~!\'")"s,
                           "Gr\xc3\xb6\xc3\x9f"
                           "e \xe2\x82\xac \xf0\x9f\x98\x80"s}) {
    CHECK(printable(text) == text);
  }
}

TEST_CASE("every control character becomes visible, and none cuts the text short") {
  for (int code = 0; code < 0x20; ++code) {
    auto const shown = printable("a"s + static_cast<char>(code) + "b");
    CHECK(shown.size() == 6);
    CHECK(shown.starts_with("a\\x"));
    CHECK(shown.ends_with("b"));
  }
  CHECK(printable("\0[31m"s) == "\\x00[31m");
  CHECK(printable("\x1b[2J") == "\\x1b[2J");
  CHECK(printable("\x7f") == "\\x7f");
  CHECK(printable("\xc2\x9b") == "\\xc2\\x9b");  // the C1 control that starts an escape sequence
}

TEST_CASE("invisible characters and changes of direction become visible") {
  CHECK(printable("\xef\xbb\xbf"
                  "4") == "\\xef\\xbb\\xbf4");
  CHECK(printable("\xe2\x80\x8b") == "\\xe2\\x80\\x8b");
  CHECK(printable("\xe2\x80\xae") == "\\xe2\\x80\\xae");
  CHECK(printable("\xc2\xad") == "\\xc2\\xad");
}

TEST_CASE("bytes that are no UTF-8 become visible one by one") {
  CHECK(printable("\xff\xfe") == "\\xff\\xfe");
  CHECK(printable("\x80") == "\\x80");
  CHECK(printable("\xc0\xaf") == "\\xc0\\xaf");                    // longer than it need be
  CHECK(printable("\xe0\x80\xaf") == "\\xe0\\x80\\xaf");           // the same
  CHECK(printable("\xed\xa0\x80") == "\\xed\\xa0\\x80");           // half of a UTF-16 pair
  CHECK(printable("\xf4\x90\x80\x80") == "\\xf4\\x90\\x80\\x80");  // beyond the last code point
  CHECK(printable("\xe2\x82") == "\\xe2\\x82");                    // cut off
  CHECK(printable("\xe2\x82x") == "\\xe2\\x82x");
}

TEST_CASE("a long text is cut for a message") {
  CHECK(excerpt(std::string(40, 'x')) == std::string(40, 'x'));
  CHECK(excerpt(std::string(41, 'x')) == std::string(37, 'x') + "...");
}
