// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
// The libFuzzer program of one target: BALLAST_FUZZ_TARGET is its name, BALLAST_FUZZ_HEADER the header that has it.
#include BALLAST_FUZZ_HEADER

#include <cstddef>
#include <cstdint>

// NOLINTNEXTLINE(readability-identifier-naming): the name that libFuzzer calls
extern "C" int LLVMFuzzerTestOneInput(std::uint8_t const* data, std::size_t size) {
  ballast_fuzz::BALLAST_FUZZ_TARGET(data, size);
  return 0;
}
