// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/detail/clock.hpp>
#include <ballast/nccl/communicator.hpp>
#include <ballast/nccl/transport.hpp>

#include "expert_sizes.hpp"
#include "rank_processes.hpp"
#include "support.hpp"

#include <benchmark/benchmark.h>

#include <cstdint>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

namespace {

using ballast::index_t;
using ballast::cudart::device_memory;
using ballast_bench::check;

constexpr std::size_t num_experts = 9;
constexpr ballast::nanoseconds_t timeout = 60'000'000'000;
constexpr int repetitions = 15;

void check_nccl(ncclResult_t result, char const* call) { ballast::nccl::to_status(result, call).or_throw(); }

/// Each rank sends nine experts to the next one: to itself where it is alone.
ballast_bench::samples send_experts(ballast::posix::process_group& group, std::string const& argument) {
  if (group.num_ranks() > ballast_bench::num_devices()) {
    // NCCL refuses two ranks on one device of one host.
    ::setenv("NCCL_HOSTID", ballast::detail::concat("ballast-host-", group.rank()).c_str(), 1);
    ::setenv("NCCL_SOCKET_IFNAME", "lo", 1);
  }
  ballast_bench::use_device_of(group.rank());
  auto const sizes = ballast_bench::sizes_named(argument);
  ballast::nccl::communicator made;
  ballast::nccl::communicator::create(group, made).or_throw();
  auto const comm = made.get();
  ballast::nccl::transport wires{std::move(made)};
  auto const by_hand = ballast::cudart::stream::create();
  auto const from = device_memory<std::byte>::create(sizes.total() * num_experts);
  auto const to = device_memory<std::byte>::create(sizes.total() * num_experts);
  auto const next = (group.rank() + 1) % group.num_ranks();
  auto const previous = (group.rank() + group.num_ranks() - 1) % group.num_ranks();

  std::vector<ballast::segment> outgoing;
  std::vector<ballast::segment> incoming;
  std::size_t at = 0;
  for (std::size_t e = 0; e < num_experts; ++e) {
    for (auto const bytes : sizes.tensors) {
      outgoing.push_back({from.data() + at, bytes});
      incoming.push_back({to.data() + at, bytes});
      at += bytes;
    }
  }
  std::uint64_t tag = 0;
  std::vector<ballast::outgoing_message> sends(num_experts);
  std::vector<ballast::incoming_message> receives(num_experts);
  auto const a_message = sizes.tensors.size();
  ballast_bench::samples result;
  for (int i = 0; i < repetitions + 2; ++i) {
    for (std::size_t e = 0; e < num_experts; ++e, ++tag) {
      auto const part = [&](std::vector<ballast::segment> const& all) {
        return std::span{all}.subspan(e * a_message, a_message);
      };
      sends[e] = {next, static_cast<index_t>(e), tag, part(outgoing)};
      receives[e] = {previous, static_cast<index_t>(e), tag, part(incoming), {}};
    }
    ballast::vote_result ready = group.vote(true, timeout);
    auto begin = ballast::detail::now();
    wires.start(sends, receives).or_throw();
    wires.wait(timeout).or_throw();
    auto const ours = ballast::detail::now() - begin;

    ready = group.vote(true, timeout);
    begin = ballast::detail::now();
    check_nccl(ncclGroupStart(), "ncclGroupStart");
    for (std::size_t p = 0; p < outgoing.size(); ++p) {
      check_nccl(ncclSend(outgoing[p].data, outgoing[p].size, ncclUint8, next, comm, by_hand.get()), "ncclSend");
      check_nccl(ncclRecv(incoming[p].data, incoming[p].size, ncclUint8, previous, comm, by_hand.get()), "ncclRecv");
    }
    check_nccl(ncclGroupEnd(), "ncclGroupEnd");
    for (ncclResult_t state = ncclInProgress; state == ncclInProgress;) {
      check_nccl(ncclCommGetAsyncError(comm, &state), "ncclCommGetAsyncError");
    }
    check(cudaStreamSynchronize(by_hand.get()), "cudaStreamSynchronize");
    auto const plain = ballast::detail::now() - begin;
    if (i < 2) { continue; }  // connections are made
    result["transport"].push_back(static_cast<double>(ours) * 1e-3);
    result["by_hand"].push_back(static_cast<double>(plain) * 1e-3);
  }
  return result;
}

void send(benchmark::State& state, std::string const& model) {
  auto const num_ranks = static_cast<index_t>(state.range(0));
  auto const result = ballast_bench::run_ranks("nccl_send_experts", num_ranks, model);
  auto const payload = static_cast<double>(ballast_bench::sizes_named(model).total()) * num_experts;
  std::size_t i = 0;
  for (auto _ : state) { state.SetIterationTime(result.at("transport")[i++ % repetitions] * 1e-6); }
  auto const gigabytes = [&](char const* name) { return payload / ballast_bench::median(result.at(name)) * 1e-3; };
  state.counters["by_hand_GBs"] = gigabytes("by_hand");
  state.counters["transport_GBs"] = gigabytes("transport");
  state.counters["of_by_hand"] = gigabytes("transport") / gigabytes("by_hand");
}

int const registered = [] {
  ballast_bench::register_rank_job("nccl_send_experts", &send_experts);
  auto const add = [](std::string const& model, std::vector<std::int64_t> const& ranks) {
    auto* const benchmark = benchmark::RegisterBenchmark(("nccl/" + model).c_str(),
                                                         [model](benchmark::State& state) { send(state, model); });
    benchmark->ArgName("ranks")->UseManualTime()->Iterations(repetitions)->Unit(benchmark::kMicrosecond);
    for (auto const count : ranks) { benchmark->Arg(count); }
  };
  if (auto const wanted = ballast_bench::rank_count(0); wanted > 0) {
    for (auto const* const model : {"deepseek_v3_fp8", "gpt_oss_mxfp4", "qwen3_30b_fp8"}) { add(model, {wanted}); }
    return 0;
  }
  add("deepseek_v3_fp8", {1});
  add("gpt_oss_mxfp4", {1});
  add("qwen3_30b_fp8", {1, 2, 4, 8});
  return 0;
}();

}  // namespace
