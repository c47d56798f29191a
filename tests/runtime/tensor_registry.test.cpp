// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/runtime/detail/tensor_registry.hpp>

#include <doctest/doctest.h>
#include <support/random.hpp>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <ostream>  // doctest prints error codes
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

using namespace ballast;
using detail::tensor_registry;

namespace {

alignas(64) std::array<std::byte, 4096> memory;
std::byte* at(std::size_t offset) { return memory.data() + offset; }

constexpr auto size_max = std::numeric_limits<std::size_t>::max();
constexpr auto stride_max = std::numeric_limits<std::ptrdiff_t>::max();
constexpr auto stride_min = std::numeric_limits<std::ptrdiff_t>::min();

std::uint64_t digest_of(tensor_registry const& in) {
  digest out;
  in.describe(out);
  return out.value();
}

/// Message of a refusal, which must change nothing.
std::string refusal(tensor_registry& of, index_t layer, std::string_view name, std::byte* base, std::size_t bytes,
                    std::optional<std::ptrdiff_t> stride = {}) {
  auto const before = digest_of(of);
  auto const regions = of.regions().size();
  auto const result = of.add(layer, name, base, bytes, stride);
  CHECK(result.code() == errc::invalid_weights);
  CHECK(digest_of(of) == before);
  CHECK(of.regions().size() == regions);
  return result.message();
}

}  // namespace

TEST_CASE("what a store was made for is checked and can be asked") {
  tensor_registry const some{3, 2};
  CHECK(some.num_layers() == 2);
  CHECK(some.slots_per_rank() == 3);
  CHECK(tensor_registry{1, 0}.num_layers() == 0);
  CHECK_THROWS_WITH_AS((tensor_registry{3, -1}), doctest::Contains("-1 layers, must be at least 0"), std::system_error);
  CHECK_THROWS_WITH_AS((tensor_registry{0, 1}), doctest::Contains("0 slots a rank, must be at least 1"),
                       std::system_error);
  CHECK_THROWS_AS((tensor_registry{-3, 1}), std::system_error);
}

TEST_CASE("tensors that make no sense are refused by layer, name and value") {
  tensor_registry of{3, 2};
  CHECK(refusal(of, 2, "w", at(0), 8) == "tensor 'w' of layer 2: there are 2 layers");
  CHECK(refusal(of, -1, "w", at(0), 8) == "tensor 'w' of layer -1: there are 2 layers");
  CHECK(refusal(of, 0, "", at(0), 8) == "tensor '' of layer 0: has no name");
  CHECK(refusal(of, 0, {}, at(0), 8) == "tensor '' of layer 0: has no name");
  CHECK(refusal(of, 0, "w", nullptr, 8) == "tensor 'w' of layer 0: null pointer");
  CHECK(refusal(of, 0, "w", at(0), 0) == "tensor 'w' of layer 0: an expert of 0 bytes");
  CHECK(refusal(of, 0, "w", at(0), 0, 0) == "tensor 'w' of layer 0: an expert of 0 bytes");
  CHECK(refusal(of, 0, "w", at(0), 8, 7) == "tensor 'w' of layer 0: stride 7 is below the expert's 8 bytes");
  REQUIRE(of.add(0, "w", at(0), 8).ok());
  CHECK(refusal(of, 0, "w", at(64), 8) == "tensor 'w' of layer 0: registered twice");
  CHECK(of.add(1, "w", at(64), 8).ok());
}

TEST_CASE("a tensor whose slots share their bytes is none") {
  tensor_registry of{3, 1};
  CHECK(refusal(of, 0, "scale", at(0), 4, 0) ==
        "tensor 'scale' of layer 0: stride 0: the slots share their bytes, this is not a tensor with memory for each "
        "expert");
  REQUIRE(of.add(0, "scale", at(0), 4).ok());
  CHECK(of.tensors(0)[0].stride == 4);
  // One slot has nothing to share; what the engine says is wrong all the same.
  tensor_registry single{1, 1};
  CHECK_FALSE(single.add(0, "scale", at(0), 4, 0).ok());
}

TEST_CASE("negative strides are seen as such, from whatever type they come") {
  tensor_registry of{3, 1};
  CHECK(refusal(of, 0, "w", at(256), 8, -64) == "tensor 'w' of layer 0: stride -64 is negative");
  CHECK(refusal(of, 0, "w", at(256), 8, static_cast<std::ptrdiff_t>(static_cast<std::size_t>(-64))) ==
        "tensor 'w' of layer 0: stride -64 is negative");
  CHECK(refusal(of, 0, "w", at(256), size_max - 8, -64) == "tensor 'w' of layer 0: stride -64 is negative");
  CHECK(refusal(of, 0, "w", at(256), 8, stride_min) ==
        "tensor 'w' of layer 0: stride -9223372036854775808 is negative");
}

TEST_CASE("tensors that reach beyond the address space are refused with their numbers") {
  tensor_registry of{3, 1};
  CHECK(refusal(of, 0, "w", at(0), 8, stride_max) ==
        "tensor 'w' of layer 0: 3 slots of 8 bytes, 9223372036854775807 "
        "bytes apart, do not fit the address space");
  for (auto const bytes : {size_max, size_max - 8, size_max / 2, size_max / 2 + 1, size_max / 3, size_max / 6 + 1}) {
    CAPTURE(bytes);
    CHECK(refusal(of, 0, "w", at(0), bytes).find("do not fit the address space") != std::string::npos);
  }
  for (auto const stride : {stride_max, stride_max / 2, stride_max / 2 - 3}) {
    CAPTURE(stride);
    CHECK(refusal(of, 0, "w", at(0), 8, stride).find("do not fit the address space") != std::string::npos);
  }
  // NOLINTNEXTLINE(performance-no-int-to-ptr): an address at the end of the address space
  auto* const high = reinterpret_cast<std::byte*>(std::numeric_limits<std::uintptr_t>::max() - 23);
  CHECK(refusal(of, 0, "w", high, 8).find("do not fit the address space") != std::string::npos);
  CHECK(of.add(0, "just fits", high - 1, 8).ok());
  tensor_registry single{1, 1};
  CHECK_FALSE(single.add(0, "w", at(0), size_max).ok());
  CHECK_FALSE(single.add(0, "w", at(0), size_max / 2 + 1).ok());
  CHECK(single.add(0, "only slot", at(0), 8, stride_max).ok());
}

TEST_CASE("the very same tensor under another name of the layer is an alias and moves once") {
  tensor_registry of{3, 2};
  REQUIRE(of.add(0, "w", at(0), 8).ok());
  REQUIRE(of.add(0, "other", at(64), 8).ok());
  auto const before = digest_of(of);
  CHECK(of.add(0, "alias", at(0), 8, 8).ok());
  CHECK(of.tensors(0).size() == 2);
  CHECK(of.regions().size() == 2);
  CHECK(digest_of(of) == before);
  CHECK(refusal(of, 0, "other", at(0), 8) == "tensor 'other' of layer 0: registered twice");
  CHECK(refusal(of, 0, "alias", at(128), 8) == "tensor 'alias' of layer 0: registered twice");
  CHECK(refusal(of, 1, "w", at(0), 8) == "tensor 'w' of layer 1: overlaps tensor 'w' of layer 0");
  CHECK(refusal(of, 0, "part", at(0), 4, 8) == "tensor 'part' of layer 0: overlaps tensor 'w' of layer 0");
  CHECK(refusal(of, 0, "wider", at(0), 8, 16) == "tensor 'wider' of layer 0: overlaps tensor 'w' of layer 0");
  // With one slot the stride means nothing.
  tensor_registry single{1, 1};
  REQUIRE(single.add(0, "w", at(0), 8, 64).ok());
  CHECK(single.add(0, "alias", at(0), 8).ok());
  CHECK(single.tensors(0).size() == 1);
}

TEST_CASE("tensors may interleave, and share no byte") {
  tensor_registry of{3, 2};
  REQUIRE(of.add(0, "w", at(0), 8, 32).ok());
  CHECK(of.add(0, "scale", at(8), 4, 32).ok());
  CHECK(of.add(1, "w", at(16), 16, 32).ok());
  CHECK(refusal(of, 1, "v", at(12), 5, 32) == "tensor 'v' of layer 1: overlaps tensor 'w' of layer 1");
  CHECK(of.add(1, "v", at(12), 4, 32).ok());
  CHECK(of.regions()[1].data == at(8));
  CHECK(of.regions()[1].size == 2 * 32 + 4);
  CHECK(of.tensors(1)[1].region == 3);
}

TEST_CASE("two tensors are refused if and only if some byte belongs to both") {
  ballast_test::generator random{17};
  constexpr index_t room = 160;
  struct tensor {
    index_t base, bytes, stride;
    bool operator==(tensor const&) const = default;
  };
  int overlapping = 0;
  int among_each_other = 0;  // same addresses, no byte in common
  for (int trial = 0; trial < 20000; ++trial) {
    auto const slots = random.between(1, 5);
    auto const draw = [&] {
      tensor result{random.below(room), random.between(1, 12), 0};
      result.stride = random.between(result.bytes, 30);
      return result;
    };
    auto const a = draw();
    auto b = draw();
    if (random.below(2) == 0) { b.stride = std::max(a.stride, b.bytes); }
    if (random.below(4) == 0) { b.base = a.base; }
    if (random.below(4) == 0) { b.bytes = std::min(a.bytes, b.stride); }
    auto const bytes_of = [&](tensor const& one) {
      std::vector<bool> result(room + 5 * 30);
      for (index_t slot = 0; slot < slots; ++slot) {
        for (index_t i = 0; i < one.bytes; ++i) {
          result[static_cast<std::size_t>(one.base + slot * one.stride + i)] = true;
        }
      }
      return result;
    };
    auto const in_a = bytes_of(a);
    auto const in_b = bytes_of(b);
    bool shares_byte = false;
    for (std::size_t i = 0; i < in_a.size(); ++i) { shares_byte = shares_byte || (in_a[i] && in_b[i]); }
    auto const reach = (slots - 1) * a.stride + a.bytes;
    auto const reach_b = (slots - 1) * b.stride + b.bytes;
    among_each_other += !shares_byte && a.base < b.base + reach_b && b.base < a.base + reach ? 1 : 0;
    overlapping += shares_byte ? 1 : 0;

    tensor_registry of{slots, 2};
    auto const add = [&](index_t layer, char const* name, tensor const& one) {
      return of.add(layer, name, at(static_cast<std::size_t>(one.base)), static_cast<std::size_t>(one.bytes),
                    one.stride);
    };
    CAPTURE(slots);
    CAPTURE(a.base);
    CAPTURE(a.bytes);
    CAPTURE(a.stride);
    CAPTURE(b.base);
    CAPTURE(b.bytes);
    CAPTURE(b.stride);
    REQUIRE(add(0, "a", a).ok());
    auto const other_layer = random.below(2);
    bool const is_alias = other_layer == 0 && a.base == b.base && a.bytes == b.bytes && in_a == in_b;
    REQUIRE(add(other_layer, "b", b).ok() == (is_alias || !shares_byte));
    REQUIRE(of.regions().size() == (shares_byte ? 1u : 2u));
  }
  CHECK(overlapping > 2000);
  CHECK(among_each_other > 500);
}

TEST_CASE("ranks that registered other tensors describe themselves otherwise") {
  auto const described = [](index_t slots, auto fill) {
    tensor_registry of{slots, 2};
    fill(of);
    return digest_of(of);
  };
  auto const usual = described(3, [](auto& of) { of.add(0, "w", at(0), 8).or_throw(); });
  CHECK(usual == described(3, [](auto& of) { of.add(0, "w", at(512), 8, 8).or_throw(); }));
  CHECK(usual != described(2, [](auto& of) { of.add(0, "w", at(0), 8).or_throw(); }));
  CHECK(usual != described(3, [](auto& of) { of.add(1, "w", at(0), 8).or_throw(); }));
  CHECK(usual != described(3, [](auto& of) { of.add(0, "v", at(0), 8).or_throw(); }));
  CHECK(usual != described(3, [](auto& of) { of.add(0, "w", at(0), 4, 8).or_throw(); }));
  CHECK(usual != described(3, [](auto& of) { of.add(0, "w", at(0), 8, 16).or_throw(); }));
}
