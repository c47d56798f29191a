// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// What the directories of peers do without a device.
#include <ballast/cudart/detail/shared_boards.hpp>
#include <ballast/cudart/ipc_peers.hpp>
#include <ballast/cudart/peer_directory.hpp>
#include <ballast/posix/process_group.hpp>

#include "support/check_complaints.hpp"
#include "support/group_runner.hpp"
#include "support/posix_runner.hpp"
#include "support/processes.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace detail = ballast::cudart::detail;
using ballast::errc;
using ballast::index_t;
using ballast::cudart::memory_export;
using ballast::cudart::pair_board;
using ballast::posix::process_group;
using ballast_test::law_log;
using ballast_test::patience;
using ballast_test::process_exit;

static_assert(ballast::cudart::peer_directory<ballast::cudart::ipc_peers<process_group>>);
static_assert(alignof(pair_board) == 64 && sizeof(pair_board) % 64 == 0, "no two boards share a cache line");

namespace {

/// Names in shared memory of boards that a process made.
[[nodiscard]] std::vector<std::string> left_boards(::pid_t maker) {
  std::vector<std::string> found;
  auto const part = ballast::detail::concat('-', maker, '-');
  for (auto const& entry : std::filesystem::directory_iterator{"/dev/shm"}) {
    auto const file = entry.path().filename().string();
    if (file.find("ballast-boards-") == 0 && file.find(part) != std::string::npos) { found.push_back(file); }
  }
  return found;
}

}  // namespace

TEST_CASE("boards are the same for all ranks, and leave no name behind") {
  auto const name = ballast_test::fresh_group_name();
  ballast_test::check_complaints(ballast_test::run_processes(3, [&](index_t rank, process_exit, law_log& log) {
    process_group group;
    if (!log.expect_ok(group.join(name, rank, 3, patience), "join")) { return; }
    detail::shared_boards boards;
    auto const deadline = ballast::detail::deadline_after(patience);
    if (!log.expect_ok(boards.open(group, 1, deadline), "open")) { return; }
    log.expect(left_boards(::getpid()).empty(), "a name is left in /dev/shm");
    auto const word = [](index_t from, index_t to) { return static_cast<std::uint64_t>(100 * (from + 1) + to); };
    for (index_t peer = 0; peer < 3; ++peer) { boards.at(rank, peer).offered = word(rank, peer); }
    log.expect_ok(group.all_reduce({}, patience), "meeting");
    for (index_t peer = 0; peer < 3; ++peer) {
      log.expect(boards.at(peer, rank).offered == word(peer, rank), "another word from rank ", peer);
    }
    log.expect_ok(group.all_reduce({}, patience), "meeting");
  }));
}

TEST_CASE("boards whose maker died while the ranks met are cleared away by the next") {
  ballast_test::child_process maker{[](int) {
    auto const file = ::shm_open(detail::board_name::fresh().c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    ::_exit(file < 0 ? 1 : 0);
  }};
  auto const pid = maker.pid();
  REQUIRE(maker.finish(ballast::detail::now() + patience));
  REQUIRE(left_boards(pid).size() == 1);

  auto const own = detail::board_name::fresh();
  auto const file = ::shm_open(own.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0600);
  detail::board_name::clear_away_dead();
  CHECK(left_boards(pid).empty());
  CHECK(left_boards(::getpid()).size() == 1);  // its maker lives
  ::close(file);
  ::shm_unlink(own.c_str());
}

TEST_CASE("what a rank exports is what its peers read") {
  detail::exported_memory memory;
  memory.device = 0x1'002a'0003u;
  memory.pieces = {{static_cast<std::uint64_t>(memory_export::ipc_handle), 100, {1, 2, 3, 4, 5, 6, 7, 8}},
                   {static_cast<std::uint64_t>(memory_export::file_descriptor), 200, {}},
                   {static_cast<std::uint64_t>(memory_export::file_descriptor), 300, {}},
                   {static_cast<std::uint64_t>(memory_export::ipc_handle), 400, {9}}};
  memory.regions = {{0, 1, 10, 20}, {1, 2, 30, 400}, {3, 1, 0, 400}};
  detail::ipc_words const readable{11, 12, 13, 14, 15, 16, 17, 18};
  detail::exported_memory got;
  detail::ipc_words got_readable{};
  detail::from_words(detail::to_words(memory, readable), got, got_readable);
  CHECK(got_readable == readable);
  CHECK(got.device == memory.device);
  CHECK(detail::bus_text(got.device) == "0001:2a:03");
  CHECK(got.num_descriptors() == 2);
  REQUIRE(got.pieces.size() == memory.pieces.size());
  for (std::size_t i = 0; i < got.pieces.size(); ++i) {
    CHECK(got.pieces[i].how == memory.pieces[i].how);
    CHECK(got.pieces[i].size == memory.pieces[i].size);
    CHECK(got.pieces[i].handle == memory.pieces[i].handle);
  }
  REQUIRE(got.regions.size() == memory.regions.size());
  for (std::size_t i = 0; i < got.regions.size(); ++i) {
    CHECK(got.regions[i].first_piece == memory.regions[i].first_piece);
    CHECK(got.regions[i].num_pieces == memory.regions[i].num_pieces);
    CHECK(got.regions[i].offset == memory.regions[i].offset);
    CHECK(got.regions[i].size == memory.regions[i].size);
  }
}

TEST_CASE("numbers of regions: each once, and alike on all ranks") {
  detail::region_numbers const numbers{5, 3};
  CHECK(numbers.end() == 8);
  CHECK(numbers.holds(5));
  CHECK(numbers.holds(7));
  CHECK_FALSE(numbers.holds(8));
  CHECK_FALSE(numbers.holds(4));
  CHECK(numbers.meets({7, 1}));
  CHECK(numbers.meets({0, 6}));
  CHECK_FALSE(numbers.meets({8, 1}));
  CHECK_FALSE(numbers.meets({0, 5}));
  CHECK(detail::region_numbers{4, 0}.end() == 5);  // a set without regions takes a number too
  CHECK(numbers.validate(5, "test", 2).ok());
  CHECK(numbers.validate(6, "test", 2).code() == make_error_code(errc::invalid_option));
  CHECK(detail::region_numbers{0xffff'fffe, 2}.validate(0, "test", 2).code() == make_error_code(errc::invalid_option));
}
