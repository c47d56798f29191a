// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_NCCL_DETAIL_LANE_HPP
#define BALLAST_NCCL_DETAIL_LANE_HPP

#include <ballast/cudart/error.hpp>
#include <ballast/cudart/handles.hpp>
#include <ballast/nccl/detail/errand.hpp>
#include <ballast/status.hpp>
#include <ballast/transport/transport.hpp>
#include <ballast/types.hpp>

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <span>
#include <system_error>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace nccl::detail {

/// Memory that lanes are done with. To free it would wait for the whole device, whose kernels may wait for this rank:
/// so it is kept for the next lane of the device.
class spare_packs {
public:
  static void keep(cudart::device_memory<std::byte> pack, int device) noexcept {
    if (pack.data() == nullptr) { return; }
    auto& all = get();
    std::lock_guard const lock{all.mutex_};
    try {
      all.packs_.push_back({device, cudart::device_memory<std::byte>{}});
      all.packs_.back().memory = std::move(pack);
    } catch (std::bad_alloc const&) { pack.abandon(); }
  }
  /// Empty where there is none of that size.
  [[nodiscard]] static cudart::device_memory<std::byte> take(std::size_t bytes, int device) {
    auto& all = get();
    std::lock_guard const lock{all.mutex_};
    auto const found = std::find_if(all.packs_.begin(), all.packs_.end(), [&device, &bytes](spare const& each) {
      return each.device == device && each.memory.size() >= bytes;
    });
    if (found == all.packs_.end()) { return {}; }
    auto memory = std::move(found->memory);
    all.packs_.erase(found);
    return memory;
  }

  /// Forget what is kept: there is another device runtime now, as only tests have it.
  static void forget() noexcept {
    auto& all = get();
    std::lock_guard const lock{all.mutex_};
    for (auto& each : all.packs_) { each.memory.abandon(); }
    all.packs_.clear();
  }

private:
  struct spare {
    int device = 0;
    cudart::device_memory<std::byte> memory;
  };
  /// Lives as long as the process: at its end there may be no runtime to give memory back to.
  [[nodiscard]] static spare_packs& get() {
    static auto* const all = new spare_packs;
    return *all;
  }

  std::mutex mutex_;
  std::vector<spare> packs_;
};

/// A stream that NCCL's kernels run on, and the memory that only they and copies behind them touch.
struct lane {
  int device = 0;
  cudart::stream stream;
  cudart::device_memory<std::byte> pack;
  std::vector<cudart::device_memory<std::byte>> outgrown;  ///< to free memory would wait for the device
  std::vector<segment> targets;                            ///< of the batch that was given up on it
  // Who may still enqueue on it although nobody waits any more:
  std::atomic<bool> is_launching = false;  ///< the thread of a first exchange
  std::shared_ptr<errand const> ending;    ///< the abort of a communicator, until it has returned
  ncclComm_t child = nullptr;              ///< a communicator of ours that may not be aborted, while it is in progress
  bool is_lent = false;                    ///< one that was lent, and that only its owner knows about

  lane() = default;
  lane(lane const&) = delete;
  lane& operator=(lane const&) = delete;
  /// Never waits for the device: memory that kernels may still use is not given back, the rest is kept. Nor is a stream
  /// that somebody may still enqueue on.
  ~lane() {
    bool const idle = stream.get() == nullptr || is_idle();
    auto const part_with = [this, idle](auto& memory) {
      idle ? spare_packs::keep(std::move(memory), device) : memory.abandon();
    };
    part_with(pack);
    for (auto& each : outgrown) { part_with(each); }
    if (may_be_launched_on()) { stream.abandon(); }
  }

  [[nodiscard]] static status create(std::shared_ptr<lane>& out) {
    auto made = std::make_shared<lane>();
    if (auto result = cudart::to_status(cudaGetDevice(&made->device), "cudaGetDevice"); !result.ok()) { return result; }
    try {
      made->stream = cudart::stream::create();
    } catch (std::system_error const& error) { return {error.code(), error.what()}; }
    out = std::move(made);
    return {};
  }

  [[nodiscard]] bool is_idle() const noexcept { return !may_be_launched_on() && stream.query() == cudaSuccess; }
  [[nodiscard]] bool may_be_launched_on() const noexcept {
    if (is_lent || is_launching.load(std::memory_order_acquire)) { return true; }
    if (ending != nullptr && !ending->has_returned()) { return true; }
    if (child == nullptr) { return false; }
    ncclResult_t state = ncclSuccess;
    return ncclCommGetAsyncError(child, &state) == ncclSuccess && state == ncclInProgress;
  }

  /// Have at least so many bytes of `pack`.
  [[nodiscard]] status reserve(std::size_t bytes) {
    if (bytes <= pack.size()) { return {}; }
    outgrown.reserve(outgrown.size() + 1);
    auto larger = spare_packs::take(bytes, device);
    auto result = larger.size() > 0
                      ? status{}
                      : cudart::device_memory<std::byte>::allocate(larger, std::max(bytes, 2 * pack.size()));
    if (!result.ok()) { result = cudart::device_memory<std::byte>::allocate(larger, bytes); }
    if (!result.ok()) { return result; }
    if (pack.data() != nullptr) { outgrown.push_back(std::move(pack)); }
    pack = std::move(larger);
    return {};
  }

  /// Whether what was given up may still write where one of these would.
  [[nodiscard]] bool overlaps(std::span<incoming_message const> receives) const noexcept {
    auto const touches = [](segment const& a, segment const& b) {
      return std::less<>{}(a.data, b.data + b.size) && std::less<>{}(b.data, a.data + a.size);
    };
    return std::any_of(receives.begin(), receives.end(), [this, &touches](incoming_message const& receive) {
      return std::any_of(receive.segments.begin(), receive.segments.end(), [this, &touches](segment const& mine) {
        return std::any_of(targets.begin(), targets.end(),
                           [&touches, &mine](segment const& old) { return touches(mine, old); });
      });
    });
  }
};

/// A byte to and from every peer: NCCL connects two ranks when they first talk, and a blocking communicator lets one
/// wait for the other then.
class first_exchange final : public errand {
public:
  /// @param bytes  [2R] of the lane's memory: a byte to send for each rank, then one to receive
  first_exchange(ncclComm_t wires, std::shared_ptr<lane> on, std::byte* bytes, index_t rank, index_t num_ranks)
      : wires_{wires}, lane_{std::move(on)}, bytes_{bytes}, rank_{rank}, num_ranks_{num_ranks} {
    lane_->is_launching = true;
  }
  /// Nothing was begun.
  void cancel() noexcept { lane_->is_launching = false; }

private:
  ncclResult_t call() noexcept override {
    auto result = ncclGroupStart();
    if (result == ncclSuccess) {
      for (index_t peer = 0; peer < num_ranks_ && result == ncclSuccess; ++peer) { result = exchange(peer); }
      auto const ended = ncclGroupEnd();
      if (result == ncclSuccess) { result = ended; }
    }
    lane_->is_launching.store(false, std::memory_order_release);
    return result;
  }
  [[nodiscard]] ncclResult_t exchange(index_t peer) const noexcept {
    if (peer == rank_) { return ncclSuccess; }
    auto* const stream = lane_->stream.get();
    auto result = ncclSend(bytes_ + peer, 1, ncclUint8, peer, wires_, stream);
    if (result == ncclInProgress) { result = ncclSuccess; }
    if (result == ncclSuccess) { result = ncclRecv(bytes_ + num_ranks_ + peer, 1, ncclUint8, peer, wires_, stream); }
    return result == ncclInProgress ? ncclSuccess : result;
  }

  ncclComm_t wires_;
  std::shared_ptr<lane> lane_;
  std::byte* bytes_;
  index_t rank_;
  index_t num_ranks_;
};

}  // namespace nccl::detail
BALLAST_END_NAMESPACE

#endif
