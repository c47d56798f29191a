// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POSIX_DETAIL_RENDEZVOUS_HPP
#define BALLAST_POSIX_DETAIL_RENDEZVOUS_HPP

#include <ballast/detail/clock.hpp>
#include <ballast/detail/owned_descriptor.hpp>
#include <ballast/detail/process_watch.hpp>
#include <ballast/detail/system_failure.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/posix/detail/job.hpp>
#include <ballast/posix/detail/segment.hpp>
#include <ballast/posix/detail/segment_layout.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace posix::detail {

/// How ranks find the segment that rank 0 makes: by the group's name and the number of their job.
class rendezvous {
public:
  static constexpr std::string_view folder = "/dev/shm/";
  static constexpr std::string_view prefix = "ballast.";

  rendezvous(std::string_view name, job where) : name_{name}, job_{std::move(where)} {}

  [[nodiscard]] static std::string path_of(std::string_view name, std::uint64_t number) {
    return ballast::detail::concat(folder, prefix, name, ".", ballast::detail::hex(number));
  }

  /// Rank 0: make a segment and put it under the name, clearing away what a dead run left there.
  [[nodiscard]] status publish(index_t num_ranks, nanoseconds_t deadline, segment& out) const {
    segment made;
    if (auto result = made.create(num_ranks, this_process(), job_.number()); !result.ok()) { return result; }
    made.member_of(0).claimed.store(1);
    auto const path = path_of(name_, job_.number());
    while (!made.publish(path)) {
      if (errno != EEXIST) {
        return system_failure(errc::transport_failed, "process_group: cannot publish the segment", errno);
      }
      segment other;
      bool const is_ours = other.open(path);
      if (is_ours && is_over(other)) {
        other.unpublish(path);
        continue;
      }
      if (ballast::detail::now() >= deadline) { return taken(path, is_ours ? &other : nullptr); }
      ::usleep(poll_microseconds);
    }
    out = std::move(made);
    return {};
  }
  void unpublish(segment const& published) const { published.unpublish(path_of(name_, job_.number())); }

  /// Other ranks: wait for a segment of this job whose creator lives and where this rank's place is free.
  [[nodiscard]] status attach(index_t rank, index_t num_ranks, nanoseconds_t deadline, segment& out) const {
    bool is_claimed = false;
    for (;;) {
      segment found;
      if (find(found)) {
        if (auto result = check(found, rank, num_ranks); !result.ok()) { return result; }
        std::uint32_t unclaimed = 0;
        if (found.member_of(rank).claimed.compare_exchange_strong(unclaimed, 1)) {
          out = std::move(found);
          return {};
        }
        is_claimed = true;
      }
      if (ballast::detail::now() >= deadline) { return in_vain(rank, is_claimed); }
      ::usleep(poll_microseconds);
    }
  }

  /// How ranks that wait for each other may have missed each other; empty if nothing hints at that.
  [[nodiscard]] std::string hint() const {
    for (auto const& [path, facts] : published()) {
      if (facts.job == job_.number() || !is_path_of_name(path)) { continue; }
      return ballast::detail::concat("; a group of this name exists for job ", ballast::detail::hex(facts.job),
                                     ", made by process ", facts.creator.pid, ", while this rank belongs to job ",
                                     ballast::detail::hex(job_.number()), " as told by ", job_.told_by,
                                     ": ranks of one job need the same process_group_options::job, or BALLAST_JOB");
    }
    return {};
  }

  /// Take away what processes of this user that died while they met have left under any name.
  static void clear_away_dead() {
    for (auto const& [path, facts] : published()) {
      if (facts.pid_namespace != pid_namespace() || !process_watch{facts.creator}.dead()) { continue; }
      // Somebody may have put another file there meanwhile.
      segment_facts now;
      if (read_facts(path, now) && now.creator == facts.creator) { ::unlink(path.c_str()); }
    }
  }

private:
  static constexpr ::useconds_t poll_microseconds = 1000;

  struct publication {
    std::string path;
    segment_facts facts;
  };

  // The creator is gone or has given the meeting up.
  [[nodiscard]] static bool is_over(segment const& found) {
    return process_watch{found.header().facts.creator}.dead() || found.header().abandoned.load() != 0;
  }
  [[nodiscard]] bool is_path_of_name(std::string_view path) const {
    constexpr std::size_t digits = 16;
    auto const start = ballast::detail::concat(folder, prefix, name_, ".");
    return path.size() == start.size() + digits && path.substr(0, start.size()) == start;
  }

  // Map the segment of this job, if one is there.
  [[nodiscard]] bool find(segment& out) const {
    for (auto const& candidate : job_.candidates) {
      segment found;
      if (!found.open(path_of(name_, candidate.number)) || is_over(found)) { continue; }
      auto const& facts = found.header().facts;
      if (facts.job != candidate.number) { continue; }
      if (candidate.creator != process_identity{} && candidate.creator != facts.creator) { continue; }
      out = std::move(found);
      return true;
    }
    return false;
  }
  [[nodiscard]] static status check(segment const& found, index_t rank, index_t num_ranks) {
    auto const& facts = found.header().facts;
    if (facts.pid_namespace != pid_namespace()) {
      return {errc::transport_failed, "process_group: rank 0 lives in another process namespace", 0};
    }
    if (facts.num_ranks != num_ranks) {
      return {errc::disagreement,
              ballast::detail::concat("process_group: rank 0 expects ", facts.num_ranks, " ranks, rank ", rank,
                                      " expects ", num_ranks),
              0};
    }
    return {};
  }

  [[nodiscard]] static status taken(std::string const& path, segment const* other) {
    using ballast::detail::concat;
    if (other == nullptr) { return {errc::busy, concat("process_group: ", path, " is taken by something else")}; }
    return {errc::busy,
            concat("process_group: ", path, " belongs to process ", other->header().facts.creator.pid,
                   "; two groups of one name that meet at the same time need different process_group_options::job")};
  }
  [[nodiscard]] status in_vain(index_t rank, bool is_claimed) const {
    auto const path = path_of(name_, job_.number());
    if (is_claimed) {
      return {errc::busy, ballast::detail::concat("process_group: another process is rank ", rank, " of the group at ",
                                                  path, " already")};
    }
    return {errc::deadline_exceeded,
            ballast::detail::concat("process_group: rank ", rank, " waited in vain for rank 0 at ", path, hint()), 0};
  }

  // Read what a file of this user says it is, whatever its layout. @return false when it is no segment
  [[nodiscard]] static bool read_facts(std::string const& path, segment_facts& out) {
    owned_descriptor const file{::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)};
    struct ::stat about{};
    return file.is_open() && ::fstat(file.get(), &about) == 0 && S_ISREG(about.st_mode) &&
           about.st_uid == ::geteuid() && ::pread(file.get(), &out, sizeof out, 0) == sizeof out && is_magic(out.magic);
  }
  // Every segment of this user that has a name.
  [[nodiscard]] static std::vector<publication> published() {
    std::vector<publication> found;
    ::DIR* const list = ::opendir("/dev/shm");
    if (list == nullptr) { return found; }
    while (::dirent const* const entry = ::readdir(list)) {
      if (std::string_view{entry->d_name}.substr(0, prefix.size()) != prefix) { continue; }
      publication seen{ballast::detail::concat(folder, entry->d_name), {}};
      if (read_facts(seen.path, seen.facts)) { found.push_back(std::move(seen)); }
    }
    ::closedir(list);
    return found;
  }

  std::string name_;
  job job_;
};

}  // namespace posix::detail
BALLAST_END_NAMESPACE

#endif
