// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include <ballast/cudart/device_tables.hpp>
#include <ballast/cudart/kernels/device_recorder.cuh>
#include <ballast/cudart/kernels/fold.cuh>
#include <ballast/cudart/kernels/kernel_copies.cuh>
#include <ballast/cudart/kernels/route.cuh>
#include <ballast/cudart/kernels/sized_copies.cuh>
#include <ballast/detail/text.hpp>
#include <ballast/digest.hpp>
#include <ballast/dispatch/tables.hpp>
#include <ballast/load/history.hpp>
#include <ballast/load/pass_timeline.hpp>
#include <ballast/load/window_recorder.hpp>

#include "support/gpu.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <ostream>
#include <span>
#include <string>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

using namespace ballast;

namespace {

ballast_test::gpu_only const needs_gpu;

template <class T>
class on_device {
public:
  explicit on_device(std::vector<T> const& host) : memory_{cudart::device_memory<T>::create(host.size() + padding)} {
    write(host);
  }
  void write(std::vector<T> const& host) {
    ballast_test::check_cuda(cudaMemcpy(data(), host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice),
                             "cudaMemcpy");
    ballast_test::check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }
  [[nodiscard]] T* data() const { return memory_.data(); }
  [[nodiscard]] std::vector<T> read() const {
    std::vector<T> host(memory_.size() - padding);
    ballast_test::check_cuda(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    ballast_test::check_cuda(cudaMemcpy(host.data(), data(), host.size() * sizeof(T), cudaMemcpyDeviceToHost),
                             "cudaMemcpy");
    return host;
  }

private:
  static constexpr std::size_t padding = 8;  // room to shift arrays off their alignment
  cudart::device_memory<T> memory_;
};

/// Skewed ids with every kind that must not be counted: negative, reserved, out of range, and beyond 32 bits.
template <class Id>
std::vector<Id> make_ids(std::size_t count, index_t num_logical, std::uint64_t seed) {
  std::vector<Id> ids(count);
  for (auto& id : ids) {
    seed = seed * 0x5851f42d4c957f2du + 0x14057b7ef767814fu;
    auto const draw = static_cast<std::uint32_t>(seed >> 33);
    auto const a = draw % static_cast<std::uint32_t>(num_logical);
    auto const b = (draw >> 12) % static_cast<std::uint32_t>(num_logical);
    id = static_cast<Id>(a < b ? a : b);
    if (draw % 23 == 0) { id = static_cast<Id>(num_logical + static_cast<index_t>(draw % 5)); }
    if (draw % 29 == 0) { id = static_cast<Id>(-1); }
    if (draw % 31 == 0) { id = sizeof(Id) == 8 ? static_cast<Id>(std::int64_t{1} << 32) : static_cast<Id>(-77); }
  }
  return ids;
}

struct sizes {
  index_t num_tokens;
  index_t top_k;
  index_t num_logical;
};

placement random_placement(placement_shape shape, std::uint64_t seed) {
  std::vector<index_t> map(static_cast<std::size_t>(shape.num_layers) * static_cast<std::size_t>(shape.num_slots));
  for (std::size_t i = 0; i < map.size(); ++i) {
    auto const slot = static_cast<index_t>(i % static_cast<std::size_t>(shape.num_slots));
    map[i] = slot < shape.num_logical
                 ? slot
                 : static_cast<index_t>((i * 7 + seed * 13) % static_cast<std::size_t>(shape.num_logical));
  }
  for (index_t layer = 0; layer < shape.num_layers; ++layer) {
    auto* const row = map.data() + static_cast<std::ptrdiff_t>(layer) * shape.num_slots;
    for (index_t i = shape.num_slots - 1; i > 0; --i) {
      seed = seed * 0x5851f42d4c957f2du + 0x14057b7ef767814fu;
      std::swap(row[i], row[static_cast<index_t>((seed >> 33) % static_cast<std::uint64_t>(i + 1))]);
    }
  }
  placement result;
  result.assign(shape, map).or_throw();
  return result;
}

/// Give the replicas of each expert uneven shares, some of them none.
void split_unevenly(placement& holds) {
  holds.make_shares_even();
  for (index_t layer = 0; layer < holds.num_layers(); ++layer) {
    auto const shares = holds.edit_shares(layer);
    for (index_t expert = 0; expert < holds.num_logical(); ++expert) {
      auto const replicas = holds.replicas_of(layer, expert);
      auto left = share_one;
      for (std::size_t i = 0; i < replicas.size(); ++i) {
        bool const last = i + 1 == replicas.size();
        auto const share = last ? left : left / static_cast<share_t>(1 + (static_cast<std::size_t>(expert) + i) % 7);
        shares[static_cast<std::size_t>(replicas[i])] = share;
        left -= share;
      }
    }
  }
}

template <class Id, class Physical = Id>
void check_route(sizes const size, dispatch_mode mode, std::size_t shift, std::int32_t num_valid,
                 bool one_rank_is_dead = false) {
  constexpr index_t layer = 2;
  constexpr index_t num_layers = 4;
  topology where{{4, 2, size.num_logical / 4 + 3, 2}};
  if (one_rank_is_dead) { where.set_live(3, false); }
  placement_shape const shape{num_layers, size.num_logical, where.num_slots()};
  auto holds = random_placement(shape, 3);
  if (mode == dispatch_mode::by_share) { split_unevenly(holds); }
  auto const stream = cudart::stream::create();
  cudart::device_tables<> tables{dispatch_tables{where, shape, rank_id{1}, mode}, where, 1};
  for (index_t l = 0; l < num_layers; ++l) { tables.publish(where, holds, l, stream.get()).or_throw(); }
  cudart::device_recorder recorder{stream.get(), num_layers, size.num_logical, {1, 1}};

  auto const count = static_cast<std::size_t>(size.num_tokens) * static_cast<std::size_t>(size.top_k);
  auto const ids = make_ids<Id>(count, size.num_logical, 11);
  on_device<Id> const device_ids{std::vector<Id>(count + shift, static_cast<Id>(-1))};
  ballast_test::check_cuda(
      cudaMemcpy(device_ids.data() + shift, ids.data(), count * sizeof(Id), cudaMemcpyHostToDevice), "cudaMemcpy");
  std::vector<Physical> const nothing(count + shift, static_cast<Physical>(-9));
  on_device<Physical> physical{nothing};
  on_device<std::int32_t> const valid{{num_valid}};
  cudart::routing<Id> const input{device_ids.data() + shift, size.num_tokens, size.top_k, valid.data()};

  auto masked = ids;
  auto const num_counted =
      static_cast<std::size_t>(num_valid < 0 ? 0 : num_valid) * static_cast<std::size_t>(size.top_k);
  for (std::size_t i = num_counted; i < count; ++i) { masked[i] = static_cast<Id>(-1); }
  std::vector<Physical> wanted(count);
  dispatch_ids<Id, Physical>(tables.host().view(), layer, size.top_k, masked, wanted);
  std::vector<load_t> counts(static_cast<std::size_t>(num_layers * size.num_logical));
  for (auto const id : masked) {
    if (std::cmp_greater_equal(id, 0) && std::cmp_less(id, size.num_logical)) {
      ++counts[static_cast<std::size_t>(layer * size.num_logical + static_cast<index_t>(id))];
    }
  }

  auto const read_counts = [&] {
    std::vector<load_t> result(counts.size());
    recorder.end_pass(true);
    recorder.history(result).or_throw();
    return result;
  };
  auto const read_physical = [&] {
    ballast_test::check_cuda(cudaStreamSynchronize(stream.get()), "cudaStreamSynchronize");
    auto const all = physical.read();
    CHECK(std::vector<Physical>(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(shift)) ==
          std::vector<Physical>(shift, nothing[0]));
    return std::vector<Physical>(all.begin() + static_cast<std::ptrdiff_t>(shift), all.end());
  };
  cudart::record(stream.get(), recorder.view(), layer, input).or_throw();
  CHECK(read_counts() == counts);
  cudart::dispatch(stream.get(), tables.view(), layer, input, physical.data() + shift).or_throw();
  CHECK(read_physical() == wanted);
  physical.write(nothing);
  cudart::dispatch_and_record(stream.get(), recorder.view(), tables.view(), layer, input, physical.data() + shift)
      .or_throw();
  CHECK(read_physical() == wanted);
  CHECK(read_counts() == counts);
  if constexpr (std::is_same_v<Id, Physical>) {  // in place
    cudart::dispatch_and_record(stream.get(), recorder.view(), tables.view(), layer, input, device_ids.data() + shift)
        .or_throw();
    CHECK(read_counts() == counts);
    auto const in_place = device_ids.read();
    CHECK(std::vector<Id>(in_place.begin() + static_cast<std::ptrdiff_t>(shift), in_place.end()) == wanted);
  }
}

template <class Id, class Physical>
struct ids_to {
  using from = Id;
  using to = Physical;
};

template <class Physical>
concept may_be_physical =
    requires(cudaStream_t stream, dispatch_view const& tables, cudart::record_view const& counters,
             cudart::routing<std::int32_t> const& input, Physical* to) {
      cudart::dispatch(stream, tables, 0, input, to);
      cudart::dispatch_and_record(stream, counters, tables, 0, input, to);
    };
static_assert(may_be_physical<std::int32_t> && may_be_physical<std::uint32_t> && may_be_physical<std::int64_t> &&
              may_be_physical<std::uint64_t>);
static_assert(!may_be_physical<float> && !may_be_physical<double> && !may_be_physical<bool> &&
              !may_be_physical<std::int16_t> && !may_be_physical<std::int32_t const> && !may_be_physical<void>);
static_assert(!cudart::router_id<float> && !cudart::router_id<std::uint16_t> && !cudart::router_id<bool> &&
              !cudart::router_id<std::int64_t const> && !cudart::router_id<std::byte>);

/// A graph of `launch`, made but not run.
template <class Launch>
cudaGraphExec_t capture(cudaStream_t stream, Launch launch) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  ballast_test::check_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "cudaStreamBeginCapture");
  launch();
  ballast_test::check_cuda(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
  ballast_test::check_cuda(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
  ballast_test::check_cuda(cudaGraphDestroy(graph), "cudaGraphDestroy");
  return executable;
}

}  // namespace

TEST_CASE_TEMPLATE("record and dispatch equal the host's, id for id", Id, std::int32_t, std::uint32_t, std::int64_t,
                   std::uint64_t) {
  for (auto const mode :
       {dispatch_mode::nearest, dispatch_mode::even, dispatch_mode::round_robin, dispatch_mode::by_share}) {
    CAPTURE(static_cast<int>(mode));
    check_route<Id>({777, 6, 64}, mode, 0, 700);
    check_route<Id>({64, 8, 256}, mode, 1, 64);
    check_route<Id>({2000, 8, 256}, mode, 0, 2000, true);  // some experts have no live replica
  }
  check_route<Id>({1, 1, 4}, dispatch_mode::even, 0, 1);
  check_route<Id>({16384, 8, 256}, dispatch_mode::even, 0, 16000);
  check_route<Id>({4096, 8, 4096}, dispatch_mode::even, 0, 4096);
  check_route<Id>({4096, 8, 1000}, dispatch_mode::even, 3, 9999);
  check_route<Id>({12500, 8, 20000}, dispatch_mode::even, 0, 12000);  // more than a block's histogram has room for
  check_route<Id>({301, 7, 60}, dispatch_mode::nearest, 0, 0);
  check_route<Id>({301, 7, 72}, dispatch_mode::nearest, 0, -5);
}

TEST_CASE_TEMPLATE("physical ids of another type than the router's are the host's, id for id", Types,
                   ids_to<std::int32_t, std::int64_t>, ids_to<std::int64_t, std::int32_t>,
                   ids_to<std::uint32_t, std::int64_t>, ids_to<std::int32_t, std::uint64_t>,
                   ids_to<std::uint64_t, std::int32_t>, ids_to<std::int64_t, std::uint32_t>,
                   ids_to<std::uint32_t, std::int32_t>) {
  using from = typename Types::from;
  using to = typename Types::to;
  for (auto const mode : {dispatch_mode::nearest, dispatch_mode::round_robin, dispatch_mode::by_share}) {
    CAPTURE(static_cast<int>(mode));
    check_route<from, to>({777, 6, 64}, mode, 0, 700);
    check_route<from, to>({64, 8, 256}, mode, 1, 64);
    check_route<from, to>({2000, 8, 256}, mode, 0, 2000, true);
  }
  check_route<from, to>({1, 1, 4}, dispatch_mode::even, 0, 1);
  check_route<from, to>({16384, 8, 256}, dispatch_mode::even, 0, 16000);
  check_route<from, to>({12501, 8, 256}, dispatch_mode::even, 3, 12000);  // neither array is aligned for two
}

TEST_CASE("tokens are split by the shares of the replicas, on the device as in the tables") {
  topology const where{{8, 2, 9, 0}};
  placement_shape const shape{1, 8, where.num_slots()};
  auto holds = random_placement(shape, 5);
  split_unevenly(holds);
  auto const stream = cudart::stream::create();
  cudart::device_tables<> tables{dispatch_tables{where, shape, rank_id{3}, dispatch_mode::by_share}, where, 3};
  tables.publish(where, holds, 0, stream.get()).or_throw();
  constexpr index_t num_tokens = 1 << 20;
  for (std::int32_t expert = 0; expert < 8; ++expert) {
    on_device<std::int32_t> const ids{std::vector<std::int32_t>(num_tokens, expert)};
    cudart::routing<std::int32_t> const input{ids.data(), num_tokens, 1, nullptr};
    cudart::dispatch(stream.get(), tables.view(), 0, input, ids.data()).or_throw();
    ballast_test::check_cuda(cudaStreamSynchronize(stream.get()), "cudaStreamSynchronize");
    std::vector<double> taken(static_cast<std::size_t>(where.num_slots()));
    for (auto const slot : ids.read()) { taken[static_cast<std::size_t>(slot)] += 1.0 / num_tokens; }
    for (auto const slot : holds.replicas_of(0, expert)) {
      CAPTURE(slot);
      auto const share = static_cast<double>(holds.shares(0)[static_cast<std::size_t>(slot)]) / share_one;
      // The table is within 1 / 65536, and a million draws within five standard deviations of at most 1 / 2048.
      CHECK(std::abs(taken[static_cast<std::size_t>(slot)] - share) < 1.0 / 65536 + 5.0 / 2048);
    }
  }
}

TEST_CASE("a closed gate counts nothing, and is read when a graph runs") {
  auto const stream = cudart::stream::create();
  cudart::device_recorder recorder{stream.get(), 1, 64, {4, 2}};
  auto const ids = make_ids<std::int32_t>(4096, 64, 5);
  on_device<std::int32_t> const device_ids{ids};
  cudart::routing<std::int32_t> const input{device_ids.data(), 512, 8, nullptr};
  auto const graph = capture(stream.get(), [&] { cudart::record(stream.get(), recorder.view(), 0, input).or_throw(); });
  auto const replay = [&] { ballast_test::check_cuda(cudaGraphLaunch(graph, stream.get()), "cudaGraphLaunch"); };
  window_recorder twin{1, 64, {4, 2}};

  recorder.end_pass(true);  // the capture
  twin.end_pass(true);
  for (int pass = 0; pass < 9; ++pass) {
    bool const open = pass % 3 != 1;
    recorder.set_gate(open).or_throw();
    replay();
    replay();
    if (open) {
      twin.record_top_k(0, ids).or_throw();
      twin.record_top_k(0, ids).or_throw();
    }
    recorder.end_pass(pass != 4);
    twin.end_pass(pass != 4);
    std::vector<load_t> found(2 * 64);
    std::vector<load_t> wanted(found.size());
    recorder.history(found).or_throw();
    twin.history(wanted).or_throw();
    CAPTURE(pass);
    CHECK(found == wanted);
  }
  CHECK(recorder.failure().ok());
  ballast_test::check_cuda(cudaGraphExecDestroy(graph), "cudaGraphExecDestroy");
}

TEST_CASE("the window on the device is the window on the host") {
  auto const stream = cudart::stream::create();
  topology const where{{2, 1, 40, 1}};
  auto const holds = trivial_placement({3, 61, 80});
  for (window_options const options : {window_options{1, 8}, {5, 2}, {12, 8}, {3, 3}}) {
    cudart::device_recorder recorder{stream.get(), 3, 61, options};
    window_recorder twin{3, 61, options};
    CHECK(recorder.num_buckets() == twin.num_buckets());
    for (std::size_t pass = 0; pass < 30; ++pass) {
      auto const layer = static_cast<index_t>(pass % 3);
      auto const ids = make_ids<std::int32_t>(50 * pass, 61, pass);
      on_device<std::int32_t> const device_ids{ids};
      cudart::record(stream.get(), recorder.view(), layer,
                     cudart::routing<std::int32_t>{device_ids.data(), static_cast<index_t>(50 * pass), 1, nullptr})
          .or_throw();
      twin.record_top_k(layer, ids).or_throw();
      std::vector<load_t> const local(41, static_cast<load_t>(pass));
      recorder.record_local(layer, local, 1, holds.logical_of_slot(layer), where).or_throw();
      twin.record_local(layer, local, 1, holds.logical_of_slot(layer), where).or_throw();
      bool const counted = pass % 7 != 3;
      recorder.end_pass(counted);
      twin.end_pass(counted);
      if (pass == 17) {
        recorder.clear();
        twin.clear();
      }
      std::vector<load_t> found(static_cast<std::size_t>(recorder.num_buckets()) * 3 * 61);
      std::vector<load_t> wanted(found.size());
      recorder.history(found).or_throw();
      twin.history(wanted).or_throw();
      CHECK(found == wanted);
    }
    CHECK(recorder.failure().ok());
  }
}

TEST_CASE("ranks that count different passes on devices and on hosts tell each other the same") {
  auto const stream = cudart::stream::create();
  cudart::device_recorder recorder{stream.get(), 1, 8, {6, 3}};
  window_recorder twin{1, 8, {6, 3}};
  for (int pass = 0; pass < 20; ++pass) {
    bool const counted = pass % 4 != 1;
    recorder.end_pass(counted);
    twin.end_pass(counted);
    std::vector<pass_span> found(static_cast<std::size_t>(recorder.num_spans()));
    std::vector<pass_span> wanted(static_cast<std::size_t>(twin.num_spans()));
    recorder.spans(found);
    twin.spans(wanted);
    CAPTURE(pass);
    CHECK(found == wanted);
    CHECK(recorder.forgotten() == twin.forgotten());
    pass_timeline const counted_passes{wanted, twin.forgotten()};
    std::vector<index_t> places(found.size());
    std::vector<index_t> wanted_places(found.size());
    CHECK(recorder.place(counted_passes, places) == twin.place(counted_passes, wanted_places));
    CHECK(places == wanted_places);
  }
  digest of_recorder;
  digest of_twin;
  recorder.describe(of_recorder);
  twin.describe(of_twin);
  CHECK(of_recorder.value() == of_twin.value());
}

TEST_CASE("what a recorder hands out can be planned on, whatever it has counted") {
  auto const stream = cudart::stream::create();
  cudart::device_recorder recorder{stream.get(), 2, 3, {2, 2}};
  window_recorder twin{2, 3, {2, 2}};
  std::vector<load_t> const huge{max_layer_tokens, max_layer_tokens, 7};
  std::vector<load_t> found(2 * 2 * 3);
  std::vector<load_t> wanted(found.size());
  for (int pass = 0; pass < 3; ++pass) {
    for (int again = 0; again < 2; ++again) {
      recorder.record_logical(1, huge).or_throw();
      twin.record_logical(1, huge).or_throw();
    }
    recorder.end_pass(true);
    twin.end_pass(true);
    recorder.history(found).or_throw();
    twin.history(wanted).or_throw();
    CAPTURE(pass);
    CHECK(found == wanted);
    CHECK(validate_loads({found, 2, 2, 3}).ok());
  }
}

TEST_CASE("a recorder refuses what does not fit, and goes on") {
  auto const stream = cudart::stream::create();
  auto const refuses = [&](window_options options, index_t const* map, index_t slots) {
    CHECK_THROWS_AS((cudart::device_recorder{stream.get(), 2, 8, options, map, slots}), std::system_error);
  };
  on_device<index_t> const map{std::vector<index_t>(4, 0)};
  refuses({0, 1}, nullptr, 0);
  refuses({1, -1}, nullptr, 0);
  refuses({1, 1}, nullptr, 2);
  refuses({1, 1}, map.data(), 0);
  refuses({1, 1}, map.data(), -2);
  CHECK_THROWS_AS((cudart::device_recorder{stream.get(), -1, 8}), std::system_error);

  cudart::device_recorder recorder{stream.get(), 2, 8, {1, 1}, map.data(), 2};
  std::vector<std::int32_t> const ids{1, 1, 3};
  std::vector<load_t> const counts(8, 1);
  for (index_t const layer : {-1, 2}) {
    CHECK(recorder.record_top_k(layer, ids).code() == errc::invalid_load);
    CHECK(recorder.record_logical(layer, counts).code() == errc::invalid_load);
  }
  CHECK(recorder.record_logical(0, std::vector<load_t>(7, 1)).code() == errc::invalid_load);
  std::vector<load_t> small(15);
  CHECK(recorder.history(small).code() == errc::invalid_load);
  recorder.record_top_k(1, ids).or_throw();
  recorder.end_pass(true);
  std::vector<load_t> found(16);
  CHECK(recorder.history(found).ok());
  CHECK(found == std::vector<load_t>{0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1, 0, 0, 0, 0});
}

TEST_CASE("a recorder of no layers counts nothing") {
  auto const stream = cudart::stream::create();
  cudart::device_recorder recorder{stream.get(), 0, 8, {4, 2}};
  recorder.end_pass(true);
  std::vector<load_t> nothing;
  CHECK(recorder.history(nothing).ok());
  recorder.clear();
  CHECK(recorder.history(nothing).ok());
}

TEST_CASE("launches that would read or write elsewhere are refused") {
  auto const stream = cudart::stream::create();
  topology const where{{1, 1, 8, 0}};
  placement_shape const shape{2, 8, 8};
  cudart::device_tables<> tables{dispatch_tables{where, shape, rank_id{0}, dispatch_mode::even}, where, 0};
  cudart::device_recorder recorder{stream.get(), 2, 8, {1, 1}, tables.local_map(), 8};
  cudart::device_recorder other{stream.get(), 2, 9, {1, 1}};
  on_device<std::int32_t> const ids{std::vector<std::int32_t>(64, 3)};
  cudart::routing<std::int32_t> const input{ids.data(), 8, 8, nullptr};
  auto const is_refused = [](status const& result, char const* name) {
    CHECK(result.code() == errc::invalid_load);
    CHECK(result.message().find(name) != std::string::npos);
  };
  for (index_t const layer : {-1, 2, 1 << 30}) {
    auto const name = ballast::detail::concat("layer ", layer);
    is_refused(cudart::record(stream.get(), recorder.view(), layer, input), name.c_str());
    is_refused(cudart::dispatch(stream.get(), tables.view(), layer, input, ids.data()), name.c_str());
    is_refused(cudart::dispatch_and_record(stream.get(), recorder.view(), tables.view(), layer, input, ids.data()),
               name.c_str());
    is_refused(
        cudart::record_arrivals(stream.get(), recorder.view(), layer, cudart::arrivals<std::int32_t>{ids.data()}),
        name.c_str());
  }
  is_refused(cudart::dispatch_and_record(stream.get(), other.view(), tables.view(), 0, input, ids.data()), "9");
  is_refused(cudart::record_arrivals(stream.get(), other.view(), 0, cudart::arrivals<std::int32_t>{ids.data()}), "map");
  is_refused(cudart::record_arrivals(stream.get(), recorder.view(), 0, cudart::arrivals<std::int32_t>{}), "null");
  is_refused(cudart::record_arrivals(stream.get(), recorder.view(), 0,
                                     cudart::arrivals<std::int32_t>{ids.data(), cudart::count_form::cumulative}),
             "null");
  auto wrong = input;
  wrong.top_k = 0;
  is_refused(cudart::record(stream.get(), recorder.view(), 0, wrong), "0 choices");
  wrong = input;
  wrong.num_tokens = -1;
  is_refused(cudart::record(stream.get(), recorder.view(), 0, wrong), "-1 tokens");
  wrong.num_tokens = 1 << 30;
  is_refused(cudart::record(stream.get(), recorder.view(), 0, wrong), "8589934592");
  wrong = input;
  wrong.ids = nullptr;
  is_refused(cudart::record(stream.get(), recorder.view(), 0, wrong), "null");
  std::int32_t* const nowhere = nullptr;
  is_refused(cudart::dispatch(stream.get(), tables.view(), 0, input, nowhere), "null");
  // Threads would overwrite ids that others have still to read.
  auto* const wide = reinterpret_cast<std::int64_t*>(ids.data());
  is_refused(cudart::dispatch(stream.get(), tables.view(), 0, input, wide), "overlap");
  is_refused(cudart::dispatch_and_record(stream.get(), recorder.view(), tables.view(), 0, input, wide), "overlap");
  is_refused(cudart::dispatch(stream.get(), tables.view(), 0, input, ids.data() + 63), "overlap");
  is_refused(cudart::dispatch(stream.get(), tables.view(), 0, cudart::routing<std::int64_t>{wide, 4, 8, nullptr},
                              ids.data() + 32),
             "overlap");
  cudart::dispatch(stream.get(), tables.view(), 0, cudart::routing<std::int32_t>{ids.data(), 4, 8, nullptr},
                   ids.data() + 32)
      .or_throw();
  recorder.end_pass(true);
  std::vector<load_t> found(16);
  recorder.history(found).or_throw();
  CHECK(found == std::vector<load_t>(16));
}

TEST_CASE("experts beyond what a block's histogram holds are counted all the same") {
  constexpr index_t num_logical = 20'000;
  auto const stream = cudart::stream::create();
  cudart::device_recorder recorder{stream.get(), 1, num_logical, {1, 1}};
  window_recorder twin{1, num_logical, {1, 1}};
  auto const ids = make_ids<std::int32_t>(100'000, num_logical, 3);
  on_device<std::int32_t> const device_ids{ids};
  cudart::record(stream.get(), recorder.view(), 0, cudart::routing<std::int32_t>{device_ids.data(), 12'500, 8, nullptr})
      .or_throw();
  twin.record_top_k(0, ids).or_throw();
  recorder.end_pass(true);
  twin.end_pass(true);
  std::vector<load_t> found(num_logical);
  std::vector<load_t> wanted(num_logical);
  recorder.history(found).or_throw();
  twin.history(wanted).or_throw();
  CHECK(found == wanted);
}

TEST_CASE_TEMPLATE("arrivals of an all-to-all library are counted for the experts in the slots", Count, std::int32_t,
                   std::int64_t) {
  auto const stream = cudart::stream::create();
  topology const where{{4, 1, 150, 1}};
  auto const holds = random_placement({2, 500, 600}, 9);
  cudart::device_tables<> tables{dispatch_tables{where, holds.shape(), rank_id{2}, dispatch_mode::even}, where, 2};
  for (index_t layer = 0; layer < 2; ++layer) { tables.publish(where, holds, layer, stream.get()).or_throw(); }
  cudart::device_recorder recorder{stream.get(), 2, 500, {1, 1}, tables.local_map(), 150};
  window_recorder twin{2, 500, {1, 1}};

  std::vector<Count> counts(151);
  for (std::size_t i = 0; i < counts.size(); ++i) { counts[i] = static_cast<Count>(i * i % 37); }
  std::vector<Count> sums(counts);
  for (std::size_t i = 1; i < sums.size(); ++i) { sums[i] += sums[i - 1]; }
  on_device<Count> const device_counts{counts};
  on_device<Count> const device_sums{sums};
  on_device<Count> const seen{std::vector<Count>(150, Count{3})};
  auto later = counts;
  for (auto& count : later) { count += 3; }
  on_device<Count> const total{later};
  cudart::record_arrivals(stream.get(), recorder.view(), 1, cudart::arrivals<Count>{device_counts.data()}).or_throw();
  cudart::record_arrivals(stream.get(), recorder.view(), 1,
                          cudart::arrivals<Count>{device_sums.data(), cudart::count_form::prefix_sums})
      .or_throw();
  for (int again = 0; again < 2; ++again) {  // nothing arrives the second time
    cudart::record_arrivals(stream.get(), recorder.view(), 1,
                            cudart::arrivals<Count>{total.data(), cudart::count_form::cumulative, seen.data()})
        .or_throw();
  }
  for (int times = 0; times < 3; ++times) {
    twin.record_local(1, counts, 2, holds.logical_of_slot(1), where).or_throw();
  }
  recorder.end_pass(true);
  twin.end_pass(true);
  std::vector<load_t> found(2 * 500);
  std::vector<load_t> wanted(found.size());
  recorder.history(found).or_throw();
  twin.history(wanted).or_throw();
  CHECK(found == wanted);
}

TEST_CASE("a graph that was captured before the tables changed reads the new ones") {
  auto const stream = cudart::stream::create();
  topology const where{{8, 2, 36, 1}};
  placement_shape const shape{2, 256, 288};
  cudart::device_tables<> tables{dispatch_tables{where, shape, rank_id{5}, dispatch_mode::nearest}, where, 5};
  cudart::device_recorder recorder{stream.get(), 2, 256, {100, 1}};
  auto const publish = [&](std::uint64_t seed) {
    auto const holds = random_placement(shape, seed);
    for (index_t layer = 0; layer < 2; ++layer) { tables.publish(where, holds, layer, stream.get()).or_throw(); }
  };
  auto const ids = make_ids<std::int32_t>(1000 * 8, 256, 4);
  on_device<std::int32_t> const device_ids{ids};
  on_device<std::int32_t> const physical{std::vector<std::int32_t>(ids.size())};
  cudart::routing<std::int32_t> const input{device_ids.data(), 1000, 8, nullptr};
  publish(1);
  auto const graph = capture(stream.get(), [&] {
    cudart::dispatch_and_record(stream.get(), recorder.view(), tables.view(), 1, input, physical.data()).or_throw();
  });
  for (std::uint64_t move = 1; move <= 10; ++move) {
    publish(move);
    ballast_test::check_cuda(cudaGraphLaunch(graph, stream.get()), "cudaGraphLaunch");
    std::vector<std::int32_t> wanted(ids.size());
    dispatch_ids(tables.host().view(), 1, 8, std::span<std::int32_t const>{ids}, std::span{wanted});
    CHECK(physical.read() == wanted);
    recorder.end_pass(true);
  }
  window_recorder twin{2, 256, {100, 1}};
  for (int move = 1; move <= 10; ++move) {
    twin.record_top_k(1, ids).or_throw();
    twin.end_pass(true);
  }
  std::vector<load_t> found(2 * 256);
  std::vector<load_t> wanted(found.size());
  recorder.history(found).or_throw();
  twin.history(wanted).or_throw();
  CHECK(found == wanted);
  ballast_test::check_cuda(cudaGraphExecDestroy(graph), "cudaGraphExecDestroy");
}

TEST_CASE_TEMPLATE("a list of copies arrives byte for byte, whatever its sizes and alignments", Copies,
                   cudart::kernel_copies, cudart::sized_copies<>, cudart::sized_copies<2000>) {
  auto const stream = cudart::stream::create();
  std::vector<std::uint8_t> source(3'000'000);
  for (std::size_t i = 0; i < source.size(); ++i) { source[i] = static_cast<std::uint8_t>(i * i >> 7); }
  on_device<std::uint8_t> const from{source};
  std::vector<std::uint8_t> wanted(source.size());
  on_device<std::uint8_t> const to{wanted};
  Copies copies;
  std::size_t at = 0;
  for (std::size_t i = 0; i < 300; ++i) {
    auto const bytes = i % 50 == 7 ? 100'001 + i : i * 37 % 5000 / (i % 3 == 0 ? 1 : 16) * (i % 3 == 0 ? 1 : 16);
    auto const shift = i % 4 == 0 ? i % 7 : 0;
    copies.add(reinterpret_cast<std::byte*>(to.data() + at),
               reinterpret_cast<std::byte const*>(from.data() + at + shift), bytes);
    for (std::size_t b = 0; b < bytes; ++b) { wanted[at + b] = source[at + shift + b]; }
    at = (at + bytes + 31) / 16 * 16;
  }
  REQUIRE(at < source.size());
  copies.submit(stream.get()).or_throw();
  CHECK(to.read() == wanted);
}
