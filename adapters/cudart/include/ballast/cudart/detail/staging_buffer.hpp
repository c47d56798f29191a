// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_DETAIL_STAGING_BUFFER_HPP
#define BALLAST_CUDART_DETAIL_STAGING_BUFFER_HPP

#include <ballast/cudart/handles.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/runtime/detail/expert_size.hpp>
#include <ballast/status.hpp>
#include <ballast/transport/transport.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>

BALLAST_BEGIN_NAMESPACE
namespace cudart::detail {

/// Where incoming experts wait: the engine's memory, or memory of ours that is allocated when it is first needed. Not
/// from a pool: those may not be read or written by other devices.
class staging_buffer {
public:
  staging_buffer(segment engines, std::size_t limit) noexcept
      : engines_{engines}, limit_{engines.data == nullptr ? limit : std::min(limit, engines.size)} {}

  [[nodiscard]] static status validate(segment engines, std::size_t limit) {
    auto const refuse = [](auto const&... parts) {
      return status{errc::invalid_option, ballast::detail::concat("device_store: ", parts...)};
    };
    if ((engines.data == nullptr) != (engines.size == 0)) {
      return refuse(engines.size, " bytes of staging at address ", engines.data == nullptr ? "0" : "not 0");
    }
    constexpr auto alignment = ballast::detail::staging_alignment;
    if (reinterpret_cast<std::uintptr_t>(engines.data) % alignment != 0) {
      return refuse("the engine's staging is not aligned to ", alignment, " bytes");
    }
    if (limit == 0) { return refuse("a staging limit of 0 bytes"); }
    return {};
  }

  [[nodiscard]] std::size_t limit() const noexcept { return limit_; }
  [[nodiscard]] std::byte* data() const noexcept { return engines_.data != nullptr ? engines_.data : own_.data(); }
  [[nodiscard]] std::size_t size() const noexcept { return engines_.data != nullptr ? limit_ : own_.size(); }

  /// Make at least so many bytes usable. The peak stays within the limit: what is too small goes first.
  /// @pre nothing uses what is held
  [[nodiscard]] status reserve(std::size_t bytes) {
    if (bytes <= size()) { return {}; }
    if (bytes > limit_) {
      return {errc::out_of_memory,
              ballast::detail::concat("device_store: ", bytes, " bytes of staging needed, the limit is ", limit_)};
    }
    own_ = {};
    auto result = device_memory<std::byte>::allocate(own_, bytes);
    if (result.ok()) { return result; }
    return {errc::out_of_memory,
            ballast::detail::concat("device_store: no memory for ", bytes, " bytes of staging: ", result.message(),
                                    "; lower staging_limit, or give the store staging of the engine's")};
  }
  /// Never give the memory back, nor use it any more, the engine's too: a copy may still write there.
  void abandon() noexcept {
    own_.abandon();
    own_ = {};
    engines_ = {};
  }

private:
  segment engines_;
  std::size_t limit_;
  device_memory<std::byte> own_;
};

}  // namespace cudart::detail
BALLAST_END_NAMESPACE

#endif
