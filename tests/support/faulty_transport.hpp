// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_FAULTY_TRANSPORT_HPP
#define BALLAST_TESTS_SUPPORT_FAULTY_TRANSPORT_HPP

#include <ballast/status.hpp>
#include <ballast/transport/transport.hpp>
#include <ballast/types.hpp>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <utility>
#include <vector>

namespace ballast_test {

/// What happens to one message.
enum class message_fault { none, lose, duplicate, truncate, flip_bit };

/// A transport that does something wrong once, at a batch of the test's choice, and tells when calls begin and end.
template <ballast::data_transport Transport>
class faulty_transport {
public:
  /// Called with "before start", "after start", "before wait" and so on.
  using hook = std::function<void(char const* point)>;

  explicit faulty_transport(Transport& inner, hook at = [](char const*) {}) : inner_{&inner}, at_{std::move(at)} {}

  /// Do `fault` to a message of the `batches`-th batch from now, or of the first one after it that has such a message.
  /// `struck` is called when it happens.
  void arm(message_fault fault, int batches, std::function<void()> struck) {
    fault_ = fault;
    batches_ = batches;
    struck_ = std::move(struck);
  }

  [[nodiscard]] ballast::index_t rank() const noexcept { return inner_->rank(); }
  [[nodiscard]] ballast::index_t num_ranks() const noexcept { return inner_->num_ranks(); }

  [[nodiscard]] ballast::status expose(std::span<ballast::segment const> regions, std::uint32_t first)
    requires ballast::peer_copier<Transport>
  {
    return inner_->expose(regions, first);
  }
  void retract(std::uint32_t first) noexcept
    requires ballast::peer_copier<Transport>
  {
    inner_->retract(first);
  }
  [[nodiscard]] std::uint32_t next_region() const noexcept
    requires ballast::peer_copier<Transport>
  {
    return inner_->next_region();
  }
  [[nodiscard]] ballast::transfer_turns& turns() noexcept { return inner_->turns(); }

  [[nodiscard]] ballast::status start(std::span<ballast::outgoing_message const> sends,
                                      std::span<ballast::incoming_message const> receives) {
    at_("before start");
    sends_.assign(sends.begin(), sends.end());
    receives_ = receives;
    bool const due = fault_ != message_fault::none && batches_-- <= 0;
    if (due && fault_ != message_fault::flip_bit && !sends_.empty()) { damage_sends(); }
    auto result = inner_->start(sends_, receives);
    at_("after start");
    return result;
  }

  [[nodiscard]] ballast::transfer_state poll() { return inner_->poll(); }

  [[nodiscard]] ballast::status wait(ballast::nanoseconds_t timeout) {
    at_("before wait");
    static_cast<void>(inner_->poll());
    at_("in wait");
    auto result = inner_->wait(timeout);
    if (fault_ == message_fault::flip_bit && batches_ < 0 && result.ok()) { flip_bit(); }
    at_("after wait");
    return result;
  }

private:
  void damage_sends() {
    if (fault_ == message_fault::lose) { sends_.erase(sends_.begin()); }
    if (fault_ == message_fault::duplicate) { sends_.insert(sends_.begin(), sends_.front()); }
    if (fault_ == message_fault::truncate) {
      auto const segments = sends_.front().segments;
      shortened_.assign(segments.begin(), segments.end());
      --shortened_.back().size;
      sends_.front().segments = shortened_;
    }
    strike();
  }
  void flip_bit() {
    for (auto const& receive : receives_) {
      if (receive.segments.empty()) { continue; }
      auto const& bytes = receive.segments.back();
      bytes.data[bytes.size / 2] ^= std::byte{4};
      return strike();
    }
  }
  void strike() {
    fault_ = message_fault::none;
    struck_();
  }

  Transport* inner_;
  hook at_;
  message_fault fault_ = message_fault::none;
  int batches_ = 0;
  std::function<void()> struck_;
  std::vector<ballast::outgoing_message> sends_;
  std::vector<ballast::segment> shortened_;
  std::span<ballast::incoming_message const> receives_;
};

}  // namespace ballast_test

#endif
