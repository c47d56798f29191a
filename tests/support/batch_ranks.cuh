// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_BATCH_RANKS_CUH
#define BALLAST_TESTS_SUPPORT_BATCH_RANKS_CUH

#include <ballast/cudart/device_tables.hpp>
#include <ballast/cudart/kernels/batch_balancer.cuh>
#include <ballast/cudart/kernels/device_recorder.cuh>
#include <ballast/dispatch/quota_dispatch.hpp>
#include <ballast/dispatch/tables.hpp>
#include <ballast/matrix_view.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/shares/quota_rows.hpp>
#include <ballast/shares/quota_sources.hpp>
#include <ballast/shares/quotas.hpp>
#include <ballast/topology.hpp>

#include "gpu.hpp"
#include "random.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <vector>

namespace ballast_test {

/// Kernels of one rank wait for those of others: streams must not share a queue of the device's. One of these at
/// namespace scope, before anything talks to the driver.
struct queue_for_each_stream {
  queue_for_each_stream() { ::setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0); }
};

/// An array in device memory, and the way to and from it.
template <class T>
class device_array {
public:
  explicit device_array(std::size_t size) : memory_{ballast::cudart::device_memory<T>::create(size)} {}
  void write(std::span<T const> from) {
    check_cuda(cudaMemcpy(data(), from.data(), from.size_bytes(), cudaMemcpyHostToDevice), "cudaMemcpy");
    check_cuda(cudaStreamSynchronize(cudaStreamLegacy), "cudaStreamSynchronize");
  }
  [[nodiscard]] std::vector<T> read(std::size_t count) const {
    std::vector<T> host(count);
    check_cuda(cudaMemcpy(host.data(), data(), count * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return host;
  }
  [[nodiscard]] T* data() const { return memory_.data(); }

private:
  ballast::cudart::device_memory<T> memory_;
};

/// Skewed ids of a rank, some of them nobody's or reserved.
template <class Id>
std::vector<Id> batch_ids(ballast::index_t count, ballast::index_t num_logical, ballast::index_t num_reserved,
                          generator& random) {
  std::vector<Id> ids;
  for (ballast::index_t i = 0; i < count; ++i) {
    auto const draw = random.below(100);
    auto const id = std::min(random.below(num_logical), random.below(num_logical));
    ids.push_back(static_cast<Id>(draw == 0 ? -1 : draw == 1 ? num_logical + random.below(num_reserved + 2) : id));
  }
  return ids;
}

/// A rank of a group on one device, in one process.
template <class Id>
struct batch_rank {
  batch_rank(ballast::topology const& where, ballast::index_t rank, ballast::placement const& held,
             ballast::cudart::batch_options const& options)
      : stream{ballast::cudart::stream::create()},
        tables{ballast::dispatch_tables{where, held.shape(), ballast::rank_id{rank}, ballast::dispatch_mode::by_share},
               where, rank},
        recorder{stream.get(), held.num_layers(), held.num_logical(), {1, 1}},
        balancer{stream.get(), where, rank, held, options},
        ids{static_cast<std::size_t>(options.max_tokens) * static_cast<std::size_t>(options.top_k)},
        physical{static_cast<std::size_t>(options.max_tokens) * static_cast<std::size_t>(options.top_k)},
        num_valid{1} {
    publish(where, held);
  }
  void publish(ballast::topology const& where, ballast::placement const& held) {
    for (ballast::index_t layer = 0; layer < held.num_layers(); ++layer) {
      tables.publish(where, held, layer, stream.get()).or_throw();
      balancer.publish(where, held, layer).or_throw();
    }
  }
  [[nodiscard]] ballast::cudart::routing<Id> input(ballast::index_t num_tokens, ballast::index_t top_k) const {
    return {ids.data(), num_tokens, top_k, num_valid.data()};
  }
  void launch(ballast::index_t layer, ballast::index_t num_tokens, ballast::index_t top_k) {
    ballast::cudart::balance_and_dispatch(stream.get(), balancer.view(), recorder.view(), tables.view(), layer,
                                          input(num_tokens, top_k), physical.data())
        .or_throw();
  }

  ballast::cudart::stream stream;
  ballast::cudart::device_tables<> tables;
  ballast::cudart::device_recorder recorder;
  ballast::cudart::batch_balancer balancer;
  device_array<Id> ids;
  device_array<Id> physical;
  device_array<std::int32_t> num_valid;
};

/// The group, and what the host says that it must do.
template <class Id>
struct batch_group {
  batch_group(ballast::topology const& where, ballast::placement const& held,
              ballast::cudart::batch_options const& options)
      : options_{options} {
    for (ballast::index_t rank = 0; rank < where.num_ranks(); ++rank) {
      ranks.push_back(std::make_unique<batch_rank<Id>>(where, rank, held, options));
    }
    connect();
  }
  /// Make the boards of all known to all.
  void connect() const {
    std::vector<ballast::segment> boards;
    for (auto const& rank : ranks) { boards.push_back(rank->balancer.board()); }
    for (auto const& rank : ranks) { rank->balancer.connect(std::span<ballast::segment const>{boards}).or_throw(); }
  }

  /// Give each rank its ids of a batch: [R][T k], of which the first `valid` rows count.
  void give(std::vector<std::vector<Id>> const& ids, std::vector<std::int32_t> const& valid) {
    for (std::size_t r = 0; r < ranks.size(); ++r) {
      ranks[r]->ids.write(ids[r]);
      ranks[r]->num_valid.write(std::span{&valid[r], 1});
    }
  }
  void launch(ballast::index_t layer, ballast::index_t num_tokens) {
    for (auto const& rank : ranks) { rank->launch(layer, num_tokens, options_.top_k); }
  }
  /// The same, each stage of all ranks before the next: more ranks than the device has queues for streams stand in one
  /// queue behind each other.
  void launch_in_stages(ballast::index_t layer, ballast::index_t num_tokens) {
    namespace detail = ballast::cudart::detail;
    auto const for_each = [&](auto launch) {
      for (auto const& rank : ranks) {
        auto const view = rank->balancer.view();
        launch(*rank, view, detail::cut(view, rank->input(num_tokens, options_.top_k))).or_throw();
      }
    };
    for_each([](auto& rank, auto const& view, auto const& ids) {
      return detail::launch_count(rank.stream.get(), view, ids, false);
    });
    for_each([&](auto& rank, auto const& view, auto const& ids) {
      return detail::launch_plan(rank.stream.get(), {view, {}, nullptr, layer, detail::num_blocks(ids)}, false);
    });
    for_each([&](auto& rank, auto const& view, auto const& ids) {
      return detail::launch_remap(rank.stream.get(), view, rank.tables.view(), ids, layer, rank.physical.data(), false);
    });
  }
  void wait() {
    for (auto const& rank : ranks) { check_cuda(cudaStreamSynchronize(rank->stream.get()), "cudaStreamSynchronize"); }
  }

  std::vector<std::unique_ptr<batch_rank<Id>>> ranks;

private:
  ballast::cudart::batch_options options_;
};

/// What a rank's ids must become, by the host's twins of the kernels.
template <class Id>
class expected_batch {
public:
  /// @param ids   [R][T k], already -1 where rows are padded.
  /// @param from  [movable] parts that the batch starts from; empty: the shares in force.
  expected_batch(ballast::topology const& where, ballast::quota_row row, ballast::quota_options const& options,
                 std::vector<std::vector<Id>> const& ids, std::span<ballast::index_t const> from = {})
      : where_{where}, row_{row} {
    auto const experts = static_cast<std::size_t>(row.shape().num_logical);
    counts_.resize(ids.size() * experts);
    tokens_.resize(experts);
    for (std::size_t r = 0; r < ids.size(); ++r) {
      for (auto const id : ids[r]) {
        if (id < 0 || static_cast<std::uint64_t>(id) >= experts) { continue; }
        ++counts_[r * experts + static_cast<std::size_t>(id)];
        ++tokens_[static_cast<std::size_t>(id)];
      }
    }
    balance = solver_.solve(row, tokens_, options, from);
  }
  [[nodiscard]] std::vector<Id> physical(ballast::index_t rank, std::vector<Id> const& ids) {
    sources_.assign(row_, solver_.quotas(), counts(), rank);
    auto result = ids;
    auto const first_reserved = where_.physical_id(where_.first_slot(rank)) + where_.slots_per_rank();
    dispatch_.map<Id>(row_, sources_.ends(), where_.reserved_slots(), first_reserved, ids, result);
    return result;
  }
  [[nodiscard]] ballast::matrix_view<ballast::index_t const> counts() const {
    return {std::span<ballast::index_t const>{counts_}, where_.num_ranks(), row_.shape().num_logical};
  }
  [[nodiscard]] std::span<ballast::index_t const> quotas() const { return solver_.quotas(); }
  /// What the next batch may start from. @param parts  out: [movable]
  void keep(std::vector<ballast::index_t>& parts) const {
    std::vector<ballast::index_t> next(static_cast<std::size_t>(row_.sizes().num_movable));
    solver_.parts(next);
    parts = next;
  }

  ballast::quota_balance balance;

private:
  ballast::topology where_;
  ballast::quota_row row_;
  std::vector<ballast::index_t> counts_;  ///< [R, E]
  std::vector<ballast::index_t> tokens_;  ///< [E]
  ballast::quota_solver solver_;
  ballast::quota_sources sources_;
  ballast::quota_dispatch dispatch_;
};

}  // namespace ballast_test

#endif
