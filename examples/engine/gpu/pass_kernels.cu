// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "check.hpp"
#include "expert_product.cuh"
#include "limits.hpp"
#include "pass_kernels.hpp"

#include <cuda_runtime.h>

#include <algorithm>

namespace engine {

namespace {

constexpr int small_tile = 64;
constexpr int large_tile = 128;

__host__ __device__ inline std::uint64_t mix(std::uint64_t x) {
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9U;
  x = (x ^ x >> 27) * 0x94d049bb133111ebU;
  return x ^ x >> 31;
}
/// Of mean 0 and variance 1, close to normally distributed: a sum of eight bytes.
__device__ inline float draw(std::uint64_t seed, std::uint64_t number) {
  auto const bits = mix(mix(seed) + number * 0x9e3779b97f4a7c15U);
  int sum = 0;
  for (int i = 0; i < 64; i += 8) { sum += static_cast<int>(bits >> i & 0xff); }
  return (static_cast<float>(sum) - 1020.0F) * (1.0F / 209.0F);
}

__global__ void fill_kernel(std::uint64_t seed, float scale, bf16* out, std::size_t count) {
  auto const step = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  for (auto i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    out[i] = __float2bfloat16(scale * draw(seed, i));
  }
}

// ---- between host and device ----

__global__ void fetch_kernel(pass_view const v, pass_letters const letters, int num_cells) {
  auto const i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  auto const count = *letters.num_tokens;
  if (i == 0) { *v.num_tokens = count; }
  if (i < count) { v.tokens[i] = letters.tokens[i]; }
  if (v.chosen == nullptr) { return; }
  for (auto cell = i; cell < num_cells; cell += static_cast<int>(gridDim.x * blockDim.x)) { v.chosen[cell] = 0; }
}

__global__ void answer_kernel(pass_view const v, pass_letters const letters, int num_layers) {
  auto const i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i == 0) { *letters.failed = *v.failed; }
  if (i < num_layers) { letters.work[i] = v.work[i]; }
  if (i < *v.num_tokens) { letters.outputs[i] = v.outputs[i]; }
  if (v.chosen == nullptr) { return; }
  for (auto cell = i; cell < num_layers * v.num_experts; cell += static_cast<int>(gridDim.x * blockDim.x)) {
    letters.chosen[cell] = v.chosen[cell];
  }
}

// ---- rows of a rank's own tokens ----

__global__ void embed_kernel(pass_view const v) {
  auto const token = static_cast<int>(blockIdx.x);
  if (token >= *v.num_tokens) { return; }
  auto const seed = v.tokens[token].seed;
  for (auto i = static_cast<int>(threadIdx.x); i < v.hidden; i += static_cast<int>(blockDim.x)) {
    v.rows[static_cast<std::size_t>(token) * v.hidden + i] = draw(seed, static_cast<std::uint64_t>(i));
  }
}

/// The sum over a block of 256 threads, in one order.
__device__ float sum_of_block(float value) {
  __shared__ float parts[8];
  for (int step = 16; step > 0; step /= 2) { value += __shfl_xor_sync(0xffffffffU, value, step); }
  if (threadIdx.x % 32 == 0) { parts[threadIdx.x / 32] = value; }
  __syncthreads();
  float sum = 0;
  for (int i = 0; i < 8; ++i) { sum += parts[i]; }
  __syncthreads();
  return sum;
}

__global__ void normalise_kernel(pass_view const v) {
  auto const token = static_cast<int>(blockIdx.x);
  if (token >= *v.num_tokens) { return; }
  auto const first = static_cast<std::size_t>(token) * v.hidden;
  float sum = 0;
  for (auto i = static_cast<int>(threadIdx.x); i < v.hidden; i += 256) { sum += v.rows[first + i] * v.rows[first + i]; }
  auto const scale = rsqrtf(sum_of_block(sum) / static_cast<float>(v.hidden) + 1e-6F);
  for (auto i = static_cast<int>(threadIdx.x); i < v.hidden; i += 256) {
    v.normalised[first + i] = __float2bfloat16(v.rows[first + i] * scale);
  }
}

__global__ void keep_kernel(pass_view const v, bf16* cache) {
  auto const token = static_cast<int>(blockIdx.x);
  if (token >= *v.num_tokens) { return; }
  auto const at = v.tokens[token];
  auto const* const from = v.projected + static_cast<std::size_t>(token) * 3 * attention_width + attention_width;
  auto* const to = cache + static_cast<std::size_t>(at.cache_row + at.position) * 2 * attention_width;
  to[threadIdx.x] = from[threadIdx.x];
}

/// A block of 128 threads for each token: each warp takes every fourth position, then each thread a number.
__global__ void attend_kernel(pass_view const v, bf16 const* cache) {
  extern __shared__ float scores[];
  __shared__ float parts[4];
  auto const token = static_cast<int>(blockIdx.x);
  if (token >= *v.num_tokens) { return; }
  auto const at = v.tokens[token];
  auto const count = at.position + 1;
  auto const lane = static_cast<int>(threadIdx.x) % 32;
  auto const warp = static_cast<int>(threadIdx.x) / 32;
  auto const* const query = v.projected + static_cast<std::size_t>(token) * 3 * attention_width;
  auto const* const kept = cache + static_cast<std::size_t>(at.cache_row) * 2 * attention_width;
  float q[4];
  for (int i = 0; i < 4; ++i) { q[i] = __bfloat162float(query[4 * lane + i]); }
  float most = -INFINITY;
  for (int position = warp; position < count; position += 4) {
    auto const* const key = kept + static_cast<std::size_t>(position) * 2 * attention_width + 4 * lane;
    float sum = 0;
    for (int i = 0; i < 4; ++i) { sum = fmaf(q[i], __bfloat162float(key[i]), sum); }
    for (int step = 16; step > 0; step /= 2) { sum += __shfl_xor_sync(0xffffffffU, sum, step); }
    sum *= 0.088388348F;  // 1 / sqrt(attention_width)
    if (lane == 0) { scores[position] = sum; }
    most = fmaxf(most, sum);
  }
  if (lane == 0) { parts[warp] = most; }
  __syncthreads();
  most = fmaxf(fmaxf(parts[0], parts[1]), fmaxf(parts[2], parts[3]));
  float total = 0;
  float sum = 0;
  auto const* const value = kept + attention_width + threadIdx.x;
  for (int position = 0; position < count; ++position) {
    auto const weight = __expf(scores[position] - most);
    total += weight;
    sum = fmaf(weight, __bfloat162float(value[static_cast<std::size_t>(position) * 2 * attention_width]), sum);
  }
  v.attended[static_cast<std::size_t>(token) * attention_width + threadIdx.x] = __float2bfloat16(sum / total);
}

/// A warp for each token.
__global__ void choose_kernel(pass_view const v, float const* bias) {
  constexpr int most_of_lane = most_experts / 32;
  auto const token = static_cast<int>((blockIdx.x * blockDim.x + threadIdx.x) / 32);
  auto const lane = static_cast<int>(threadIdx.x) % 32;
  if (token >= *v.num_tokens) { return; }
  auto const* const logits = v.logits + static_cast<std::size_t>(token) * v.num_experts;
  auto const* const shift = bias + static_cast<std::size_t>(v.tokens[token].kind) * v.num_experts;
  float own[most_of_lane];
#pragma unroll
  for (int i = 0; i < most_of_lane; ++i) {
    auto const expert = 32 * i + lane;
    own[i] = expert < v.num_experts ? logits[expert] + shift[expert] : -INFINITY;
  }
  auto const first = static_cast<std::size_t>(token) * (v.top_k + 1);
  float largest = 0;
  float total = 0;
  float mine = 0;
  for (int choice = 0; choice < v.top_k; ++choice) {
    float best = -INFINITY;
    int id = v.num_experts;
#pragma unroll
    for (int i = 0; i < most_of_lane; ++i) {
      if (own[i] > best) {
        best = own[i];
        id = 32 * i + lane;
      }
    }
    for (int step = 16; step > 0; step /= 2) {
      auto const other = __shfl_xor_sync(0xffffffffU, best, step);
      auto const other_id = __shfl_xor_sync(0xffffffffU, id, step);
      if (other > best || (other == best && other_id < id)) {
        best = other;
        id = other_id;
      }
    }
#pragma unroll
    for (int i = 0; i < most_of_lane; ++i) {
      if (32 * i + lane == id) { own[i] = -INFINITY; }
    }
    if (choice == 0) { largest = best; }
    auto const weight = __expf(best - largest);
    total += weight;
    if (lane == choice) { mine = weight; }
    if (lane == 0) { v.logical[first + choice] = id; }
    if (v.chosen != nullptr && lane == 0) { atomicAdd(v.chosen + id, 1ULL); }
  }
  if (lane < v.top_k) { v.weights[first + lane] = mine / total; }
  if (lane == 0) {
    v.logical[first + v.top_k] = v.num_experts;
    v.weights[first + v.top_k] = 1;
  }
}

__global__ void perfect_kernel(pass_view const v, bool keeps_experts) {
  auto const i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  auto const choices = v.top_k + 1;
  if (i >= *v.num_tokens * choices) { return; }
  auto const slots = v.ids_a_rank - v.num_reserved;
  auto const choice = i % choices;
  if (choice == v.top_k) {
    v.physical[i] = v.rank * v.ids_a_rank + slots;
    return;
  }
  auto const drawn = v.even[i / choices * v.top_k + choice];
  v.physical[i] = keeps_experts ? drawn / v.ids_a_rank * v.ids_a_rank + v.logical[i] % slots : drawn;
}

__global__ void output_kernel(pass_view const v) {
  __shared__ unsigned long long sum;
  auto const token = static_cast<int>(blockIdx.x);
  if (token >= *v.num_tokens) { return; }
  if (threadIdx.x == 0) { sum = 0; }
  __syncthreads();
  std::uint64_t own = 0;
  for (auto i = static_cast<int>(threadIdx.x); i < v.hidden; i += 256) {
    auto const bits = __float_as_uint(v.rows[static_cast<std::size_t>(token) * v.hidden + i]);
    own += mix((static_cast<std::uint64_t>(i) + 1) << 32 | bits);
  }
  atomicAdd(&sum, static_cast<unsigned long long>(own));
  __syncthreads();
  if (threadIdx.x == 0) { v.outputs[token] = mix(sum); }
}

// ---- between the ranks ----

__device__ inline std::uint32_t load_acquire(std::uint32_t const* from) {
  std::uint32_t value = 0;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}
__device__ inline void store_release(std::uint32_t* to, std::uint32_t value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}
__device__ inline std::uint64_t device_clock() {
  std::uint64_t value = 0;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(value));
  return value;
}

__device__ void note(pass_view const& v, trouble what, std::uint32_t about) {
  atomicCAS(v.failed, 0U, static_cast<std::uint32_t>(what) << 16 | about);
}

/// Wait until all live ranks have come to the layer at hand, by all threads of a block. Once a rank is late nobody
/// waits any more: what comes out is not used.
__device__ void wait_for_all(pass_view const& v, std::uint32_t const* words) {
  auto const layer = __ldcg(v.epoch);
  if (static_cast<int>(threadIdx.x) < v.num_ranks && v.live[threadIdx.x] != 0) {
    auto const* const word = words + threadIdx.x;
    auto const begun = device_clock();
    while (static_cast<std::int32_t>(load_acquire(word) - layer) < 0) {
      if (__ldcg(v.failed) != 0) { break; }
      if (static_cast<std::int64_t>(device_clock() - begun) > static_cast<std::int64_t>(v.timeout_ns)) {
        note(v, trouble::late, threadIdx.x);
        break;
      }
    }
  }
  __syncthreads();
}
/// Whether this block is the last of its kernel that comes here; what the others wrote is visible then.
__device__ bool is_last_block(std::uint32_t* done) {
  __shared__ bool last;
  __threadfence_system();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(done, 1U) == gridDim.x - 1;
    if (last) { *done = 0; }
  }
  __syncthreads();
  if (last) { __threadfence_system(); }
  return last;
}
/// Tell all ranks, by one block. @param word  which of a mailbox's words
__device__ void tell_all(pass_view const& v, std::uint32_t* mailbox::* word, std::uint32_t layer) {
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < v.num_ranks && v.live[threadIdx.x] != 0) {
    store_release(v.peers[threadIdx.x].*word + v.rank, layer);
  }
}

__global__ void count_kernel(pass_view const v, std::int32_t const* physical) {
  extern __shared__ std::uint32_t own[];
  for (auto i = static_cast<int>(threadIdx.x); i < v.num_ids; i += static_cast<int>(blockDim.x)) { own[i] = 0; }
  __syncthreads();
  auto const count = *v.num_tokens * (v.top_k + 1);
  auto const step = static_cast<int>(gridDim.x * blockDim.x);
  for (auto i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < count; i += step) {
    auto const id = physical[i];
    if (id >= 0 && id < v.num_ids) {
      atomicAdd(own + id, 1U);
    } else {
      note(v, trouble::missing, static_cast<std::uint32_t>(v.logical[i]));
    }
  }
  __syncthreads();
  for (auto i = static_cast<int>(threadIdx.x); i < v.num_ids; i += static_cast<int>(blockDim.x)) {
    if (own[i] != 0) { atomicAdd(v.counts + i, own[i]); }
  }
  if (!is_last_block(v.blocks_done)) { return; }
  for (auto i = static_cast<int>(threadIdx.x); i < v.num_ids; i += static_cast<int>(blockDim.x)) {
    auto const rows = __ldcg(v.counts + i);
    for (int rank = 0; rank < v.num_ranks; ++rank) {
      if (v.live[rank] != 0) { v.peers[rank].counts[v.rank * v.num_ids + i] = rows; }
    }
    v.counts[i] = 0;
    v.cursors[i] = 0;
  }
  __threadfence_system();
  auto const layer = __ldcg(v.epoch) + 1;
  tell_all(v, &mailbox::has_counted, layer);
  __syncthreads();
  if (threadIdx.x == 0) { *v.epoch = layer; }
}

/// A warp for each choice of each token writes its row where it is computed.
__global__ void send_kernel(pass_view const v, std::int32_t const* physical, int layer) {
  extern __shared__ std::uint32_t base[];  // [physical ids] first row of this rank, then [physical ids] rows of all
  auto* const rows = base + v.num_ids;
  auto const& mine = v.peers[v.rank];
  wait_for_all(v, mine.has_counted);
  for (auto i = static_cast<int>(threadIdx.x); i < v.num_ids; i += static_cast<int>(blockDim.x)) {
    std::uint32_t before = 0;
    std::uint32_t sum = 0;
    for (int rank = 0; rank < v.num_ranks; ++rank) {
      auto const theirs = __ldcg(mine.counts + rank * v.num_ids + i);
      if (rank < v.rank) { before += theirs; }
      sum += theirs;
    }
    base[i] = before;
    rows[i] = sum;
  }
  __syncthreads();
  for (auto rank = static_cast<int>(threadIdx.x); rank < v.num_ranks; rank += static_cast<int>(blockDim.x)) {
    std::uint32_t begin = 0;
    for (int slot = 0; slot < v.ids_a_rank; ++slot) {
      auto const id = rank * v.ids_a_rank + slot;
      if (rank == v.rank && blockIdx.x == 0) {
        v.begins[slot] = begin;
        if (slot == v.ids_a_rank - v.num_reserved) { v.work[layer] = begin; }
      }
      base[id] += begin;
      begin += rows[id];
    }
    if (rank == v.rank && blockIdx.x == 0) { v.begins[v.ids_a_rank] = begin; }
  }
  __syncthreads();
  auto const lane = static_cast<int>(threadIdx.x) % 32;
  auto const choices = v.top_k + 1;
  auto const count = __ldcg(v.failed) == 0 ? *v.num_tokens * choices : 0;
  auto const chunks = v.hidden / 8;
  for (auto i = static_cast<int>((blockIdx.x * blockDim.x + threadIdx.x) / 32); i < count;
       i += static_cast<int>(gridDim.x * blockDim.x / 32)) {
    auto const id = physical[i];
    std::uint32_t place = 0;
    if (lane == 0) { place = base[id] + atomicAdd(v.cursors + id, 1U); }
    place = __shfl_sync(0xffffffffU, place, 0);
    if (lane == 0) { v.places[i] = place; }
    auto const* const from =
        reinterpret_cast<uint4 const*>(v.normalised + static_cast<std::size_t>(i / choices) * v.hidden);
    auto* const to =
        reinterpret_cast<uint4*>(v.peers[id / v.ids_a_rank].arrived + static_cast<std::size_t>(place) * v.hidden);
    for (int at = lane; at < chunks; at += 32) { to[at] = from[at]; }
  }
  if (is_last_block(v.blocks_done + 1)) { tell_all(v, &mailbox::has_sent, __ldcg(v.epoch)); }
}

template <int tile_rows>
__global__ void __launch_bounds__(product::threads, 2) gate_up_kernel(pass_view const v, bf16 const* weights) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ std::uint32_t tiles[most_slots + 1];
  wait_for_all(v, v.peers[v.rank].has_sent);
  if (__ldcg(v.failed) != 0) { return; }
  product::arguments const a{v.begins, v.ids_a_rank, v.peers[v.rank].arrived, weights, v.inner, 2 * v.intermediate,
                             v.hidden, v.tiles_taken};
  product::compute_tiles<tile_rows, product::swiglu>(a, reinterpret_cast<bf16*>(shared), tiles);
}

template <int tile_rows>
__global__ void __launch_bounds__(product::threads, 2) down_kernel(pass_view const v, bf16 const* weights) {
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ std::uint32_t tiles[most_slots + 1];
  if (__ldcg(v.failed) == 0) {
    product::arguments const a{v.begins, v.ids_a_rank,   v.inner,          weights, v.peers[v.rank].results,
                               v.hidden, v.intermediate, v.tiles_taken + 1};
    product::compute_tiles<tile_rows, product::plain>(a, reinterpret_cast<bf16*>(shared), tiles);
  }
  if (is_last_block(v.blocks_done + 2)) {
    if (threadIdx.x < 2) { v.tiles_taken[threadIdx.x] = 0; }
    tell_all(v, &mailbox::has_computed, __ldcg(v.epoch));
  }
}

__global__ void combine_kernel(pass_view const v, std::int32_t const* physical) {
  wait_for_all(v, v.peers[v.rank].has_computed);
  auto const count = __ldcg(v.failed) == 0 ? *v.num_tokens : 0;
  auto const choices = v.top_k + 1;
  auto const pairs = v.hidden / 2;
  for (auto token = static_cast<int>(blockIdx.x); token < count; token += static_cast<int>(gridDim.x)) {
    auto* const row = reinterpret_cast<float2*>(v.rows + static_cast<std::size_t>(token) * v.hidden);
    for (auto at = static_cast<int>(threadIdx.x); at < pairs; at += static_cast<int>(blockDim.x)) {
      auto sum = row[at];
      for (int choice = 0; choice < choices; ++choice) {
        auto const i = token * choices + choice;
        auto const* const from = reinterpret_cast<__nv_bfloat162 const*>(
            v.peers[physical[i] / v.ids_a_rank].results + static_cast<std::size_t>(v.places[i]) * v.hidden);
        auto const value = __bfloat1622float2(__ldcg(from + at));
        sum.x = fmaf(v.weights[i], value.x, sum.x);
        sum.y = fmaf(v.weights[i], value.y, sum.y);
      }
      row[at] = sum;
    }
  }
}

template <class Kernel>
void give_shared_memory(Kernel* kernel, int bytes) {
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "cudaFuncSetAttribute");
}
/// Now, not by the first launch, while other ranks wait.
template <class Kernel>
void load(Kernel* kernel) {
  cudaFuncAttributes attributes{};
  check(cudaFuncGetAttributes(&attributes, kernel), "cudaFuncGetAttributes");
}
void check_launch(char const* kernel) { check(cudaGetLastError(), kernel); }
[[nodiscard]] unsigned blocks(int count) { return static_cast<unsigned>(std::max(count, 1)); }

}  // namespace

void prepare_kernels() {
  load(fill_kernel);
  load(fetch_kernel);
  load(answer_kernel);
  load(embed_kernel);
  load(normalise_kernel);
  load(keep_kernel);
  load(attend_kernel);
  load(choose_kernel);
  load(perfect_kernel);
  load(output_kernel);
  load(count_kernel);
  load(send_kernel);
  load(combine_kernel);
  give_shared_memory(gate_up_kernel<small_tile>, product::shared_bytes(small_tile));
  give_shared_memory(gate_up_kernel<large_tile>, product::shared_bytes(large_tile));
  give_shared_memory(down_kernel<small_tile>, product::shared_bytes(small_tile));
  give_shared_memory(down_kernel<large_tile>, product::shared_bytes(large_tile));
}

void fill_weights(cudaStream_t stream, std::uint64_t seed, int fan_in, float gain, bf16* out, std::size_t count) {
  fill_kernel<<<1024, 256, 0, stream>>>(seed, gain / std::sqrt(static_cast<float>(fan_in)), out, count);
  check_launch("fill_kernel");
}

void enqueue_fetch(pass_stream const& on, pass_view const& v, pass_letters const& letters, int num_layers) {
  fetch_kernel<<<blocks((on.padded_tokens + 255) / 256), 256, 0, on.stream>>>(v, letters, num_layers * v.num_experts);
  check_launch("fetch_kernel");
}

void enqueue_answer(pass_stream const& on, pass_view const& v, pass_letters const& letters, int num_layers) {
  auto const threads = std::max(on.padded_tokens, num_layers);
  answer_kernel<<<blocks((threads + 255) / 256), 256, 0, on.stream>>>(v, letters, num_layers);
  check_launch("answer_kernel");
}

void enqueue_embed(pass_stream const& on, pass_view const& v) {
  embed_kernel<<<blocks(on.padded_tokens), 256, 0, on.stream>>>(v);
  check_launch("embed_kernel");
}

void enqueue_normalise(pass_stream const& on, pass_view const& v) {
  normalise_kernel<<<blocks(on.padded_tokens), 256, 0, on.stream>>>(v);
  check_launch("normalise_kernel");
}

void enqueue_attend(pass_stream const& on, pass_view const& v, bf16* cache, int longest) {
  keep_kernel<<<blocks(on.padded_tokens), 2 * attention_width, 0, on.stream>>>(v, cache);
  check_launch("keep_kernel");
  attend_kernel<<<blocks(on.padded_tokens), attention_width, static_cast<std::size_t>(longest) * sizeof(float),
                  on.stream>>>(v, cache);
  check_launch("attend_kernel");
}

void enqueue_choose(pass_stream const& on, pass_view const& v, float const* bias) {
  choose_kernel<<<blocks((on.padded_tokens + 3) / 4), 128, 0, on.stream>>>(v, bias);
  check_launch("choose_kernel");
}

void enqueue_perfect_routing(pass_stream const& on, pass_view const& v, bool keeps_experts) {
  perfect_kernel<<<blocks((on.padded_tokens * (v.top_k + 1) + 255) / 256), 256, 0, on.stream>>>(v, keeps_experts);
  check_launch("perfect_kernel");
}

void enqueue_exchange(pass_stream const& on, pass_view const& v, std::int32_t const* physical, int layer) {
  auto const ids = static_cast<std::size_t>(v.num_ids) * sizeof(std::uint32_t);
  auto const choices = on.padded_tokens * (v.top_k + 1);
  count_kernel<<<blocks(std::min(on.multiprocessors, (choices + 511) / 512)), 512, ids, on.stream>>>(v, physical);
  check_launch("count_kernel");
  send_kernel<<<blocks(std::min(2 * on.multiprocessors, (choices + 7) / 8)), 512, 2 * ids, on.stream>>>(v, physical,
                                                                                                        layer);
  check_launch("send_kernel");
}

void enqueue_experts(pass_stream const& on, pass_view const& v, bf16 const* gate_up, bf16 const* down) {
  auto const count = blocks(2 * on.multiprocessors);
  // Few rows an expert: half of a large tile would be empty.
  if (on.padded_tokens <= 512) {
    auto const bytes = static_cast<std::size_t>(product::shared_bytes(small_tile));
    gate_up_kernel<small_tile><<<count, product::threads, bytes, on.stream>>>(v, gate_up);
    check_launch("gate_up_kernel");
    down_kernel<small_tile><<<count, product::threads, bytes, on.stream>>>(v, down);
  } else {
    auto const bytes = static_cast<std::size_t>(product::shared_bytes(large_tile));
    gate_up_kernel<large_tile><<<count, product::threads, bytes, on.stream>>>(v, gate_up);
    check_launch("gate_up_kernel");
    down_kernel<large_tile><<<count, product::threads, bytes, on.stream>>>(v, down);
  }
  check_launch("down_kernel");
}

void enqueue_combine(pass_stream const& on, pass_view const& v, std::int32_t const* physical) {
  combine_kernel<<<blocks(std::min(8 * on.multiprocessors, on.padded_tokens)), 256, 0, on.stream>>>(v, physical);
  check_launch("combine_kernel");
}

void enqueue_outputs(pass_stream const& on, pass_view const& v) {
  output_kernel<<<blocks(on.padded_tokens), 256, 0, on.stream>>>(v);
  check_launch("output_kernel");
}

}  // namespace engine
