// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// How ranks find each other, and what they leave behind.
#include <ballast/posix/process_group.hpp>

#include "support/check_complaints.hpp"
#include "support/posix_runner.hpp"
#include "support/processes.hpp"

#include <doctest/doctest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

using ballast::errc;
using ballast::posix::process_group;
using ballast::posix::process_group_options;
using ballast_test::child_process;
using ballast_test::files_of_group;
using ballast_test::law_log;
using ballast_test::millisecond;
using ballast_test::patience;
using ballast_test::write_line;

namespace {

/// Join, and report which jobs the ranks of the group belong to, by a word that each brings along.
void report_group(int report, std::string const& name, ballast::index_t rank, std::uint64_t word,
                  process_group_options const& options = {}) {
  process_group group;
  if (auto const result = group.join(name, rank, 2, patience, options); !result.ok()) {
    return write_line(report, result.message());
  }
  std::array<std::uint64_t, 1> const mine{word};
  std::array<std::uint64_t, 2> all{};
  auto const result = group.all_gather(mine, all, patience);
  write_line(report, result.ok() ? ballast::detail::concat(all[0], " ", all[1]) : result.message());
}

[[nodiscard]] std::string report_of(child_process& child) {
  REQUIRE(child.finish(ballast::detail::now() + patience));
  return child.text();
}

/// Let a process come into the meeting of its group, however slow the machine is. @pre it had no shared memory before
void await_in_meeting(child_process const& child) {
  auto const maps = ballast::detail::concat("/proc/", child.pid(), "/maps");
  auto const has_mapped = [&] {
    std::ifstream file{maps};
    std::string const text{std::istreambuf_iterator<char>{file}, {}};
    return text.find("/dev/shm/") != std::string::npos;
  };
  REQUIRE(ballast::detail::poll_until(ballast::detail::now() + patience, has_mapped));
  ballast_test::sleep_for(100 * millisecond);  // it has opened the board, and says next who it is
}

/// A launcher: a process whose two children are the ranks of a job.
[[nodiscard]] child_process launch(std::string const& name, std::uint64_t job) {
  return child_process{[&](int report) {
    auto const first = job % 2 == 0 ? 0 : 1;  // jobs start their ranks in different orders
    std::vector<child_process> ranks;
    for (ballast::index_t const rank : {first, 1 - first}) {
      ranks.emplace_back([&](int own) {
        ballast_test::sleep_for(static_cast<ballast::nanoseconds_t>(job % 3) * 5 * millisecond);
        report_group(own, name, rank, job);
      });
      ballast_test::sleep_for(10 * millisecond);
    }
    for (auto& rank : ranks) {
      if (rank.finish(ballast::detail::now() + patience)) { write_line(report, rank.text()); }
    }
  }};
}

void set_environment(char const* name, char const* value) {
  if (value == nullptr) {
    ::unsetenv(name);
  } else {
    ::setenv(name, value, 1);
  }
}

}  // namespace

TEST_CASE("jobs that two launchers start under one name do not mix") {
  auto const name = ballast_test::fresh_group_name();
  std::vector<child_process> launchers;
  for (std::uint64_t job = 10; job < 14; ++job) { launchers.push_back(launch(name, job)); }
  for (std::uint64_t job = 10; job < 14; ++job) {
    CAPTURE(job);
    auto const expected = ballast::detail::concat(job, " ", job);
    CHECK(report_of(launchers[job - 10]) == expected + " \n" + expected + " \n");
  }
  CHECK(files_of_group(name).empty());
}

TEST_CASE("ranks of one job meet whoever their parents are, if they say so") {
  struct method {
    char const* variable;
    char const* value;
  };
  for (auto const& by :
       {method{nullptr, nullptr}, method{"BALLAST_JOB", "night run 7"}, method{"PMIX_NAMESPACE", "prterun-7"},
        method{"SLURM_STEP_ID", "3"}, method{"MASTER_PORT", "29500"}}) {
    CAPTURE(by.variable);
    auto const name = ballast_test::fresh_group_name();
    process_group_options options;
    if (by.variable == nullptr) { options.job = 4711; }
    auto const start = [&](ballast::index_t rank) {
      return child_process{[&](int report) {  // a wrapper of its own for each rank
        if (by.variable != nullptr) { set_environment(by.variable, by.value); }
        child_process wrapped{[&](int own) { report_group(own, name, rank, 5, options); }};
        if (wrapped.finish(ballast::detail::now() + patience)) { write_line(report, wrapped.text()); }
      }};
    };
    auto first = start(0);
    auto second = start(1);
    CHECK(report_of(first) == "5 5 \n");
    CHECK(report_of(second) == "5 5 \n");
  }
}

TEST_CASE("rank 0 and the processes that it starts are one job, either way round") {
  auto const name = ballast_test::fresh_group_name();
  for (ballast::index_t const parent : {0, 1}) {
    CAPTURE(parent);
    child_process family{[&](int report) {
      child_process child{[&](int own) { report_group(own, name, 1 - parent, 6); }};
      report_group(report, name, parent, 6);
      static_cast<void>(child.finish(ballast::detail::now() + patience));
    }};
    CHECK(report_of(family) == "6 6\n");
  }
}

TEST_CASE("a rank 0 that only shares a grandparent with a rank is another job's") {
  auto const name = ballast_test::fresh_group_name();
  child_process zero{[&](int) {
    process_group group;
    static_cast<void>(group.join(name, 0, 2, patience));
  }};
  while (files_of_group(name).empty()) { ballast_test::sleep_for(millisecond); }
  child_process launcher{[&](int report) {
    child_process one{[&](int own) {
      process_group group;
      write_line(own, group.join(name, 1, 2, 100 * millisecond).ok() ? "met" : "did not meet");
    }};
    if (one.finish(ballast::detail::now() + patience)) { write_line(report, one.text()); }
  }};
  CHECK(report_of(launcher) == "did not meet \n");
  process_group group;  // takes away what rank 0 leaves
  zero.signal(SIGKILL);
  { child_process{std::move(zero)}; }
  CHECK(group.join(name + "-next", 0, 1, patience).ok());
  CHECK(files_of_group(name).empty());
}

TEST_CASE("a rank that waits in vain hears of a group of its name that is another job's, and what to do") {
  auto const name = ballast_test::fresh_group_name();
  child_process other{[&](int report) { report_group(report, name, 0, 1, {.job = 0xabc}); }};
  while (files_of_group(name).empty()) { ballast_test::sleep_for(millisecond); }
  for (ballast::index_t const rank : {1, 0}) {
    CAPTURE(rank);
    process_group group;
    auto const result = group.join(name, rank, 2, 50 * millisecond, {.job = 0xdef});
    CHECK(result.code() == make_error_code(errc::deadline_exceeded));
    CHECK(result.rank() == 1 - rank);
    for (auto const* const part :
         {"0000000000000abc", "0000000000000def", "process_group_options::job", "BALLAST_JOB"}) {
      CAPTURE(part);
      CHECK(result.message().find(part) != std::string::npos);
    }
    CHECK(result.message().find(std::to_string(other.pid())) != std::string::npos);
  }
  process_group second;
  CHECK(second.join(name, 1, 2, patience, {.job = 0xabc}).ok());  // the first was not disturbed
  std::array<std::uint64_t, 1> const mine{2};
  std::array<std::uint64_t, 2> all{};
  CHECK(second.all_gather(mine, all, patience).ok());
  CHECK(report_of(other) == "1 2\n");
}

TEST_CASE("a place that is taken is said to be") {
  using namespace ballast::posix::detail;
  auto const name = ballast_test::fresh_group_name();
  std::vector<child_process> ranks;
  for (ballast::index_t const rank : {0, 1}) {
    ranks.emplace_back([&](int) {
      process_group group;
      static_cast<void>(group.join(name, rank, 3, patience, {.job = 5}));
    });
  }
  segment seen;
  auto const deadline = ballast::detail::now() + patience;
  while (!(seen.open(rendezvous::path_of(name, 5)) && seen.member_of(1).joined.load() != 0)) {
    REQUIRE(ballast::detail::now() < deadline);
    ballast_test::sleep_for(millisecond);
  }
  process_group group;
  auto const result = group.join(name, 1, 3, 20 * millisecond, {.job = 5});
  CHECK(result.code() == make_error_code(errc::busy));
  CHECK(result.message().find("another process is rank 1") != std::string::npos);
  CHECK(group.join(name, 2, 3, patience, {.job = 5}).ok());
  for (auto& rank : ranks) { CHECK(rank.finish(ballast::detail::now() + patience)); }
}

TEST_CASE("a rank that dies or leaves while the others still meet ends the meeting at once") {
  auto const name = ballast_test::fresh_group_name();
  for (bool const is_killed : {true, false}) {
    CAPTURE(is_killed);
    child_process zero{[&](int report) {
      process_group group;
      auto const begin = ballast::detail::now();
      auto const result = group.join(name, 0, 3, patience);
      write_line(report, ballast::detail::concat(result.rank(),
                                                 ballast::detail::now() - begin < patience / 2 ? " in time" : " late"));
    }};
    await_in_meeting(zero);
    child_process one{[&](int) {
      process_group group;
      static_cast<void>(group.join(name, 1, 3, is_killed ? patience : 200 * millisecond));
    }};
    if (is_killed) {
      await_in_meeting(one);
      one.signal(SIGKILL);
    }
    CHECK(report_of(zero) == "1 in time\n");
    CHECK(files_of_group(name).empty());
  }
}

TEST_CASE("what a rank 0 leaves that is killed anywhere in join, the next join under any name takes away") {
  auto const prefix = ballast_test::fresh_group_name();
  ballast_test::dice random{3};
  for (int i = 0; i < 60; ++i) {
    child_process victim{[&](int) {
      process_group group;
      static_cast<void>(group.join(ballast::detail::concat(prefix, "-", i), 0, 1 + i % 2, patience));
      for (;;) { ::pause(); }
    }};
    ballast_test::sleep_for(random.below(3'000'000));
  }
  // Of a living process, of another kind, and not to be read: these stay.
  auto const name = prefix + "-living";
  child_process living{[&](int) {
    process_group group;
    static_cast<void>(group.join(name, 0, 2, patience));
  }};
  while (files_of_group(name).empty()) { ballast_test::sleep_for(millisecond); }
  auto const foreign = "/dev/shm/ballast." + prefix + "-foreign";
  std::ofstream{foreign}
      << "some other program's bytes, more of them than the first words of a segment are long enough";
  process_group alone;
  CHECK(alone.join("another-name-" + prefix, 0, 1, patience).ok());
  std::vector<std::string> left;
  for (auto const& file : files_of_group(prefix + "-")) {
    if (file.find(prefix + "-living") == std::string::npos) { left.push_back(file); }
  }
  CHECK(left == std::vector<std::string>{"ballast." + prefix + "-foreign"});
  CHECK(files_of_group(name).size() == 1);
  std::filesystem::remove(foreign);
  living.signal(SIGKILL);
  { child_process{std::move(living)}; }
  CHECK(process_group{}.join("another-name-" + prefix, 0, 1, patience).ok());
  CHECK(files_of_group(prefix).empty());
}

TEST_CASE("a child that a member forks neither leaves the group nor acts for it") {
  auto const name = ballast_test::fresh_group_name();
  ballast_test::check_complaints(
      ballast_test::run_processes(2, [&](ballast::index_t rank, ballast_test::process_exit, law_log& log) {
        process_group group;
        if (!log.expect_ok(group.join(name, rank, 2, patience), "join")) { return; }
        if (rank == 0) {
          child_process child{[&](int report) {
            auto const say = [&](ballast::status const& result, char const* what) {
              bool const is_right = result.code() == make_error_code(errc::stale_membership) &&
                                    result.message().find("fork of rank 0") != std::string::npos;
              if (!is_right) { write_line(report, std::string{what} + " " + result.message()); }
            };
            std::array<std::int64_t, 1> value{1};
            std::array<std::byte, 1> bytes{};
            std::array<std::uint64_t, 2> all{};
            std::array<std::uint64_t, 1> const mine{1};
            say(group.all_reduce(value, patience), "all_reduce");
            say(group.all_gather(mine, all, patience), "all_gather");
            say(group.broadcast(bytes, 1, patience), "broadcast");
            say(group.vote(false, patience).reason, "vote");
            say(group.recall(patience).reason, "recall");
            say(group.regroup(patience), "regroup");
            say(group.trouble(), "trouble");
            say(group.expel(1), "expel");
            group.give_up({errc::internal, "a child"});
            group.leave();
            if (group.joined()) { write_line(report, "did not leave"); }
          }};
          log.expect(child.finish(ballast::detail::now() + patience), "the child hangs");
          log.expect(child.text().empty(), "in the child: ", child.text());
          log.expect_ok(group.trouble(), "trouble of the parent");
        } else {
          ballast_test::sleep_for(100 * millisecond);
        }
        std::array<std::int64_t, 1> value{1};
        log.expect_ok(group.all_reduce(value, patience), "all_reduce after a child has ended");
        log.expect(group.vote(true, patience).outcome == ballast::decision::commit, "the vote did not commit");
        log.expect(group.membership() == 1, "membership is ", group.membership());
      }));
}

TEST_CASE("calls without a group are refused") {
  process_group group;
  auto const stale = make_error_code(errc::stale_membership);
  std::array<std::int64_t, 1> value{1};
  CHECK(group.all_reduce(value, patience).code() == stale);
  CHECK(group.vote(true, patience).reason.code() == stale);
  CHECK(group.vote(true, patience).outcome == ballast::decision::undecided);
  CHECK(group.regroup(patience).code() == stale);
  CHECK(group.trouble().code() == stale);
  CHECK(group.expel(0).code() == stale);
  group.give_up({errc::internal, "nobody"});
  group.leave();
  REQUIRE(group.join(ballast_test::fresh_group_name(), 0, 1, patience).ok());
  auto const invalid = make_error_code(errc::invalid_option);
  std::array<std::byte, 1> bytes{};
  std::array<std::uint64_t, 3> all{};
  std::array<std::uint64_t, 2> const mine{};
  CHECK(group.broadcast(bytes, 1, patience).code() == invalid);
  CHECK(group.broadcast(bytes, -1, patience).code() == invalid);
  CHECK(group.all_gather(mine, all, patience).code() == invalid);
  CHECK(group.expel(0).code() == invalid);
  CHECK(group.expel(1).code() == invalid);
  CHECK(group.expel(-1).code() == invalid);
}
