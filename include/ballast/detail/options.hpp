// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_DETAIL_OPTIONS_HPP
#define BALLAST_DETAIL_OPTIONS_HPP

#include <ballast/config.hpp>
#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>

#include <bit>
#include <concepts>
#include <cstdint>
#include <string_view>

BALLAST_BEGIN_NAMESPACE
namespace detail {

/// Takes the options of a part one by one; only there to spell the concept below.
struct option_visitor {
  void operator()(std::string_view /*name*/, std::uint64_t /*bits*/) const noexcept {}
};

/// A part that can name its options, so that ranks which differ are told in what.
///
/// `part.for_each_option(visit)` calls `visit(name, bits)` for each, in a fixed order; `option_bits` makes the bits. A
/// name is valid during the call only.
template <class T>
concept names_options = requires(T const& part, option_visitor visit) { part.for_each_option(visit); };

/// A part that names its options in a way that nobody would hear: not const, or to another visitor.
template <class T>
concept misnames_options =
    !names_options<T> &&
    (requires { &T::for_each_option; } || requires(T& part, option_visitor visit) { part.for_each_option(visit); });

/// An option's value as the ranks compare it.
template <std::integral T>
[[nodiscard]] constexpr std::uint64_t option_bits(T value) noexcept {
  return static_cast<std::uint64_t>(static_cast<std::int64_t>(value));
}
/// Options that are no integers are compared by their bits, and printed as such.
[[nodiscard]] constexpr std::uint64_t option_bits(double value) noexcept { return std::bit_cast<std::uint64_t>(value); }

/// Mix a part's options into a digest. Names count too.
template <names_options T>
void describe_options(T const& part, digest& out) {
  part.for_each_option([&out](std::string_view name, std::uint64_t bits) { out.add(name).add(bits); });
}

/// Visit the options of a part that belongs to another part: `name.option` for each, if it names them, and at last
/// `name` with the digest of all that it describes, its own name included.
template <class T, class Visit>
void for_each_option_of(std::string_view name, T const& part, Visit& visit) {
  if constexpr (names_options<T>) {
    part.for_each_option([&name, &visit](std::string_view option, std::uint64_t bits) {
      auto const full_name = concat(name, '.', option);
      visit(std::string_view{full_name}, bits);
    });
  }
  digest all;
  part.describe(all);
  visit(name, all.value());
}

}  // namespace detail
BALLAST_END_NAMESPACE

#endif
