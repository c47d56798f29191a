// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "card_share.hpp"

#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>

#include "check.hpp"

#include <cuda.h>

#include <utility>

namespace engine {

namespace {

/// A function of the driver, which programs of the runtime are not linked with.
template <class Function>
[[nodiscard]] Function driver_function(char const* name) {
  constexpr unsigned version = 12050;  // the first with streams in green contexts
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  check(cudaGetDriverEntryPointByVersion(name, &found, version, cudaEnableDefault, &result),
        "cudaGetDriverEntryPointByVersion");
  if (found == nullptr || result != cudaDriverEntryPointSuccess) {
    ballast::status{ballast::errc::invalid_option,
                    ballast::detail::concat("this driver has no ", name,
                                            ": ranks that share a card need green contexts, of CUDA 12.5")}
        .or_throw();
  }
  return reinterpret_cast<Function>(found);
}
#define ENGINE_DRIVER_FUNCTION(name) driver_function<decltype(&name)>(#name)

void check(CUresult result, char const* call) {
  if (result == CUDA_SUCCESS) { return; }
  ballast::status{ballast::errc::internal, ballast::detail::concat(call, " failed with ", static_cast<int>(result))}
      .or_throw();
}

}  // namespace

struct card_share::green_context {
  CUgreenCtx handle = nullptr;

  explicit green_context(CUgreenCtx made) : handle{made} {}
  green_context(green_context const&) = delete;
  green_context& operator=(green_context const&) = delete;
  ~green_context() {
    static auto const destroy = ENGINE_DRIVER_FUNCTION(cuGreenCtxDestroy);
    static_cast<void>(destroy(handle));
  }
};

card_share::card_share(card_share&& other) noexcept
    : device_{other.device_},
      multiprocessors_{other.multiprocessors_},
      stream_{std::exchange(other.stream_, nullptr)},
      context_{std::move(other.context_)} {}

card_share& card_share::operator=(card_share&& other) noexcept {
  std::swap(device_, other.device_);
  std::swap(multiprocessors_, other.multiprocessors_);
  std::swap(stream_, other.stream_);
  std::swap(context_, other.context_);
  return *this;
}

card_share::~card_share() {
  if (stream_ != nullptr) { static_cast<void>(cudaStreamDestroy(stream_)); }
}

std::vector<card_share> card_share::cut(int device, int parts) {
  check(cudaSetDevice(device), "cudaSetDevice");
  check(cudaFree(nullptr), "cudaFree");  // the card's context
  std::vector<card_share> made;
  if (parts == 1) {
    card_share whole;
    whole.device_ = device;
    check(cudaDeviceGetAttribute(&whole.multiprocessors_, cudaDevAttrMultiProcessorCount, device),
          "cudaDeviceGetAttribute");
    check(cudaStreamCreateWithFlags(&whole.stream_, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    made.push_back(std::move(whole));
    return made;
  }
  auto const get_resource = ENGINE_DRIVER_FUNCTION(cuDeviceGetDevResource);
  auto const split = ENGINE_DRIVER_FUNCTION(cuDevSmResourceSplitByCount);
  auto const describe = ENGINE_DRIVER_FUNCTION(cuDevResourceGenerateDesc);
  auto const create = ENGINE_DRIVER_FUNCTION(cuGreenCtxCreate);
  auto const create_stream = ENGINE_DRIVER_FUNCTION(cuGreenCtxStreamCreate);

  CUdevResource card{};
  check(get_resource(device, &card, CU_DEV_RESOURCE_TYPE_SM), "cuDeviceGetDevResource");
  std::vector<CUdevResource> groups(static_cast<std::size_t>(parts));
  auto count = static_cast<unsigned>(parts);
  auto const least = card.sm.smCount / static_cast<unsigned>(parts) / 8 * 8;  // the driver deals them by eight
  check(split(groups.data(), &count, &card, nullptr, 0, least), "cuDevSmResourceSplitByCount");
  if (count < static_cast<unsigned>(parts)) {
    ballast::status{ballast::errc::invalid_option,
                    ballast::detail::concat("card ", device, " can be cut in ", count, " parts, asked for ", parts)}
        .or_throw();
  }
  for (auto& group : groups) {
    CUdevResourceDesc description{};
    check(describe(&description, &group, 1), "cuDevResourceGenerateDesc");
    CUgreenCtx context = nullptr;
    check(create(&context, description, device, CU_GREEN_CTX_DEFAULT_STREAM), "cuGreenCtxCreate");
    card_share part;
    part.context_ = std::make_unique<green_context>(context);
    part.device_ = device;
    part.multiprocessors_ = static_cast<int>(group.sm.smCount);
    check(create_stream(&part.stream_, context, CU_STREAM_NON_BLOCKING, 0), "cuGreenCtxStreamCreate");
    made.push_back(std::move(part));
  }
  return made;
}

}  // namespace engine
