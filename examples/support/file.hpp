// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_SUPPORT_FILE_HPP
#define BALLAST_EXAMPLES_SUPPORT_FILE_HPP

#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace ballast_tools {

namespace detail {
struct file_closer {
  void operator()(std::FILE* file) const noexcept { std::fclose(file); }
};

[[nodiscard]] inline ballast::status file_error(std::string const& path, char const* what) {
  return {ballast::errc::malformed_file, ballast::detail::concat(path, ": ", what, ": ", std::strerror(errno))};
}
}  // namespace detail

/// An open file that closes itself.
using file_handle = std::unique_ptr<std::FILE, detail::file_closer>;

/// Read a whole file. @param text out: unchanged on failure
[[nodiscard]] inline ballast::status read_file(std::string const& path, std::string& text) {
  file_handle const file{std::fopen(path.c_str(), "rb")};
  if (file == nullptr) { return detail::file_error(path, "cannot be opened"); }
  std::string content;
  std::array<char, 65536> part;
  while (std::feof(file.get()) == 0 && std::ferror(file.get()) == 0) {
    content.append(part.data(), std::fread(part.data(), 1, part.size(), file.get()));
  }
  if (std::ferror(file.get()) != 0) { return detail::file_error(path, "cannot be read"); }
  text = std::move(content);
  return {};
}

/// Open a file for writing, emptying it. @param file out: unchanged on failure
[[nodiscard]] inline ballast::status create_file(std::string const& path, file_handle& file) {
  file_handle created{std::fopen(path.c_str(), "wb")};
  if (created == nullptr) { return detail::file_error(path, "cannot be opened for writing"); }
  file = std::move(created);
  return {};
}

/// Close a file that was written to, and say if any of it was lost.
[[nodiscard]] inline ballast::status close_file(std::string const& path, file_handle file) {
  bool const complete = std::ferror(file.get()) == 0;
  if (std::fclose(file.release()) != 0 || !complete) { return detail::file_error(path, "cannot be written"); }
  return {};
}

/// Write a whole file, or say why not.
[[nodiscard]] inline ballast::status write_file(std::string const& path, std::string_view text) {
  file_handle file;
  if (auto result = create_file(path, file); !result.ok()) { return result; }
  std::fwrite(text.data(), 1, text.size(), file.get());
  return close_file(path, std::move(file));
}

/// Put the name of the file in front of what is wrong with its content.
[[nodiscard]] inline ballast::status in_file(std::string const& path, ballast::status const& result) {
  if (result.ok()) { return {}; }
  return {result.code(), ballast::detail::concat(path, ": ", result.message())};
}

}  // namespace ballast_tools

#endif
