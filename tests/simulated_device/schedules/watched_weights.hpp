// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SIMULATED_DEVICE_SCHEDULES_WATCHED_WEIGHTS_HPP
#define BALLAST_TESTS_SIMULATED_DEVICE_SCHEDULES_WATCHED_WEIGHTS_HPP

#include <ballast/cudart/copy_batch.hpp>
#include <ballast/cudart/handles.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

#include "../../support/expert_layout.hpp"

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace ballast_test::schedules {

/// A rank's weights, and what the forward passes have seen of them.
///
/// A pass copies all weights, guard bytes included, in the order of the compute stream; the copy is compared, when it
/// is there, with what the placement in force named when the pass was launched. So nothing is waited for, and nothing
/// is ordered that a real pass would not order.
class watched_weights {
public:
  watched_weights(ballast::topology const& where, ballast::index_t rank, ballast::placement const& holds,
                  std::uint64_t model)
      : layout_{where, rank, {{300, 512}, {77, 77}}, 64, model} {
    for (ballast::index_t layer = 0; layer < holds.num_layers(); ++layer) {
      for (std::size_t t = 0; t < layout_.num_tensors(); ++t) {
        auto const bytes = layout_.expected(holds, layer, t);
        blocks_.push_back(ballast::cudart::device_memory<std::byte>::create(bytes.size()));
        ballast::cudart::to_status(
            cudaMemcpy(blocks_.back().data(), bytes.data(), bytes.size(), cudaMemcpyHostToDevice), "cudaMemcpy")
            .or_throw();
        total_ += bytes.size();
      }
    }
    ballast::cudart::to_status(cudaDeviceSynchronize(), "cudaDeviceSynchronize").or_throw();
  }

  template <class Store>
  void add_to(Store& store) {
    for (std::size_t i = 0; i < blocks_.size(); ++i) { layout_.add_to(store, i, blocks_[i].data()); }
  }

  /// Bytes of one layer's expert in staging, at most.
  [[nodiscard]] static std::size_t staged_bytes() { return 1024; }

  /// Launch a pass under a placement.
  void look(ballast::placement const& tables, cudaStream_t compute) {
    auto next = take_pass();
    next->tables = tables;
    ballast::cudart::copy_batch copies;
    auto* to = next->seen.bytes().data();
    for (auto const& block : blocks_) {
      copies.add(to, block.data(), block.size());
      to += block.size();
    }
    copies.submit(compute).or_throw();
    next->done.record(compute).or_throw();
    passes_.push_back(std::move(next));
  }

  /// Compare what passes have seen. @return the first wrong place, empty where there is none
  [[nodiscard]] std::string check() {
    std::string wrong;
    while (wrong.empty() && !passes_.empty() && passes_.front()->done.query() == cudaSuccess) {
      wrong = first_error(*passes_.front());
      spare_.push_back(std::move(passes_.front()));
      passes_.pop_front();
    }
    return wrong;
  }
  [[nodiscard]] bool has_checked_all() const { return passes_.empty(); }

private:
  struct pass {
    ballast::placement tables;
    ballast::cudart::pinned_buffer seen;
    ballast::cudart::event done = ballast::cudart::event::create();
  };

  [[nodiscard]] std::unique_ptr<pass> take_pass() {
    if (spare_.empty()) {
      auto made = std::make_unique<pass>();
      made->seen.allocate(total_).or_throw();
      return made;
    }
    auto result = std::move(spare_.back());
    spare_.pop_back();
    return result;
  }

  [[nodiscard]] std::string first_error(pass const& what) const {
    auto const* seen = what.seen.bytes().data();
    for (ballast::index_t layer = 0; layer < what.tables.num_layers(); ++layer) {
      for (std::size_t t = 0; t < layout_.num_tensors(); ++t) {
        auto const bytes = layout_.num_bytes(t);
        auto const wrong = layout_.first_error(what.tables, layer, t, {seen, bytes});
        if (!wrong.empty()) { return ballast::detail::concat("model ", layout_.model(), ", ", wrong); }
        seen += bytes;
      }
    }
    return {};
  }

  expert_layout layout_;
  std::size_t total_ = 0;
  std::vector<ballast::cudart::device_memory<std::byte>> blocks_;  // [L * tensors]
  std::deque<std::unique_ptr<pass>> passes_;                       // oldest first
  std::vector<std::unique_ptr<pass>> spare_;
};

}  // namespace ballast_test::schedules

#endif
