// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_GPU_DEVICE_PASS_HPP
#define BALLAST_EXAMPLES_ENGINE_GPU_DEVICE_PASS_HPP

#include <ballast/cudart/handles.hpp>
#include <ballast/status.hpp>

#include "../request_outputs.hpp"
#include "../scheduler.hpp"
#include "../traffic.hpp"
#include "device_experts.hpp"
#include "rank_card.hpp"

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

namespace engine {

/// Where a rank's requests keep their keys and values.
struct cache_plan {
  std::vector<std::int32_t> first_row;  ///< [requests] of those that this rank serves
  std::int32_t num_rows = 0;
  std::int32_t longest = 1;  ///< positions of a request
};
/// Rows are used again when a request has ended. @complexity of the passes
[[nodiscard]] cache_plan plan_caches(std::span<request const> requests, schedule_options const& how, index_t rank);
/// The same for a rank that may have to take requests over: each has rows of its own.
[[nodiscard]] cache_plan plan_all_caches(std::span<request const> requests);

/// One rank's forward pass, captured once for each of a few sizes and replayed, and what comes out of it.
class device_pass {
public:
  /// Enqueues what turns `logical` into physical ids; `balances`: the batch itself may be balanced.
  /// @return where they are, [T, k + 1]
  using route_function = std::function<std::int32_t const*(index_t layer, pass_stream const& on, bool balances)>;

  /// @param sizes  rows of a pass that there are graphs for, the largest last; the smallest that does is used
  /// @param has_gate  there are graphs too for batches that are not to be balanced
  /// @param keeps_routing  count what the gate chooses
  /// @throws std::system_error
  device_pass(rank_card& card, std::span<request const> requests, cache_plan plan, device_experts& experts,
              route_function const& route, std::span<int const> sizes, bool has_gate, bool keeps_routing);
  device_pass(device_pass const&) = delete;
  device_pass& operator=(device_pass const&) = delete;
  ~device_pass();

  /// @param balances  the batch is to be balanced; alike on all ranks
  [[nodiscard]] ballast::status launch(std::span<token const> tokens, bool balances);
  /// @return `errc::peer_lost` naming a rank whose rows did not come; `errc::missing_expert`;
  ///         `errc::deadline_exceeded`
  [[nodiscard]] ballast::status finish(ballast::nanoseconds_t timeout);

  [[nodiscard]] std::span<std::uint64_t const> work() const noexcept { return work_; }
  [[nodiscard]] std::span<std::int64_t const> routing() const noexcept { return routing_; }
  [[nodiscard]] std::uint64_t outcome_of(std::size_t request) const { return outputs_.outcome_of(request); }

private:
  struct captured_pass {
    int size;
    bool balances;
    cudaGraphExec_t graph;
  };
  void capture(device_experts& experts, route_function const& route, int size, bool balances);
  [[nodiscard]] bf16* cache(index_t layer) const {
    return caches_.data() +
           static_cast<std::size_t>(layer) * static_cast<std::size_t>(plan_.num_rows) * 2 * attention_width;
  }
  [[nodiscard]] token_entry entry_of(token const& at) const;
  [[nodiscard]] ballast::status read_failure() const;

  rank_card& card_;
  std::span<request const> requests_;
  cache_plan plan_;
  pass_view view_;
  ballast::cudart::device_memory<bf16> caches_;                ///< [L, rows, 2 A]
  ballast::cudart::device_memory<unsigned long long> chosen_;  ///< [L, E]
  std::vector<captured_pass> graphs_;                          ///< by size
  ballast::cudart::pinned_buffer entries_;                     ///< n in 16 bytes, then [T] entries
  ballast::cudart::pinned_buffer results_;                     ///< failed in 8 bytes, [L] work, [T] outputs, [L, E]
  pass_letters letters_;
  std::vector<token> running_;
  request_outputs outputs_;
  std::vector<std::uint64_t> work_;
  std::vector<std::int64_t> routing_;
};

}  // namespace engine

#endif
