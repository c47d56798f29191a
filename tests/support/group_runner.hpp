// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_GROUP_RUNNER_HPP
#define BALLAST_TESTS_SUPPORT_GROUP_RUNNER_HPP

#include <ballast/detail/clock.hpp>
#include <ballast/types.hpp>

#include "support/law_log.hpp"
#include "support/splitmix.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <ctime>
#include <functional>
#include <memory>
#include <span>
#include <vector>

// The laws in control_laws.hpp and transport_laws.hpp are written against a *runner*, which knows how to bring a group
// of ranks to life, as threads or as processes:
//
//   runner.sizes()          numbers of ranks to try
//   runner.run(R, body)     calls `body(endpoint, log)` once per rank and returns everyone's complaints
//   Runner::can_lose_ranks  whether `endpoint.die()` works
//
// An endpoint has `control` (a control_plane), `transport` (a data_transport), `memory` and `die()`, after which the
// body returns at once; and `tell_all(word)`, where the runner offers it, an exchange that no law disturbs.

namespace ballast_test {

/// Where the bytes lie that a transport moves. Adapters for devices bring their own.
class host_memory {
public:
  [[nodiscard]] std::byte* allocate(std::size_t bytes) {
    blocks_.push_back(std::make_unique<std::byte[]>(bytes + 1));
    return blocks_.back().get();
  }
  void write(std::byte* to, std::span<std::byte const> bytes) {
    if (!bytes.empty()) { std::memcpy(to, bytes.data(), bytes.size()); }
  }
  void read(std::byte const* from, std::span<std::byte> bytes) {
    if (!bytes.empty()) { std::memcpy(bytes.data(), from, bytes.size()); }
  }

private:
  std::vector<std::unique_ptr<std::byte[]>> blocks_;
};

template <class Control, class Transport, class Memory = host_memory>
struct law_endpoint {
  Control& control;
  Transport& transport;
  std::function<void()> die = [] {};
  /// The engine's own exchange: a word of every rank. It works whatever becomes of the control plane under test.
  std::function<std::vector<std::uint64_t>(std::uint64_t)> tell_all = {};
  Memory memory = {};

  [[nodiscard]] ballast::index_t rank() const { return control.rank(); }
  [[nodiscard]] ballast::index_t num_ranks() const { return control.num_ranks(); }
};

inline constexpr ballast::nanoseconds_t millisecond = 1'000'000;
/// Sizes of groups to try the laws on; fewer in builds where everything is slow.
[[nodiscard]] inline std::vector<ballast::index_t> group_sizes() {
#if BALLAST_TESTS_QUICK
  return {1, 3};
#else
  return {1, 2, 8};
#endif
}
/// The same for the second and third way of doing what the laws ask.
[[nodiscard]] inline std::vector<ballast::index_t> few_group_sizes() {
#if BALLAST_TESTS_QUICK
  return {3};
#else
  return {2, 3};
#endif
}

/// For calls that must succeed, on machines that are busy with other things.
inline constexpr ballast::nanoseconds_t patience = 60'000 * millisecond;
/// How much later than its deadline a call may come back on such a machine.
inline constexpr ballast::nanoseconds_t slack = 5'000 * millisecond;

/// An exchange of one word over a control plane of its own.
template <class Control>
[[nodiscard]] std::function<std::vector<std::uint64_t>(std::uint64_t)> exchange_over(Control& control) {
  return [&control](std::uint64_t word) {
    std::vector<std::uint64_t> words(static_cast<std::size_t>(control.num_ranks()));
    control.all_gather({&word, 1}, words, patience).or_throw();
    return words;
  };
}

inline void sleep_for(ballast::nanoseconds_t duration) {
  std::timespec time{};
  time.tv_sec = static_cast<std::time_t>(duration / 1'000'000'000);
  time.tv_nsec = static_cast<long>(duration % 1'000'000'000);
  ::nanosleep(&time, nullptr);
}

/// The ranks of a group draw the same numbers from the same seed.
class dice : public splitmix {
public:
  explicit dice(std::uint64_t seed) : splitmix{seed * 2 + 1} {}
  /// In [0, end).
  template <class T>
  T below(T end) {
    return static_cast<T>(next() % static_cast<std::uint64_t>(end));
  }
};

}  // namespace ballast_test

#endif
