// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_SUPPORT_FILE_HPP
#define BALLAST_EXAMPLES_SUPPORT_FILE_HPP

#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace ballast_tools {

/// As a file's name: standard input where a file is read, standard output where one is written.
inline constexpr std::string_view standard_stream = "-";

namespace detail {
struct file_closer {
  void operator()(std::FILE* file) const noexcept { std::fclose(file); }
};

/// Another handle of an open file. @return null: none can be had
[[nodiscard]] inline std::FILE* open_again(int descriptor) {
  auto const copy = ::dup(descriptor);
  return copy < 0 ? nullptr : ::fdopen(copy, "rb");
}

[[nodiscard]] inline ballast::status file_error(std::string_view path, char const* what, int error) {
  return {ballast::errc::malformed_file, ballast::detail::concat(path, ": ", what, ": ", std::strerror(error))};
}
}  // namespace detail

/// An open file that closes itself.
using file_handle = std::unique_ptr<std::FILE, detail::file_closer>;

// ---- reading ----

/// What messages call a file that is read.
[[nodiscard]] inline std::string input_name(std::string const& path) {
  return path == standard_stream ? "standard input" : path;
}

/// Put the name of the file in front of what is wrong with its content.
[[nodiscard]] inline ballast::status in_file(std::string const& path, ballast::status const& result) {
  if (result.ok()) { return {}; }
  return {result.code(), ballast::detail::concat(input_name(path), ": ", result.message())};
}

/// Read a whole file, `-` being standard input. @param text out: unchanged on failure
[[nodiscard]] inline ballast::status read_file(std::string const& path, std::string& text) {
  constexpr std::size_t max_size = std::size_t{1} << 32;
  auto const name = input_name(path);
  file_handle const file{path == standard_stream ? detail::open_again(STDIN_FILENO) : std::fopen(path.c_str(), "rb")};
  if (file == nullptr) { return detail::file_error(name, "cannot be opened", errno); }
  std::string content;
  std::array<char, 65536> part;
  while (std::feof(file.get()) == 0 && std::ferror(file.get()) == 0) {
    content.append(part.data(), std::fread(part.data(), 1, part.size(), file.get()));
    if (content.size() > max_size) {
      return {ballast::errc::malformed_file, ballast::detail::concat(name, ": holds more than ", max_size, " bytes")};
    }
  }
  if (std::ferror(file.get()) != 0) { return detail::file_error(name, "cannot be read", errno); }
  text = std::move(content);
  return {};
}

/// Take the byte order mark away that some programs put in front of UTF-8, and refuse other encodings.
///
/// @param in_out in/out: unchanged on failure
[[nodiscard]] inline ballast::status skip_byte_order_mark(std::string_view& in_out) {
  constexpr std::string_view utf8_mark = "\xef\xbb\xbf";
  if (in_out.starts_with(utf8_mark)) { in_out.remove_prefix(utf8_mark.size()); }
  bool const marked = in_out.starts_with("\xff\xfe") || in_out.starts_with("\xfe\xff");
  bool const half_empty = in_out.size() > 1 && (in_out[0] == '\0') != (in_out[1] == '\0');
  if (!marked && !half_empty) { return {}; }
  return {ballast::errc::malformed_file, "the text is UTF-16 or UTF-32, must be UTF-8"};
}

// ---- writing ----

namespace detail {

/// Where a name leads to, once symbolic links are followed.
struct place {
  std::filesystem::path path;
  std::optional<int> descriptor;  ///< it is a name of this open file of the process, as /dev/stdout is
};

/// @return where a file of this name is, or would be; nothing where a folder is missing or links go round in circles
[[nodiscard]] inline std::optional<place> follow(std::filesystem::path path, std::error_code& error) {
  namespace fs = std::filesystem;
  constexpr int max_links = 40;
  std::error_code ignored;
  auto const descriptors = fs::canonical("/proc/self/fd", ignored);
  for (int links = 0; links < max_links; ++links) {
    auto const folder = fs::canonical(path.has_parent_path() ? path.parent_path() : fs::path{"."}, error);
    if (error) { return {}; }
    auto const file = folder / path.filename();
    if (folder == descriptors) {
      auto const digits = path.filename().string();
      int descriptor = -1;
      std::from_chars(digits.data(), digits.data() + digits.size(), descriptor);
      return place{file, descriptor};
    }
    if (!fs::is_symlink(fs::symlink_status(file, ignored))) { return place{file, {}}; }
    auto const target = fs::read_symlink(file, error);
    if (error) { return {}; }
    path = target.is_absolute() ? target : folder / target;
  }
  error = std::make_error_code(std::errc::too_many_symbolic_link_levels);
  return {};
}

[[nodiscard]] inline mode_t mode_of_new_files() {
  auto const mask = ::umask(0);
  ::umask(mask);
  return static_cast<mode_t>(0666) & ~mask;
}

}  // namespace detail

/// A file that comes into being whole, or not at all: what is written goes to a new file beside it, which takes its
/// name in `publish`. Until then, and when anything fails, a file that was there stays what it is. Devices, pipes and
/// open files of the process (`-`, /dev/stdout) are written to as they are. A hard link keeps the old content.
///
/// Calls in order: `open`, `write` any number of times, `finish`, `publish`.
class output_file {
public:
  output_file() = default;
  output_file(output_file const&) = delete;
  output_file& operator=(output_file const&) = delete;
  ~output_file() {
    if (!beside_.empty()) { ::unlink(beside_.c_str()); }
  }

  [[nodiscard]] bool is_open() const noexcept { return file_ != nullptr; }

  [[nodiscard]] ballast::status open(std::string const& path) {
    name_ = path == standard_stream ? "standard output" : path;
    auto const descriptor = path == standard_stream ? ::dup(STDOUT_FILENO) : open_place(path);
    if (descriptor < 0) { return detail::file_error(name_, "cannot be opened for writing", errno); }
    file_.reset(::fdopen(descriptor, "wb"));
    if (file_ == nullptr) {  // a stream that is open for reading only
      ::close(descriptor);
      return detail::file_error(name_, "cannot be opened for writing", EBADF);
    }
    return {};
  }

  /// Failures are told by `finish`. @pre `is_open()`
  void write(std::string_view text) {
    if (std::fwrite(text.data(), 1, text.size(), file_.get()) != text.size() && error_ == 0) { error_ = errno; }
  }

  /// Say if anything was lost of what was written. @pre `is_open()`
  [[nodiscard]] ballast::status finish() {
    check(std::fflush(file_.get()) == 0);
    if (!beside_.empty()) { check(::fsync(::fileno(file_.get())) == 0); }
    check(std::fclose(file_.release()) == 0);
    if (error_ != 0) { return detail::file_error(name_, "cannot be written", error_); }
    return {};
  }

  /// Give the file its name. @pre `finish` returned success
  [[nodiscard]] ballast::status publish() {
    if (beside_.empty()) { return {}; }
    if (::rename(beside_.c_str(), target_.c_str()) != 0) {
      return detail::file_error(name_, "cannot be replaced", errno);
    }
    beside_.clear();
    return {};
  }

private:
  void check(bool done) {
    if (!done && error_ == 0) { error_ = errno; }
  }

  /// @return a descriptor, or -1 with `errno`
  [[nodiscard]] int open_place(std::string const& path) {
    struct stat old{};
    bool const exists = ::stat(path.c_str(), &old) == 0;
    if (!exists && errno != ENOENT) { return -1; }
    if (exists && S_ISDIR(old.st_mode)) { return fail(EISDIR); }
    if (exists && !S_ISREG(old.st_mode)) { return ::open(path.c_str(), O_WRONLY | O_CLOEXEC); }
    std::error_code error;
    auto const place = detail::follow(path, error);
    if (!place) { return fail(error.value()); }
    if (place->descriptor) { return ::dup(*place->descriptor); }
    if (exists && ::access(path.c_str(), W_OK) != 0) { return -1; }
    target_ = place->path.string();
    return open_beside(exists ? &old : nullptr);
  }

  [[nodiscard]] int open_beside(struct stat const* old) {
    auto pattern = (std::filesystem::path{target_}.parent_path() / ".ballast-XXXXXX").string();
    auto const descriptor = ::mkostemp(pattern.data(), O_CLOEXEC);
    if (descriptor < 0) { return -1; }
    beside_ = pattern;
    // Whose it is can only be kept by those who may give files away.
    if (old != nullptr) { static_cast<void>(::fchown(descriptor, old->st_uid, old->st_gid) == 0); }
    auto const mode = old != nullptr ? old->st_mode & static_cast<mode_t>(07777) : detail::mode_of_new_files();
    if (::fchmod(descriptor, mode) == 0) { return descriptor; }
    auto const error = errno;
    ::close(descriptor);
    return fail(error);
  }

  [[nodiscard]] static int fail(int error) {
    errno = error;
    return -1;
  }

  std::string name_;    ///< as messages say it
  std::string target_;  ///< the name it is to have
  std::string beside_;  ///< the name it has; empty where it is written to in place
  file_handle file_;
  int error_ = 0;  ///< `errno` of the first failure
};

/// Write a whole file, or say why not; `-` is standard output.
[[nodiscard]] inline ballast::status write_file(std::string const& path, std::string_view text) {
  output_file file;
  if (auto result = file.open(path); !result.ok()) { return result; }
  file.write(text);
  if (auto result = file.finish(); !result.ok()) { return result; }
  return file.publish();
}

/// Say if anything was lost of what was printed to standard output.
[[nodiscard]] inline ballast::status flush_standard_output() {
  errno = 0;
  bool const flushed = std::fflush(stdout) == 0;
  if (flushed && std::ferror(stdout) == 0) { return {}; }
  return detail::file_error("standard output", "cannot be written", errno != 0 ? errno : EIO);
}

// ---- which files a program may write ----

/// A file and the option that names it.
struct named_file {
  char const* option;
  std::string path;
};

namespace detail {

/// What tells two files apart, whatever their names are. Only files that keep their content count: two ends of a
/// terminal are not in each other's way.
class file_identity {
public:
  /// @param stream  the descriptor that `-` means
  file_identity(std::string const& path, int stream) {
    struct stat info{};
    auto const found = path == standard_stream ? ::fstat(stream, &info) : ::stat(path.c_str(), &info);
    exists_ = found == 0;
    regular_ = exists_ && S_ISREG(info.st_mode);
    device_ = info.st_dev;
    inode_ = info.st_ino;
    std::error_code ignored;
    if (auto const place = exists_ || path == standard_stream ? std::nullopt : follow(path, ignored)) {
      path_ = place->path.string();
    }
  }
  [[nodiscard]] bool same_as(file_identity const& other) const {
    if (exists_ || other.exists_) {
      return regular_ && other.regular_ && device_ == other.device_ && inode_ == other.inode_;
    }
    return !path_.empty() && path_ == other.path_;
  }

private:
  bool exists_ = false;
  bool regular_ = false;
  dev_t device_ = 0;
  ino_t inode_ = 0;
  std::string path_;  ///< where it would be
};

[[nodiscard]] inline ballast::status refuse_file(named_file const& file, auto const&... why) {
  return {ballast::errc::invalid_option,
          ballast::detail::concat(file.option, " is '", file.path, "', ", why..., ": name another file")};
}

}  // namespace detail

/// Refuse to write a file that is also read or written by another option, under whatever name, and streams that are
/// asked for twice.
[[nodiscard]] inline ballast::status check_files(std::vector<named_file> const& inputs,
                                                 std::vector<named_file> const& outputs) {
  auto const both_streams = [](named_file const& a, named_file const& b) {
    return a.path == standard_stream && b.path == standard_stream;
  };
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      if (both_streams(inputs[i], inputs[j])) {
        return detail::refuse_file(inputs[i], "but ", inputs[j].option, " reads standard input already");
      }
    }
  }
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    detail::file_identity const output{outputs[i].path, STDOUT_FILENO};
    for (auto const& input : inputs) {
      if (output.same_as({input.path, STDIN_FILENO})) {
        return detail::refuse_file(outputs[i], "which is the file that ", input.option, " reads");
      }
    }
    for (std::size_t j = 0; j < i; ++j) {
      if (both_streams(outputs[i], outputs[j])) {
        return detail::refuse_file(outputs[i], "but ", outputs[j].option, " goes to standard output already");
      }
      if (output.same_as({outputs[j].path, STDOUT_FILENO})) {
        return detail::refuse_file(outputs[i], "which is the file that ", outputs[j].option, " writes");
      }
    }
  }
  return {};
}

}  // namespace ballast_tools

#endif
