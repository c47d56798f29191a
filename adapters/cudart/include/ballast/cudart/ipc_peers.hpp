// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_IPC_PEERS_HPP
#define BALLAST_CUDART_IPC_PEERS_HPP

#include <ballast/control/control.hpp>
#include <ballast/cudart/detail/capture_guard.hpp>
#include <ballast/cudart/detail/descriptor_exchange.hpp>
#include <ballast/cudart/detail/device_scope.hpp>
#include <ballast/cudart/detail/gather_words.hpp>
#include <ballast/cudart/detail/shared_boards.hpp>
#include <ballast/cudart/error.hpp>
#include <ballast/cudart/handles.hpp>
#include <ballast/cudart/memory.hpp>
#include <ballast/cudart/peer_directory.hpp>
#include <ballast/detail/clock.hpp>
#include <ballast/detail/process_watch.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>
#include <ballast/transport/transport.hpp>
#include <ballast/transport/turns.hpp>
#include <ballast/types.hpp>

#include <cuda_runtime_api.h>
#include <fcntl.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

BALLAST_BEGIN_NAMESPACE
namespace cudart {

namespace detail {

inline constexpr std::size_t handle_words = 8;
static_assert(sizeof(cudaIpcMemHandle_t) == handle_words * 8 && sizeof(cudaIpcEventHandle_t) == handle_words * 8);
using ipc_words = std::array<std::uint64_t, handle_words>;

/// A piece of a rank's memory as the other processes hear of it.
struct exported_piece {
  std::uint64_t how = 0;
  std::uint64_t size = 0;
  ipc_words handle{};
};
/// A region as the other processes hear of it: it lies in `num_pieces` consecutive pieces.
struct exported_region {
  std::uint64_t first_piece = 0;
  std::uint64_t num_pieces = 0;
  std::uint64_t offset = 0;  ///< from the start of the first piece
  std::uint64_t size = 0;
};
/// What a rank has to show.
struct exported_memory {
  std::uint64_t device = 0;  ///< see `bus_address`
  std::vector<exported_piece> pieces;
  std::vector<exported_region> regions;

  [[nodiscard]] std::size_t num_descriptors() const noexcept {
    return static_cast<std::size_t>(
        std::count_if(pieces.begin(), pieces.end(), [](exported_piece const& piece) { return has_descriptor(piece); }));
  }
  [[nodiscard]] static bool has_descriptor(exported_piece const& piece) noexcept {
    return static_cast<memory_export>(piece.how) == memory_export::file_descriptor;
  }
};

/// Where on its buses a host has a device: ordinals differ from process to process.
[[nodiscard]] inline std::uint64_t bus_address(int device) noexcept {
  std::uint64_t address = 0;
  for (auto const part : {cudaDevAttrPciDomainId, cudaDevAttrPciBusId, cudaDevAttrPciDeviceId}) {
    int value = 0;
    if (cudaDeviceGetAttribute(&value, part, device) != cudaSuccess) { static_cast<void>(cudaGetLastError()); }
    address = address << 16 | static_cast<std::uint64_t>(value & 0xffff);
  }
  return address;
}
/// As tools print it: domain, bus and device.
[[nodiscard]] inline std::string bus_text(std::uint64_t address) {
  auto const digits = ballast::detail::hex(address);
  return ballast::detail::concat(digits.substr(4, 4), ":", digits.substr(10, 2), ":", digits.substr(14, 2));
}

[[nodiscard]] inline std::vector<std::uint64_t> to_words(exported_memory const& memory, ipc_words const& readable) {
  std::vector<std::uint64_t> words{readable.begin(), readable.end()};
  words.insert(words.end(), {memory.device, memory.pieces.size()});
  for (auto const& piece : memory.pieces) {
    words.insert(words.end(), {piece.how, piece.size});
    if (!exported_memory::has_descriptor(piece)) {
      words.insert(words.end(), piece.handle.begin(), piece.handle.end());
    }
  }
  for (auto const& region : memory.regions) {
    words.insert(words.end(), {region.first_piece, region.num_pieces, region.offset, region.size});
  }
  return words;
}
inline void from_words(std::span<std::uint64_t const> words, exported_memory& memory, ipc_words& readable) {
  auto const take = [&words](std::size_t count) {
    auto const taken = words.first(count);
    words = words.subspan(count);
    return taken;
  };
  auto const take_handle = [&take] {
    ipc_words handle{};
    std::ranges::copy(take(handle_words), handle.begin());
    return handle;
  };
  readable = take_handle();
  memory.device = take(1)[0];
  memory.pieces.resize(static_cast<std::size_t>(take(1)[0]));
  for (auto& piece : memory.pieces) {
    auto const head = take(2);
    piece = {head[0], head[1], {}};
    if (!exported_memory::has_descriptor(piece)) { piece.handle = take_handle(); }
  }
  while (!words.empty()) {
    auto const region = take(4);
    memory.regions.push_back({region[0], region[1], region[2], region[3]});
  }
}

/// Addresses under which this process sees a peer's memory: what is mapped piece by piece can only be read there, but
/// CUDA IPC maps whole allocations to be written too. Closed on destruction.
class imported_memory {
public:
  /// @param from    what a peer exports.
  /// @param device  that reads it.
  imported_memory(exported_memory from, int device) : from_{std::move(from)}, device_{device} {
    imported_.resize(from_.num_descriptors());
  }
  imported_memory(imported_memory const&) = delete;
  imported_memory& operator=(imported_memory const&) = delete;
  ~imported_memory() {
    capture_guard const guard;
    device_scope const scope{device_};
    for (auto* const address : opened_) { static_cast<void>(cudaIpcCloseMemHandle(address)); }
    auto const& driver = driver_api::get();
    for (auto const& part : mapped_) { static_cast<void>(driver.mem_unmap(to_device(part.data), part.size)); }
    for (auto const& range : reserved_) {
      static_cast<void>(driver.mem_address_free(to_device(range.data), range.size));
    }
    release_handles();
  }

  /// Take the i-th of the pieces that come with a descriptor, which may be closed then.
  [[nodiscard]] status import_piece(std::size_t i, int descriptor) {
    auto const& driver = driver_api::get();
    if (!driver.loaded.ok()) { return driver.loaded; }
    // NOLINTNEXTLINE(performance-no-int-to-ptr): the driver takes the descriptor's number in a pointer
    auto* const as_pointer = reinterpret_cast<void*>(static_cast<std::intptr_t>(descriptor));
    CUmemGenericAllocationHandle handle = 0;
    auto result = driver_status(
        driver.mem_import_from_shareable_handle(&handle, as_pointer, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
        "cuMemImportFromShareableHandle");
    if (result.ok()) { imported_[i] = handle; }
    return result;
  }

  /// Open and map everything. @pre all pieces that come with descriptors have been imported
  [[nodiscard]] status open() {
    std::vector<void*> addresses(from_.pieces.size());
    std::vector<CUmemGenericAllocationHandle> handles(from_.pieces.size());
    for (std::size_t i = 0, next = 0; i < from_.pieces.size(); ++i) {
      if (exported_memory::has_descriptor(from_.pieces[i])) {
        handles[i] = imported_[next++];
      } else if (auto result = open_handle(from_.pieces[i], addresses[i]); !result.ok()) {
        return result;
      }
    }
    for (auto const& region : from_.regions) {
      auto const first = static_cast<std::size_t>(region.first_piece);
      auto* base = static_cast<std::byte*>(addresses[first]);
      if (base == nullptr) {
        auto const count = static_cast<std::size_t>(region.num_pieces);
        auto result =
            map(std::span{from_.pieces}.subspan(first, count), std::span{handles}.subspan(first, count), base);
        if (!result.ok()) { return result; }
      }
      regions_.push_back({base + region.offset, static_cast<std::size_t>(region.size)});
    }
    release_handles();  // what is mapped stays
    return {};
  }

  [[nodiscard]] std::vector<segment> const& regions() const noexcept { return regions_; }

private:
  [[nodiscard]] status open_handle(exported_piece const& piece, void*& address) {
    auto const handle = std::bit_cast<cudaIpcMemHandle_t>(piece.handle);
    auto const code = cudaIpcOpenMemHandle(&address, handle, cudaIpcMemLazyEnablePeerAccess);
    auto result = to_status(code, "cudaIpcOpenMemHandle");
    if (result.ok()) {
      opened_.push_back(address);
      return result;
    }
    if (code == cudaErrorMemoryAllocation) { return result; }
    return {result.code(),
            ballast::detail::concat(
                result.message(), "; device ", bus_text(bus_address(device_)), " cannot map memory of device ",
                bus_text(from_.device),
                " of another process. Between devices without peer access (some PCIe hosts, slices of MIG), and "
                "between containers that do not share IPC and process name spaces, use nccl::transport, alone or as "
                "the far link of by_link; ranks of one process (local_peers) can also copy through the host")};
  }

  /// Map consecutive pieces side by side.
  [[nodiscard]] status map(std::span<exported_piece const> pieces,
                           std::span<CUmemGenericAllocationHandle const> handles, std::byte*& base) {
    auto const& driver = driver_api::get();
    std::size_t total = 0;
    for (auto const& piece : pieces) { total += static_cast<std::size_t>(piece.size); }
    CUdeviceptr reserved = 0;
    if (auto result = driver_status(driver.mem_address_reserve(&reserved, total, 0, 0, 0), "cuMemAddressReserve");
        !result.ok()) {
      return result;
    }
    base = to_address(reserved);
    reserved_.push_back({base, total});
    std::size_t offset = 0;
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      auto const size = static_cast<std::size_t>(pieces[i].size);
      if (auto result = driver_status(driver.mem_map(reserved + offset, size, 0, handles[i], 0), "cuMemMap");
          !result.ok()) {
        return result;
      }
      mapped_.push_back({base + offset, size});
      offset += size;
    }
    return make_readable(reserved, total);
  }
  /// A stray write of this process must not reach the weights that a peer serves with.
  [[nodiscard]] status make_readable(CUdeviceptr reserved, std::size_t size) const {
    auto const& driver = driver_api::get();
    CUmemAccessDesc access{};
    access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    access.location.id = device_;
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READ;
    if (driver.mem_set_access(reserved, size, &access, 1) == CUDA_SUCCESS) { return {}; }
    access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;  // not every driver has the other
    return driver_status(driver.mem_set_access(reserved, size, &access, 1), "cuMemSetAccess");
  }

  void release_handles() noexcept {
    for (auto& handle : imported_) {
      if (handle != 0) { static_cast<void>(driver_api::get().mem_release(std::exchange(handle, 0))); }
    }
  }

  exported_memory from_;
  int device_;
  std::vector<segment> regions_;
  std::vector<void*> opened_;
  std::vector<segment> reserved_;
  std::vector<segment> mapped_;
  std::vector<CUmemGenericAllocationHandle> imported_;  // 0: not, or not any more
};

/// Collects what this rank exports. Pieces that several regions lie in are exported once.
class memory_exporter {
public:
  explicit memory_exporter(int device) { memory_.device = bus_address(device); }

  [[nodiscard]] status add(segment region) {
    if (region.size == 0) { return {errc::invalid_weights, "an empty region"}; }
    std::vector<memory_piece> pieces;
    if (auto result = find_exportable_pieces(region, pieces); !result.ok()) { return result; }
    exported_region exported;
    exported.num_pieces = pieces.size();
    exported.offset = static_cast<std::uint64_t>(region.data - pieces.front().base);
    exported.size = region.size;
    // A region's pieces lie side by side in the list, because it is mapped side by side.
    auto const known = std::search(known_.begin(), known_.end(), pieces.begin(), pieces.end(),
                                   [](memory_piece const& a, memory_piece const& b) { return a.base == b.base; });
    exported.first_piece = static_cast<std::uint64_t>(known - known_.begin());
    if (known == known_.end()) {
      for (auto const& piece : pieces) {
        if (auto result = export_piece(piece); !result.ok()) { return result; }
      }
    }
    memory_.regions.push_back(exported);
    return {};
  }
  [[nodiscard]] exported_memory const& memory() const noexcept { return memory_; }

  /// Make a descriptor of the i-th of the pieces that are exported so.
  [[nodiscard]] status make_descriptor(std::size_t i, owned_descriptor& out) const {
    auto const& driver = driver_api::get();
    CUmemGenericAllocationHandle handle = 0;
    if (auto result = driver_status(driver.mem_retain_allocation_handle(&handle, with_descriptor_[i]),
                                    "cuMemRetainAllocationHandle");
        !result.ok()) {
      return result;
    }
    int descriptor = -1;
    auto result = driver_status(
        driver.mem_export_to_shareable_handle(&descriptor, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
        "cuMemExportToShareableHandle");
    static_cast<void>(driver.mem_release(handle));
    if (result.ok()) {
      // Not for programs that another thread starts meanwhile.
      static_cast<void>(::fcntl(descriptor, F_SETFD, FD_CLOEXEC));
      out = owned_descriptor{descriptor};
    }
    return result;
  }

private:
  [[nodiscard]] status export_piece(memory_piece const& piece) {
    exported_piece exported{static_cast<std::uint64_t>(piece.how), piece.size, {}};
    if (piece.how == memory_export::ipc_handle) {
      cudaIpcMemHandle_t handle{};
      if (auto result = to_status(cudaIpcGetMemHandle(&handle, piece.base), "cudaIpcGetMemHandle"); !result.ok()) {
        return result;
      }
      exported.handle = std::bit_cast<ipc_words>(handle);
    } else {
      with_descriptor_.push_back(piece.base);
    }
    memory_.pieces.push_back(exported);
    known_.push_back(piece);
    return {};
  }

  exported_memory memory_;
  std::vector<memory_piece> known_;
  std::vector<std::byte*> with_descriptor_;
};

}  // namespace detail

/// One process for each rank, all on one host: memory and events are shared by CUDA IPC or by file descriptors, boards
/// lie in shared memory. A peer process that has died is known at once.
///
/// Descriptors are passed on a few at a time, whatever the number of pieces: `RLIMIT_NOFILE` of 1024 is enough. Devices
/// of two processes must have peer access: there is no way through the host between processes.
///
/// What has no comment here is as `peer_directory` says.
///
/// @tparam Control  carries the handles; `posix::process_group` or any other control plane.
/// @threads  one thread at a time, that of the control plane.
/// @lifetime the control plane must outlive it; exported memory must outlive every peer's `ipc_peers`, or what every
///           peer does with its set until it retracts it.
template <control_plane Control>
class ipc_peers {
public:
  /// @param control  the group, met already. The rank's device is current.
  /// @param timeout  nanoseconds, of `expose` as a whole.
  /// @throws std::system_error in `cudart::category()`
  explicit ipc_peers(Control& control, nanoseconds_t timeout = 30'000'000'000)
      : control_{&control}, timeout_{timeout}, state_{new state} {
    detail::capture_guard const guard;
    to_status(cudaGetDevice(&device_), "cudaGetDevice").or_throw();
    state_->device = device_;
    state_->readable.resize(static_cast<std::size_t>(control.num_ranks()));
    state_->readable_handles.resize(state_->readable.size());
    state_->watches.resize(state_->readable.size());
    own_readable() = event::create(cudaEventDisableTiming | cudaEventInterprocess);
  }

  [[nodiscard]] index_t rank() const noexcept { return control_->rank(); }
  [[nodiscard]] index_t num_ranks() const noexcept { return control_->num_ranks(); }

  /// Export a set of this rank's regions and open the peers'; called by all ranks together, once for each set. The
  /// boards and events are shared with the first set that succeeds. Waits for the others, no longer than the timeout of
  /// the constructor in all.
  ///
  /// @param regions  of this rank, as many on every rank; in device memory, none empty.
  /// @param first    number of the first, the same on every rank, and at least `next_region()` on each.
  /// @return on every rank alike, `errc::invalid_option` for numbers that some rank has used, and `errc::disagreement`
  ///         for sets that differ; nothing changes then. After other failures the numbers are used: on a rank that
  ///         cannot share or open memory its own (`errc::invalid_weights` with the remedy, `cudart::category()`,
  ///         `std::generic_category()`), on the others `errc::peer_lost` naming it; what the control plane says.
  /// @complexity several collective calls; a few calls of the driver for each physical piece of this rank's
  ///             memory, and of every peer's.
  /// @throws std::bad_alloc
  [[nodiscard]] status expose(std::span<segment const> regions, std::uint32_t first) {
    detail::capture_guard const guard;
    detail::device_scope const scope{device_};
    auto const deadline = ballast::detail::deadline_after(timeout_);
    detail::region_numbers const numbers{first, regions.size()};
    std::vector<announcement> all;
    if (auto result = announce(numbers, all, deadline); !result.ok()) { return result; }
    state_->next_region = static_cast<std::uint32_t>(numbers.end());
    detail::memory_exporter exporter{device_};
    detail::ipc_words readable{};
    auto mine = detail::meet(*control_, export_all(regions, exporter, readable), deadline);
    if (!mine.ok()) { return mine; }
    std::vector<std::vector<std::uint64_t>> words;
    if (auto result = detail::gather_words(*control_, detail::to_words(exporter.memory(), readable), words, deadline);
        !result.ok()) {
      return result;
    }
    if (auto result = open_boards(all, deadline); !result.ok()) { return result; }
    exposed_set set;
    set.numbers = numbers;
    if (auto result = open_peers(all, words, exporter, set, deadline); !result.ok()) { return result; }
    watch_peers(all);
    state_->all_connected = true;
    state_->sets.push_back(std::move(set));
    return {};
  }
  /// Peers map what they read for their own devices: there is nothing to check.
  [[nodiscard]] status check_reach() const { return {}; }

  /// Regions of a set that was retracted are found no more. Concerns this rank alone, and calls no driver.
  void retract(std::uint32_t first) noexcept {
    for (auto& set : state_->sets) { set.retracted = set.retracted || set.numbers.first == first; }
  }
  /// Close the peers' memory of sets that were retracted. May wait for the device. @pre no copy reads it any more
  void close_retracted() noexcept {
    detail::capture_guard const guard;
    std::erase_if(state_->sets, [](exposed_set const& set) { return set.retracted; });
  }
  [[nodiscard]] std::uint32_t next_region() const noexcept { return state_->next_region; }

  [[nodiscard]] bool exposes(std::uint32_t number) const noexcept { return live_set_with(number) != nullptr; }
  /// Where this process sees that region; null for a number of no set, for this rank, and for one that took no part.
  [[nodiscard]] segment region(index_t peer, std::uint32_t number) const {
    auto const* const set = live_set_with(number);
    if (set == nullptr) { return {}; }
    auto const& memory = set->memory[static_cast<std::size_t>(peer)];
    return memory == nullptr ? segment{} : memory->regions()[number - set->numbers.first];
  }
  /// The peers' memory is mapped for this rank's device.
  [[nodiscard]] int device(index_t /*peer*/) const noexcept { return device_; }
  [[nodiscard]] event const& readable(index_t peer) const { return state_->readable[static_cast<std::size_t>(peer)]; }
  [[nodiscard]] bool is_connected() const noexcept { return state_->boards != nullptr; }
  [[nodiscard]] pair_board& board(index_t sender, index_t receiver) const {
    return state_->boards->at(sender, receiver);
  }
  [[nodiscard]] transfer_turns& turns() noexcept { return state_->turns; }

  /// Whether a peer's process lives, see `peer_directory`. Processes of other name spaces are taken to live.
  ///
  /// @return `errc::peer_lost` naming the rank.
  [[nodiscard]] status peer_trouble(index_t peer) const {
    auto& watch = state_->watches[static_cast<std::size_t>(peer)];
    if (!watch.has_value() || !watch->dead()) { return {}; }
    return {errc::peer_lost,
            ballast::detail::concat("ipc_peers: process ", watch->who().pid, ", rank ", peer, ", is dead"), peer};
  }
  /// Leave what is mapped of the peers as it is until this process ends, see `peer_directory`.
  void leave_mapped() noexcept { state_->left_mapped = true; }

private:
  struct exposed_set {
    detail::region_numbers numbers;
    std::vector<std::unique_ptr<detail::imported_memory>> memory;  // [R], null for this rank and absent ones
    bool retracted = false;
  };
  struct state {
    int device = 0;
    std::unique_ptr<detail::shared_boards> boards;
    bool all_connected = false;  // as far as this rank knows, all have these boards
    std::vector<std::optional<ballast::detail::process_watch>> watches;  // [R], of the peers that can be watched
    std::vector<event> readable;
    std::vector<detail::ipc_words> readable_handles;  // what each was opened from
    std::vector<exposed_set> sets;
    std::uint32_t next_region = 0;
    transfer_turns turns;
    bool left_mapped = false;
    state* left_before = nullptr;
  };
  struct close_state {
    void operator()(state* that) const noexcept {
      if (that->left_mapped) {
        that->left_before = left_states.load(std::memory_order_relaxed);
        while (!left_states.compare_exchange_weak(that->left_before, that)) {}
        return;
      }
      detail::capture_guard const guard;
      detail::device_scope const scope{that->device};
      delete that;
    }
  };
  /// What a rank says before it exposes.
  struct announcement {
    static constexpr std::size_t num_words = 8;
    index_t rank = 0;  // an expelled rank's words are those of another
    detail::region_numbers numbers;
    std::uint32_t next_region = 0;
    std::uint64_t connected = 0;
    ballast::detail::process_identity process;
    std::uint64_t pid_namespace = 0;

    [[nodiscard]] std::array<std::uint64_t, num_words> to_words() const noexcept {
      return {static_cast<std::uint64_t>(rank),        numbers.first,      numbers.count, next_region, connected,
              static_cast<std::uint64_t>(process.pid), process.start_time, pid_namespace};
    }
    [[nodiscard]] static announcement from_words(std::span<std::uint64_t const> words) noexcept {
      return {static_cast<index_t>(words[0]),
              {static_cast<std::uint32_t>(words[1]), static_cast<std::size_t>(words[2])},
              static_cast<std::uint32_t>(words[3]),
              words[4],
              {static_cast<std::int64_t>(words[5]), words[6]},
              words[7]};
    }
  };

  [[nodiscard]] exposed_set const* live_set_with(std::uint32_t number) const noexcept {
    auto const has_it = [number](exposed_set const& set) { return !set.retracted && set.numbers.holds(number); };
    auto const found = std::find_if(state_->sets.begin(), state_->sets.end(), has_it);
    return found == state_->sets.end() ? nullptr : &*found;
  }
  [[nodiscard]] event& own_readable() { return state_->readable[static_cast<std::size_t>(rank())]; }

  /// Tell the others what this rank is about to expose, and compare. All ranks see the same words and refuse alike.
  [[nodiscard]] status announce(detail::region_numbers const& numbers, std::vector<announcement>& all,
                                nanoseconds_t deadline) {
    announcement const mine{rank(),
                            numbers,
                            state_->next_region,
                            state_->all_connected ? 1u : 0u,
                            ballast::detail::this_process(),
                            ballast::detail::pid_namespace()};
    auto const words = mine.to_words();
    std::vector<std::uint64_t> gathered(words.size() * static_cast<std::size_t>(num_ranks()));
    if (auto result = control_->all_gather(words, gathered, ballast::detail::time_until(deadline)); !result.ok()) {
      return result;
    }
    for (std::size_t at = 0; at < gathered.size(); at += words.size()) {
      all.push_back(announcement::from_words(std::span{gathered}.subspan(at, words.size())));
    }
    auto const& head = all.front();
    for (auto const& each : all) {
      if (each.numbers != head.numbers) {
        return detail::different_sets("ipc_peers", head.rank, head.numbers, each.rank, each.numbers);
      }
    }
    for (auto const& each : all) {
      if (auto result = numbers.validate(each.next_region, "ipc_peers", each.rank); !result.ok()) { return result; }
    }
    return {};
  }
  [[nodiscard]] static bool is_present(std::vector<announcement> const& all, std::size_t rank) noexcept {
    return all[rank].rank == static_cast<index_t>(rank);
  }
  /// The lowest rank that takes part: one whose words are its own.
  [[nodiscard]] static index_t lowest_of(std::vector<announcement> const& all) noexcept { return all.front().rank; }

  /// Share new boards, unless all ranks have some.
  [[nodiscard]] status open_boards(std::vector<announcement> const& all, nanoseconds_t deadline) {
    if (std::all_of(all.begin(), all.end(), [](announcement const& each) { return each.connected != 0; })) {
      return {};
    }
    state_->all_connected = false;
    auto fresh = std::make_unique<detail::shared_boards>();
    auto result = fresh->open(*control_, lowest_of(all), deadline);
    if (result.ok()) { state_->boards = std::move(fresh); }
    return result;
  }

  [[nodiscard]] status export_all(std::span<segment const> regions, detail::memory_exporter& exporter,
                                  detail::ipc_words& readable) {
    for (std::size_t i = 0; i < regions.size(); ++i) {
      if (auto result = exporter.add(regions[i]); !result.ok()) {
        return {result.code(),
                ballast::detail::concat("ipc_peers: region ", i, " of rank ", rank(), ": ", result.message()), rank()};
      }
    }
    cudaIpcEventHandle_t handle{};
    auto result = to_status(cudaIpcGetEventHandle(&handle, own_readable().get()), "cudaIpcGetEventHandle");
    readable = std::bit_cast<detail::ipc_words>(handle);
    return result;
  }

  /// Keep an eye on the processes of the ranks that take part.
  void watch_peers(std::vector<announcement> const& all) {
    auto const here = ballast::detail::pid_namespace();
    for (std::size_t r = 0; r < all.size(); ++r) {
      auto& watch = state_->watches[r];
      if (!is_present(all, r) || all[r].rank == rank() || all[r].pid_namespace != here) {
        watch.reset();
      } else if (!watch.has_value() || watch->who() != all[r].process) {
        watch.emplace(all[r].process);
      }
    }
  }

  [[nodiscard]] status open_peers(std::vector<announcement> const& present,
                                  std::span<std::vector<std::uint64_t> const> words,
                                  detail::memory_exporter const& exporter, exposed_set& set, nanoseconds_t deadline) {
    detail::descriptor_plan plan{std::vector<std::size_t>(words.size()), std::vector<bool>(words.size()),
                                 lowest_of(present)};
    std::vector<detail::ipc_words> events(words.size());
    set.memory.resize(words.size());
    for (std::size_t r = 0; r < words.size(); ++r) {
      plan.absent[r] = !is_present(present, r);
      if (plan.absent[r]) { continue; }
      detail::exported_memory memory;
      detail::from_words(words[r], memory, events[r]);
      plan.counts[r] = memory.num_descriptors();
      if (static_cast<index_t>(r) == rank()) { continue; }
      set.memory[r] = std::make_unique<detail::imported_memory>(std::move(memory), device_);
    }
    auto const make = [&exporter](std::size_t i, detail::owned_descriptor& out) {
      return exporter.make_descriptor(i, out);
    };
    auto const import = [&set](index_t peer, std::size_t i, int descriptor) {
      return of_peer(peer, set.memory[static_cast<std::size_t>(peer)]->import_piece(i, descriptor));
    };
    auto result = detail::exchange_descriptors(*control_, plan, make, import, deadline);
    if (!result.ok()) { return result; }
    for (std::size_t r = 0; r < words.size() && result.ok(); ++r) {
      if (set.memory[r] == nullptr) { continue; }
      result = open_event(events[r], r);
      if (result.ok()) { result = set.memory[r]->open(); }
      result = of_peer(static_cast<index_t>(r), std::move(result));
    }
    return detail::meet(*control_, std::move(result), deadline);
  }
  /// Say whose memory it was.
  [[nodiscard]] static status of_peer(index_t peer, status result) {
    if (result.ok()) { return result; }
    return {result.code(), ballast::detail::concat("ipc_peers: memory of rank ", peer, ": ", result.message()), peer};
  }
  /// A peer's event is the same for all sets, until it comes with another directory.
  [[nodiscard]] status open_event(detail::ipc_words const& readable, std::size_t peer) {
    auto& out = state_->readable[peer];
    if (out.get() != nullptr && state_->readable_handles[peer] == readable) { return {}; }
    cudaEvent_t opened = nullptr;
    auto result = to_status(cudaIpcOpenEventHandle(&opened, std::bit_cast<cudaIpcEventHandle_t>(readable)),
                            "cudaIpcOpenEventHandle");
    if (result.ok()) {
      out = event::adopt(opened);
      state_->readable_handles[peer] = readable;
    }
    return result;
  }

  Control* control_;
  nanoseconds_t timeout_;
  std::unique_ptr<state, close_state> state_;
  int device_ = 0;
  static inline std::atomic<state*> left_states{nullptr};  // what stays mapped is still somebody's
};

}  // namespace cudart
BALLAST_END_NAMESPACE

#endif
