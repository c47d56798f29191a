// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_KERNELS_FOLD_CUH
#define BALLAST_CUDART_KERNELS_FOLD_CUH

#ifndef __CUDACC__
  #error "ballast/cudart/kernels/fold.cuh holds kernels: include it from a .cu file"
#endif

#include <ballast/cudart/kernels/kernel_graph.cuh>
#include <ballast/cudart/kernels/launch.cuh>
#include <ballast/cudart/record_view.hpp>
#include <ballast/load/history.hpp>
#include <ballast/status.hpp>
#include <ballast/types.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <utility>

BALLAST_BEGIN_NAMESPACE
namespace cudart {

/// How an all-to-all library reports what arrived at a rank's slots.
enum class count_form : std::uint32_t {
  tokens,       ///< tokens of this dispatch by slot
  prefix_sums,  ///< inclusive running sums over the slots
  cumulative,   ///< tokens by slot since the library's counter was last cleared, which is never
};

/// Tokens that arrived at this rank's slots in one layer, in device memory.
template <std::integral Count>
struct arrivals {
  Count const* values = nullptr;         ///< [S] or longer; what follows the first S belongs to reserved slots
  count_form form = count_form::tokens;  ///< what `values` mean
  Count* seen = nullptr;                 ///< in/out: [S] values of the call before, for `count_form::cumulative`
};

namespace detail {

inline constexpr unsigned fold_threads = 128;
inline constexpr std::size_t fold_width = 4;

/// A bucket of a window that a pass goes to.
struct fold_target {
  load_t* bucket = nullptr;  ///< [L, E], padded to a multiple of `fold_width`
  bool fresh = false;        ///< the bucket's old contents are forgotten

  bool operator==(fold_target const&) const = default;
};

/// What the fold of a pass does with its counts.
struct fold_command {
  fold_target to = {};           ///< none: the pass does not count
  fold_target also_to = {};      ///< the same pass in a second window, or none
  load_t const* host = nullptr;  ///< [L, E], padded: counts to add, in pinned host memory, or none

  bool operator==(fold_command const&) const = default;
};

// Kernels are templates so that inline functions of several translation units name the same ones.

__device__ __forceinline__ void add_to_bucket(fold_target to, unsigned group, long long const (&sums)[fold_width]) {
  auto* const cells = reinterpret_cast<longlong2*>(to.bucket) + std::size_t{2} * group;
  longlong2 low{0, 0};
  longlong2 high{0, 0};
  if (!to.fresh) {
    low = cells[0];
    high = cells[1];
  }
  constexpr auto most = static_cast<long long>(max_layer_tokens);
  cells[0] = {min(low.x + sums[0], most), min(low.y + sums[1], most)};
  cells[1] = {min(high.x + sums[2], most), min(high.y + sums[3], most)};
}

/// Close a pass: add its counts to a bucket of the window and clear them. One thread takes `fold_width` cells.
template <class = void>
__global__ void __launch_bounds__(fold_threads)
    fold_kernel(record_view const counters, fold_command const command, unsigned const num_groups) {
  auto const group = blockIdx.x * blockDim.x + threadIdx.x;
  if (group >= num_groups) { return; }
  long long sums[fold_width] = {};
#pragma unroll 4
  for (std::uint32_t stripe = 0; stripe < counters.num_stripes; ++stripe) {
    auto* const counts = reinterpret_cast<uint4*>(counters.pass + stripe * counters.stripe_cells) + group;
    auto const fresh = *counts;
    *counts = uint4{0, 0, 0, 0};
    sums[0] += fresh.x;
    sums[1] += fresh.y;
    sums[2] += fresh.z;
    sums[3] += fresh.w;
  }
  if (command.to.bucket == nullptr) { return; }
  if (command.host != nullptr) {
    auto const* const host = reinterpret_cast<longlong2 const*>(command.host) + std::size_t{2} * group;
    auto const low = host[0];
    auto const high = host[1];
    sums[0] += low.x;
    sums[1] += low.y;
    sums[2] += high.x;
    sums[3] += high.y;
  }
  add_to_bucket(command.to, group, sums);
  if (command.also_to.bucket != nullptr) { add_to_bucket(command.also_to, group, sums); }
}

template <std::integral Count>
__global__ void arrivals_kernel(record_view const counters, index_t const layer, arrivals<Count> const from) {
  auto const slot = static_cast<index_t>(blockIdx.x * blockDim.x + threadIdx.x);
  if (slot >= counters.slots_per_rank) { return; }
  auto tokens = static_cast<long long>(from.values[slot]);
  if (from.form == count_form::prefix_sums && slot > 0) { tokens -= static_cast<long long>(from.values[slot - 1]); }
  if (from.form == count_form::cumulative) {
    auto const now = from.values[slot];
    tokens -= static_cast<long long>(from.seen[slot]);
    from.seen[slot] = now;
  }
  if (*counters.gate == 0 || tokens <= 0) { return; }
  auto const expert = counters.local_map[static_cast<std::ptrdiff_t>(layer) * counters.slots_per_rank + slot];
  if (expert < 0 || expert >= counters.num_logical) { return; }
  constexpr long long most = 0x7fffffff;  // garbage must not wrap round
  atomicAdd(&counters.pass[static_cast<std::ptrdiff_t>(layer) * counters.num_logical + expert],
            static_cast<std::uint32_t>(min(tokens, most)));
}

/// Cells of a bucket or pass with its padding.
[[nodiscard]] constexpr std::size_t padded_cells(index_t num_layers, index_t num_logical) noexcept {
  auto const cells = static_cast<std::size_t>(num_layers) * static_cast<std::size_t>(num_logical);
  return (cells + fold_width - 1) / fold_width * fold_width;
}

[[nodiscard]] inline unsigned fold_groups(record_view const& counters) noexcept {
  return static_cast<unsigned>(padded_cells(counters.num_layers, counters.num_logical) / fold_width);
}
[[nodiscard]] constexpr unsigned fold_blocks(unsigned num_groups) noexcept {
  return (num_groups + fold_threads - 1) / fold_threads;
}

[[nodiscard]] inline status fold(cudaStream_t stream, record_view const& counters, fold_command const& command) {
  auto const groups = fold_groups(counters);
  if (groups == 0) { return {}; }
  return launch("fold_kernel", fold_kernel<>, {fold_blocks(groups), fold_threads}, stream, false, counters, command,
                groups);
}

/// The same, pass after pass.
class folder {
public:
  folder() = default;
  /// @throws std::system_error in `cudart::category()`
  explicit folder(record_view const& counters) : counters_{counters}, groups_{fold_groups(counters)} {
    if (groups_ > 0) { prepare({}).or_throw(); }
  }
  [[nodiscard]] status fold(cudaStream_t stream, fold_command const& command) {
    if (groups_ == 0) { return {}; }
    if (!is_prepared_ || command != prepared_) {
      if (auto result = prepare(command); !result.ok()) { return result; }
    }
    return kernel_.launch(stream);
  }
  /// Let a launch that does nothing pay for what the first one costs.
  [[nodiscard]] status warm_up(cudaStream_t stream) {
    if (groups_ == 0) { return {}; }
    is_prepared_ = false;
    constexpr unsigned none = 0;
    auto result = kernel_.prepare(fold_blocks(groups_), fold_threads, counters_, {}, none);
    return result.ok() ? kernel_.launch(stream) : std::move(result);
  }

private:
  [[nodiscard]] status prepare(fold_command const& command) {
    auto result = kernel_.prepare(fold_blocks(groups_), fold_threads, counters_, command, groups_);
    is_prepared_ = result.ok();
    prepared_ = command;
    return result;
  }

  record_view counters_;
  unsigned groups_ = 0;
  kernel_graph<record_view, fold_command, unsigned> kernel_{fold_kernel<>};
  fold_command prepared_;
  bool is_prepared_ = false;
};

}  // namespace detail

/// Count the tokens that arrived at this rank's slots of one layer, under the map in force where the stream is.
///
/// @param stream    the engine's compute stream, where commits run too.
/// @param counters  of this rank, with a map of as many layers and slots; experts beyond its E are not counted.
/// @param layer     in [0, L).
/// @param from      [S] counts in device memory; negative ones and those of reserved slots are ignored.
/// @return `errc::invalid_load` for a layer out of range, counters without a map, or a null pointer; nothing is
///         launched then.
///         A failure of the launch, in `cudart::category()`.
/// @complexity O(S); one launch, no allocation. Can be captured: a capture counts nothing, each replay once.
/// @throws std::bad_alloc on failure
template <std::integral Count>
[[nodiscard]] status record_arrivals(cudaStream_t stream, record_view const& counters, index_t layer,
                                     arrivals<Count> const& from) {
  if (auto result = detail::check_layer("record_arrivals", layer, counters.num_layers); !result.ok()) { return result; }
  if (counters.local_map == nullptr || counters.slots_per_rank < 1) {
    return {errc::invalid_load, "record_arrivals: the recorder has no map of the slots"};
  }
  if (from.values == nullptr || (from.form == count_form::cumulative && from.seen == nullptr)) {
    return {errc::invalid_load, "record_arrivals: a null pointer for counts"};
  }
  constexpr unsigned threads = 128;
  auto const blocks = (static_cast<unsigned>(counters.slots_per_rank) + threads - 1) / threads;
  return detail::launch("arrivals_kernel", detail::arrivals_kernel<Count>, {blocks, threads}, stream, false, counters,
                        layer, from);
}

}  // namespace cudart
BALLAST_END_NAMESPACE

#endif
