// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_EXCHANGE_OVER_HPP
#define BALLAST_EXAMPLES_ENGINE_EXCHANGE_OVER_HPP

#include <ballast/control/control.hpp>
#include <ballast/transport/transport.hpp>

#include "exchange.hpp"
#include "expel.hpp"

#include <algorithm>
#include <cstring>
#include <vector>

namespace engine {

/// The exchange over a transport and a control plane of its own: messages between threads, or copies out of the peers'
/// memory between processes.
template <ballast::data_transport Transport, ballast::control_plane Control>
class exchange_over final : public token_exchange {
public:
  /// @param room  numbers that the outbox holds; 0 where rows travel by themselves
  /// @throws std::system_error if the peers cannot be shown the outbox
  exchange_over(Transport& wires, Control& control, std::size_t room, ballast::nanoseconds_t timeout)
      : wires_{wires}, control_{control}, outbox_(room), timeout_{timeout} {
    if constexpr (ballast::peer_copier<Transport>) {
      if (room == 0) { return; }
      ballast::segment const mine{reinterpret_cast<std::byte*>(outbox_.data()), outbox_.size() * sizeof(float)};
      wires_.expose({&mine, 1}, 0).or_throw();
    }
  }

  [[nodiscard]] index_t rank() const override { return wires_.rank(); }
  [[nodiscard]] index_t num_ranks() const override { return wires_.num_ranks(); }
  [[nodiscard]] std::span<float> outbox() override { return outbox_; }

  [[nodiscard]] status send(ballast::matrix_view<index_t const> rows, std::size_t width,
                            std::span<float> arrived) override {
    list_messages(rows, width * sizeof(float), reinterpret_cast<std::byte*>(arrived.data()));
    ++batches_;
    if (auto result = wires_.start(sends_, receives_); !result.ok()) { return result; }
    return wires_.wait(timeout_);
  }

  [[nodiscard]] status all_gather(std::span<std::uint64_t const> mine, std::span<std::uint64_t> all) override {
    return control_.all_gather(mine, all, timeout_);
  }
  [[nodiscard]] status all_reduce(std::span<std::int64_t> values) override {
    return control_.all_reduce(values, timeout_);
  }
  [[nodiscard]] status broadcast(std::span<std::byte> bytes, index_t root) override {
    return control_.broadcast(bytes, root, timeout_);
  }

  [[nodiscard]] status go_on_without(index_t dead) override {
    if (auto result = expel(control_, dead); !result.ok()) { return result; }
    if (auto result = control_.regroup(timeout_); !result.ok()) { return result; }
    // A tag is used once: all go on with those that nobody has had.
    std::vector<std::uint64_t> all(static_cast<std::size_t>(num_ranks()));
    if (auto result = control_.all_gather({&batches_, 1}, all, timeout_); !result.ok()) { return result; }
    batches_ = *std::ranges::max_element(all) + 1;
    return {};
  }

private:
  void list_messages(ballast::matrix_view<index_t const> rows, std::size_t row_bytes, std::byte* arrived) {
    auto const me = rank();
    auto const ranks = num_ranks();
    auto const bytes = [&rows, &row_bytes](index_t from, index_t to) {
      return static_cast<std::size_t>(rows(from, to)) * row_bytes;
    };
    auto* leaving = reinterpret_cast<std::byte*>(outbox_.data());
    sends_.clear();
    receives_.clear();
    parts_.resize(2 * static_cast<std::size_t>(ranks));
    sources_.resize(static_cast<std::size_t>(ranks));
    for (index_t peer = 0; peer < ranks; ++peer) {
      auto& out = parts_[2 * static_cast<std::size_t>(peer)];
      auto& in = parts_[2 * static_cast<std::size_t>(peer) + 1];
      out = {leaving, bytes(me, peer)};
      in = {arrived, bytes(peer, me)};
      leaving += out.size;
      arrived += in.size;
      if (peer == me) {
        std::copy_n(out.data, out.size, in.data);
        continue;
      }
      auto& source = sources_[static_cast<std::size_t>(peer)];
      source = {0, 0, in.size};
      for (index_t before = 0; before < me; ++before) { source.offset += bytes(peer, before); }
      // In round r each rank sends to the one r + 1 places on.
      if (out.size > 0) { sends_.push_back({peer, (peer - me + ranks) % ranks - 1, tag_of(me, peer), {&out, 1}}); }
      if (in.size > 0) {
        receives_.push_back({peer, (me - peer + ranks) % ranks - 1, tag_of(peer, me), {&in, 1}, {&source, 1}});
      }
    }
    std::ranges::sort(sends_, {}, &ballast::outgoing_message::round);
    std::ranges::sort(receives_, {}, &ballast::incoming_message::round);
  }
  [[nodiscard]] std::uint64_t tag_of(index_t from, index_t to) const {
    auto const ranks = static_cast<std::uint64_t>(num_ranks());
    return (batches_ * ranks + static_cast<std::uint64_t>(from)) * ranks + static_cast<std::uint64_t>(to);
  }

  Transport& wires_;
  Control& control_;
  std::vector<float> outbox_;
  ballast::nanoseconds_t timeout_;
  std::uint64_t batches_ = 0;
  std::vector<ballast::outgoing_message> sends_;
  std::vector<ballast::incoming_message> receives_;
  std::vector<ballast::segment> parts_;           ///< [R, 2] for a rank and from it
  std::vector<ballast::remote_segment> sources_;  ///< [R]
};

}  // namespace engine

#endif
