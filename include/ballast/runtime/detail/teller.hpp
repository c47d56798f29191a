// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_RUNTIME_DETAIL_TELLER_HPP
#define BALLAST_RUNTIME_DETAIL_TELLER_HPP

#include <ballast/config.hpp>
#include <ballast/runtime/observer.hpp>

#include <cstdint>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Tells an observer, if there is one; whatever the observer does, the caller goes on.
class teller {
public:
  explicit teller(observer* watcher) noexcept : watcher_{watcher} {}

  void tell(event const& what) {
    if (watcher_ == nullptr) { return; }
    inside_ = true;
#if defined(__cpp_exceptions)
    try {
      watcher_->on_event(what);
    } catch (...) { ++exceptions_; }
#else
    watcher_->on_event(what);
#endif
    inside_ = false;
  }
  /// Whether the observer is being told something.
  [[nodiscard]] bool is_inside() const noexcept { return inside_; }
  /// Exceptions that left the observer.
  [[nodiscard]] std::uint64_t exceptions() const noexcept { return exceptions_; }

private:
  observer* watcher_;
  bool inside_ = false;
  std::uint64_t exceptions_ = 0;
};

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
