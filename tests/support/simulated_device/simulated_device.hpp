// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_TESTS_SUPPORT_SIMULATED_DEVICE_HPP
#define BALLAST_TESTS_SUPPORT_SIMULATED_DEVICE_HPP

#include <cuda_runtime_api.h>
#include <nccl.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

// A device runtime made of host memory and host threads; docs/simulation.md tells what it checks and what it cannot.
//
// Programs link the library in place of CUDA's runtime and NCCL. What is declared here is for tests; everything else is
// the runtime's own interface. There is one machine a process. `reset` makes another one.

namespace ballast_test::simulated {

using nanoseconds = std::int64_t;

/// What a machine is like. All its choices follow from the seed, and in virtual time nothing else has an influence.
struct machine_options {
  int num_devices = 1;
  std::uint64_t seed = 1;
  /// Time jumps to whatever happens next and one host thread runs at a time; otherwise the clock is the real one, and
  /// each stream has a thread.
  bool virtual_time = false;
  bool peer_access = true;              ///< whether devices can reach each other's memory at all
  double bytes_per_nanosecond = 50;     ///< of copies; each is up to twice as fast or as slow
  nanoseconds longest_latency = 8'000;  ///< between two operations of a stream, at most
  nanoseconds longest_pause = 30'000;   ///< of a host thread before a call of the runtime; virtual time only
  double pauses = 0.1;                  ///< how many of the calls such a pause comes before
  std::size_t device_bytes = std::size_t{8} << 30;  ///< of all devices together
  bool neighbours_touch = false;   ///< allocations follow each other, as a driver's may; else a page is between
  bool mixed_batches_wait = true;  ///< a batch of copies with host and device sources waits for its stream
  bool bug_3446335 = false;        ///< copies of pool memory fail while another device is current
};

/// Forget everything and begin anew. No thread may be inside a call. Handles and memory of the machine before are gone.
void reset(machine_options const& options);
/// The options in force.
[[nodiscard]] machine_options const& options();

// ---- host threads in virtual time ----

/// Run `body(rank)` on a thread for each rank and wait for all of them. An exception of a body is thrown on.
void run_ranks(int num_ranks, std::function<void(int)> const& body);
/// From a body: run something beside the ranks. `run_ranks` waits for it too.
void run_beside(std::function<void()> body);
/// Let time pass for the calling thread.
void sleep_for(nanoseconds duration);
/// Wait until `holds()`, which may change whenever another thread or a device does something.
/// @return false when nothing can happen any more, or `deadline` is over.
bool wait_until(std::function<bool()> const& holds, nanoseconds deadline = INT64_MAX);
/// Say that what others wait for may hold now.
void something_changed();
[[nodiscard]] nanoseconds now();

// ---- devices ----

/// Lets a stream come no further than what is on it now, until released.
class held_stream {
public:
  explicit held_stream(cudaStream_t stream);
  held_stream(held_stream const&) = delete;
  held_stream& operator=(held_stream const&) = delete;
  ~held_stream() { release(); }
  void release();

private:
  std::shared_ptr<bool> released_;
};
/// The same until a point in time.
void hold_until(cudaStream_t stream, nanoseconds time);

/// What a kernel does, as its emulation tells it: independent copies, or bytes that it reads and writes by a function.
class kernel_actions {
public:
  virtual ~kernel_actions() = default;
  virtual void copy(void* to, void const* from, std::size_t bytes) = 0;
  virtual void reads(void const* from, std::size_t bytes) = 0;
  virtual void writes(void* to, std::size_t bytes) = 0;
  /// Atomic additions, by the function too: kernels that add to the same bytes need not be in order, others need.
  virtual void adds(void* to, std::size_t bytes) = 0;
  /// Done when the kernel runs, behind its copies.
  virtual void compute(std::function<void()> work) = 0;
};
using kernel_emulation = std::function<void(kernel_actions&, dim3 blocks, dim3 threads, void** arguments)>;
/// An empty emulation takes the one there was away.
void simulate_kernel_by_address(void const* kernel, kernel_emulation emulation);

/// Let `emulation(actions, blocks, threads, arguments...)` stand for a kernel, however it is launched.
template <class... Arguments, class Emulation>
void simulate_kernel(void (*kernel)(Arguments...), Emulation emulation) {
  simulate_kernel_by_address(reinterpret_cast<void const*>(kernel), [emulation](kernel_actions& actions, dim3 blocks,
                                                                                dim3 threads, void** arguments) {
    [&emulation, &actions, &blocks, &threads, &arguments]<std::size_t... I>(std::index_sequence<I...>) {
      emulation(actions, blocks, threads, *static_cast<std::remove_cvref_t<Arguments> const*>(arguments[I])...);
    }(std::index_sequence_for<Arguments...>{});
  });
}

// ---- faults ----

/// Let a call of the runtime fail. Counted on the calling thread.
/// @param call  its name, as "cudaMallocAsync". @param skip  so many calls of that name succeed first.
void fail_next(std::string_view call, cudaError_t error, int skip = 0);
void fail_next_nccl(std::string_view call, ncclResult_t error, int skip = 0);
/// How many planned failures of the calling thread have not come to pass; they are forgotten.
int forget_failures();
/// While it lives, calls of this thread do not fail by order, and do not count for the orders.
class failures_suspended {
public:
  failures_suspended();
  failures_suspended(failures_suspended const&) = delete;
  failures_suspended& operator=(failures_suspended const&) = delete;
  ~failures_suspended();
};
/// While it lives, this one is the only failure of this thread, also inside of `failures_suspended`.
class only_failure {
public:
  only_failure(std::string_view call, cudaError_t error, int skip = 0);
  only_failure(only_failure const&) = delete;
  only_failure& operator=(only_failure const&) = delete;
  ~only_failure();

private:
  struct others;
  std::unique_ptr<others> others_;
};
/// Planned failures of the calling thread that have not come to pass.
[[nodiscard]] int num_planned_failures();
/// Communicators that a rank of theirs has and that are not aborted or destroyed.
[[nodiscard]] std::vector<ncclComm_t> living_communicators(int rank);
/// Least and most thread blocks that a communicator was made with; 0 where that was left to NCCL.
struct thread_blocks {
  int least = 0;
  int most = 0;
};
[[nodiscard]] thread_blocks blocks_of(ncclComm_t communicator);
/// Let a communicator tell an error that came from its own threads.
void raise_async_error(ncclComm_t communicator, ncclResult_t error);
/// NCCL must write nothing there from now on: the variable is gone.
void declare_dead(void const* address, std::size_t bytes);

// ---- what was seen ----

/// Something that the rules forbid, or that no program should do.
struct violation {
  std::string rule;  ///< a short name: "order", "use after free", "event of another device"
  std::string text;
  nanoseconds time = 0;
};
[[nodiscard]] std::vector<violation> violations();
/// Take them off the list.
[[nodiscard]] std::vector<violation> take_violations();
[[nodiscard]] std::string to_text(std::vector<violation> const& list);

/// Calls of the runtime by that name so far, failed ones included.
[[nodiscard]] std::int64_t num_calls(std::string_view call);
/// The longest that a call by that name made its thread wait for a device.
[[nodiscard]] nanoseconds longest_wait(std::string_view call);
/// Calls that waited for a device since the last `reset` or `forget_waits`, each name once.
[[nodiscard]] std::vector<std::string> calls_that_waited();
void forget_waits();
/// A digest of everything that happened since `reset`, in order; equal for equal seeds in virtual time.
[[nodiscard]] std::uint64_t trace_digest();

}  // namespace ballast_test::simulated

#endif
