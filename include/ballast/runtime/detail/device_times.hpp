// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_DETAIL_DEVICE_TIMES_HPP
#define BALLAST_RUNTIME_DETAIL_DEVICE_TIMES_HPP

#include <ballast/config.hpp>
#include <ballast/runtime/observer.hpp>
#include <ballast/runtime/store.hpp>
#include <ballast/types.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// What chunks take on the device, gathered until all of it is known.
///
/// A commit's time is known only once the device has got that far, and by then the next chunk may be on its way. So
/// every commit is noted down with the number of its chunk, and times are taken in the order of the commits. Where
/// neither store nor transport measures, nothing is noted down and nobody is asked.
template <expert_store Store>
class device_times {
public:
  explicit device_times(Store& store) : store_{&store} {}

  /// Bytes of the open chunk took `time` to arrive; `not_measured` adds nothing.
  void add_receive(nanoseconds_t time) noexcept {
    if (time >= 0) { open_.receive = std::max<nanoseconds_t>(open_.receive, 0) + time; }
  }
  /// The store has committed a layer of the open chunk.
  void add_commit() { note_commit(open_); }
  /// End the open chunk, of which `what` has told the observer, and open the next.
  void close(event const& what) {
    end(std::move(open_), what);
    drop();
  }
  /// The last `num_commits` commits are a chunk of their own, whether or not another is open.
  void add_chunk(event const& what, std::size_t num_commits) {
    auto whole = next_chunk();
    for (std::size_t i = 0; i < num_commits; ++i) { note_commit(whole); }
    end(std::move(whole), what);
  }
  /// Give the open chunk up: its times are of no interest any more.
  void drop() noexcept { open_ = next_chunk(); }

  /// Call `tell(event)` for each chunk that the device is done with, in the order in which they ended. Never waits.
  template <class Tell>
  void tell_known(Tell tell) {
    take_times();
    while (!ended_.empty() && ended_.front().unknown == 0) {
      auto const known = std::move(ended_.front());
      ended_.erase(ended_.begin());
      auto what = known.what;
      what.layers = known.layers;
      what.device_receive = known.receive;
      what.device_commit = known.commit;
      tell(what);
    }
  }

private:
  struct chunk {
    std::uint64_t number = 0;
    std::size_t unknown = 0;  // commits whose time has not been taken
    nanoseconds_t receive = not_measured;
    nanoseconds_t commit = not_measured;
    event what;
    std::vector<index_t> layers;
  };
  [[nodiscard]] chunk next_chunk() noexcept {
    chunk next;
    next.number = next_number_++;
    return next;
  }

  void note_commit([[maybe_unused]] chunk& of) {
    if constexpr (commit_timer<Store>) {
      if (!store_->times_commits()) { return; }
      ++of.unknown;
      of.commit = std::max<nanoseconds_t>(of.commit, 0);
      commits_.push_back(of.number);
    }
  }

  void end(chunk ended, event const& what) {
    if (ended.receive < 0 && ended.commit < 0) { return; }
    ended.what = what;
    ended.what.kind = event_kind::device_times;
    ended.what.duration = 0;
    ended.layers.assign(what.layers.begin(), what.layers.end());
    ended_.push_back(std::move(ended));
  }

  void take_times() {
    if constexpr (commit_timer<Store>) {
      while (!commits_.empty()) {
        auto const time = store_->take_commit_time();
        if (time < 0) { return; }
        if (auto* const of = find(commits_.front()); of != nullptr) {
          of->commit += time;
          --of->unknown;
        }
        commits_.erase(commits_.begin());
      }
    }
  }

  /// @return nothing for a chunk that was given up
  [[nodiscard]] chunk* find(std::uint64_t number) noexcept {
    if (open_.number == number) { return &open_; }
    auto const found =
        std::find_if(ended_.begin(), ended_.end(), [&number](chunk const& ended) { return ended.number == number; });
    return found == ended_.end() ? nullptr : &*found;
  }

  Store* store_;
  std::uint64_t next_number_ = 1;
  chunk open_;
  std::vector<chunk> ended_;            // not all of whose times are known, oldest first
  std::vector<std::uint64_t> commits_;  // the chunk of every commit whose time has not been taken, oldest first
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
