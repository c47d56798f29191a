// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_POSIX_DETAIL_READ_PERMISSION_HPP
#define BALLAST_POSIX_DETAIL_READ_PERMISSION_HPP

#include <ballast/config.hpp>

#include <sys/prctl.h>

#include <atomic>
#include <utility>

BALLAST_BEGIN_NAMESPACE
namespace posix {

/// Name the process that may attach to this one, with its descendants, as `prctl(PR_SET_PTRACER)`; 0 takes it back.
using set_tracer_function = void (*)(unsigned long process);

/// Without effect where the kernel does not restrict who may attach.
inline void set_tracer(unsigned long process) { ::prctl(PR_SET_PTRACER, process, 0, 0, 0); }

/// Every process of the user. It may then not only read this one but also stop it and write to it.
inline constexpr unsigned long any_tracer = PR_SET_PTRACER_ANY;

namespace detail {

/// An exception from the rule that only ancestors may read a process (Yama), while somebody holds one. There is one per
/// process; the last that is given stands.
class read_permission {
public:
  read_permission() = default;
  read_permission(unsigned long process, set_tracer_function set) : set_{set} {
    num_holders().fetch_add(1);
    set_(process);
  }
  read_permission(read_permission&& other) noexcept : set_{std::exchange(other.set_, nullptr)} {}
  read_permission& operator=(read_permission&& other) noexcept {
    std::swap(set_, other.set_);
    return *this;
  }
  ~read_permission() {
    if (set_ != nullptr && num_holders().fetch_sub(1) == 1) { set_(0); }
  }

private:
  [[nodiscard]] static std::atomic<int>& num_holders() noexcept {
    static std::atomic<int> count{0};
    return count;
  }

  set_tracer_function set_ = nullptr;
};

}  // namespace detail
}  // namespace posix
BALLAST_END_NAMESPACE

#endif
