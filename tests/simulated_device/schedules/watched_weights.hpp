// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SIMULATED_DEVICE_SCHEDULES_WATCHED_WEIGHTS_HPP
#define BALLAST_TESTS_SIMULATED_DEVICE_SCHEDULES_WATCHED_WEIGHTS_HPP

#include <ballast/cudart/copy_batch.hpp>
#include <ballast/cudart/handles.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/placement/placement.hpp>
#include <ballast/topology.hpp>
#include <ballast/types.hpp>

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
  struct tensor_shape {
    std::size_t bytes;
    std::size_t stride;
  };

  watched_weights(ballast::topology const& where, ballast::index_t rank, ballast::placement const& holds,
                  std::uint64_t model)
      : first_slot_{where.first_slot(rank)}, slots_{where.slots_per_rank()}, model_{model} {
    for (ballast::index_t layer = 0; layer < holds.num_layers(); ++layer) {
      for (std::size_t t = 0; t < tensors_.size(); ++t) {
        auto const bytes = expected(holds, layer, t);
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
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      auto const& shape = tensors_[i % tensors_.size()];
      store
          .add(static_cast<ballast::index_t>(i / tensors_.size()),
               ballast::detail::concat("tensor", i % tensors_.size()), blocks_[i].data() + margin, shape.bytes,
               static_cast<std::ptrdiff_t>(shape.stride))
          .or_throw();
    }
  }

  /// Bytes of one layer's expert in staging, at most.
  [[nodiscard]] static std::size_t staged_bytes() { return 2 * 512; }

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
  static constexpr std::size_t margin = 64;
  static constexpr std::byte guard{0xa5};

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

  void fill(std::span<std::byte> bytes, ballast::index_t layer, std::size_t tensor, ballast::index_t expert) const {
    auto state = static_cast<std::uint64_t>(layer) * 0x9e3779b97f4a7c15u + tensor * 0xbf58476d1ce4e5b9u +
                 static_cast<std::uint64_t>(expert) * 0x94d049bb133111ebu + model_ * 0x2545f4914f6cdd1du;
    for (auto& byte : bytes) {
      state = state * 0x5851f42d4c957f2du + 0x14057b7ef767814fu;
      byte = static_cast<std::byte>(state >> 56);
    }
  }

  [[nodiscard]] std::vector<std::byte> expected(ballast::placement const& tables, ballast::index_t layer,
                                                std::size_t tensor) const {
    auto const& shape = tensors_[tensor];
    std::vector<std::byte> bytes(2 * margin + static_cast<std::size_t>(slots_) * shape.stride, guard);
    for (ballast::index_t slot = 0; slot < slots_; ++slot) {
      auto const expert = tables.logical_of_slot(layer)[static_cast<std::size_t>(first_slot_ + slot)];
      fill({bytes.data() + margin + static_cast<std::size_t>(slot) * shape.stride, shape.bytes}, layer, tensor, expert);
    }
    return bytes;
  }

  [[nodiscard]] std::string first_error(pass const& what) const {
    auto const* seen = what.seen.bytes().data();
    for (ballast::index_t layer = 0; layer < what.tables.num_layers(); ++layer) {
      for (std::size_t t = 0; t < tensors_.size(); ++t) {
        auto const wanted = expected(what.tables, layer, t);
        for (std::size_t i = 0; i < wanted.size(); ++i) {
          if (seen[i] != wanted[i]) {
            return ballast::detail::concat("model ", model_, ", layer ", layer, ", tensor ", t, ", byte ", i,
                                           ", slots from ", first_slot_);
          }
        }
        seen += wanted.size();
      }
    }
    return {};
  }

  std::vector<tensor_shape> tensors_{{300, 512}, {77, 77}};
  ballast::index_t first_slot_;
  ballast::index_t slots_;
  std::uint64_t model_;
  std::size_t total_ = 0;
  std::vector<ballast::cudart::device_memory<std::byte>> blocks_;  // [L * tensors]
  std::deque<std::unique_ptr<pass>> passes_;                       // oldest first
  std::vector<std::unique_ptr<pass>> spare_;
};

}  // namespace ballast_test::schedules

#endif
