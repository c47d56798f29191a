// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_GPU_EXPERT_PRODUCT_CUH
#define BALLAST_EXAMPLES_ENGINE_GPU_EXPERT_PRODUCT_CUH

#include "limits.hpp"
#include "rows.hpp"

#include <cuda_bf16.h>

#include <cstdint>

// A product for each slot of a rank, with as many rows as the router sent there: only the device knows how many. Tensor
// cores, tiles of `tile_rows` x 128; every number of a row is summed over k in the same order whatever stands beside
// it, and whatever the tile's height, so a row does not depend on the batch.

namespace engine {

namespace product {

inline constexpr int columns = tile_columns;
inline constexpr int depth = tile_depth;  // of a stage
inline constexpr int stages = 3;
inline constexpr int threads = 256;
inline constexpr int chunk = 8;  // numbers in 16 bytes
inline constexpr int chunks = depth / chunk;

[[nodiscard]] constexpr int shared_bytes(int tile_rows) {
  return stages * (tile_rows + columns) * depth * static_cast<int>(sizeof(bf16));
}

__device__ inline std::uint32_t shared_address(void const* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}
/// Copy 16 bytes, or clear them.
__device__ inline void copy_async(std::uint32_t to, void const* from, bool valid) {
  int const bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes));
}
__device__ inline void load_matrices(std::uint32_t (&to)[4], std::uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from));
}
__device__ inline void multiply_add(float (&c)[4], std::uint32_t const (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
/// Where a row's chunk stands in a stage: turned, so that eight rows' chunks lie in eight banks.
__device__ inline int place_of(int row, int at) { return row * depth + ((at ^ (row & 7)) * chunk); }

/// What is done with sums of neighbouring columns.
/// Gate and up columns take turns by eight, so a thread holds both of a number.
struct swiglu {
  template <int blocks>
  __device__ static void write(float const (&sums)[blocks][4], int half, bf16* row, int first_column, int lane) {
    for (int j = 0; j < blocks; j += 2) {
      float value[2];
      for (int i = 0; i < 2; ++i) {
        float const gate = sums[j][2 * half + i];
        value[i] = gate / (1.0F + __expf(-gate)) * sums[j + 1][2 * half + i];
      }
      auto const column = (first_column + 8 * j) / 2 + lane % 4 * 2;
      *reinterpret_cast<__nv_bfloat162*>(row + column) = __floats2bfloat162_rn(value[0], value[1]);
    }
  }
  static constexpr int width_divisor = 2;
};
struct plain {
  template <int blocks>
  __device__ static void write(float const (&sums)[blocks][4], int half, bf16* row, int first_column, int lane) {
    for (int j = 0; j < blocks; ++j) {
      auto const column = first_column + 8 * j + lane % 4 * 2;
      *reinterpret_cast<__nv_bfloat162*>(row + column) =
          __floats2bfloat162_rn(sums[j][2 * half], sums[j][2 * half + 1]);
    }
  }
  static constexpr int width_divisor = 1;
};

/// out[rows, N / divisor] = epilogue(in[rows, K] * weights[slot][N, K]) for the rows of each slot.
struct arguments {
  std::uint32_t const* begins = nullptr;  ///< [slots + 1] rows
  int num_slots = 0;
  bf16 const* in = nullptr;
  bf16 const* weights = nullptr;  ///< [slots, N, K]
  bf16* out = nullptr;
  int width = 0;                   ///< N, a multiple of 128
  int depth = 0;                   ///< K, a multiple of 64
  std::uint32_t* taken = nullptr;  ///< tiles that blocks have taken beyond their first; 0 before
};

/// One tile, by all threads of the block. Rows go to the warps in blocks of 16, alike to both halves of them; in a tile
/// that is not full, blocks behind the slot's last row are not multiplied.
template <int tile_rows, bool is_full, class Epilogue>
__device__ void compute_tile(arguments const& a, bf16* shared, int slot, std::uint32_t first_row, std::uint32_t end_row,
                             int first_column) {
  constexpr int row_blocks = tile_rows / 32;  // of 16, for each of 2 x 4 warps
  constexpr int column_blocks = 4;            // of eight
  auto const thread = static_cast<int>(threadIdx.x);
  auto const lane = thread % 32;
  auto const warp = thread / 32;
  auto const warp_row = warp / 4 * 16;
  auto const row_of_block = [warp_row](int i) { return warp_row + 32 * i; };
  auto const used_blocks = is_full ? row_blocks : (static_cast<int>(end_row - first_row) - warp_row + 31) / 32;
  auto const warp_column = warp % 4 * 32;
  auto const stage_size = (tile_rows + columns) * depth;
  auto const* const weights = a.weights + (static_cast<std::size_t>(slot) * a.width + first_column) * a.depth;

  auto const load_stage = [&](int step) {
    auto* const rows = shared + step % stages * stage_size;
    auto* const cols = rows + tile_rows * depth;
    for (int i = thread; i < tile_rows * chunks; i += threads) {
      auto const row = i / chunks;
      auto const at = i % chunks;
      bool const valid = first_row + row < end_row;
      auto const* const from =
          a.in + static_cast<std::size_t>(valid ? first_row + row : first_row) * a.depth + step * depth + at * chunk;
      copy_async(shared_address(rows + place_of(row, at)), from, valid);
    }
    for (int i = thread; i < columns * chunks; i += threads) {
      auto const row = i / chunks;
      auto const at = i % chunks;
      copy_async(shared_address(cols + place_of(row, at)),
                 weights + static_cast<std::size_t>(row) * a.depth + step * depth + at * chunk, true);
    }
  };

  float sums[row_blocks][column_blocks][4] = {};
  auto const steps = a.depth / depth;
  for (int step = 0; step < stages - 1; ++step) {
    if (step < steps) { load_stage(step); }
    asm volatile("cp.async.commit_group;");
  }
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    asm volatile("cp.async.wait_group %0;" ::"n"(stages - 2));
    __syncthreads();
    if (step + stages - 1 < steps) { load_stage(step + stages - 1); }
    asm volatile("cp.async.commit_group;");
    auto const* const rows = shared + step % stages * stage_size;
    auto const* const cols = rows + tile_rows * depth;
#pragma unroll
    for (int k = 0; k < depth / 16; ++k) {
      std::uint32_t of_rows[row_blocks][4];
      std::uint32_t of_columns[2][4];
#pragma unroll
      for (int i = 0; i < row_blocks; ++i) {
        if (i >= used_blocks) { continue; }
        load_matrices(of_rows[i], shared_address(rows + place_of(row_of_block(i) + lane % 16, 2 * k + lane / 16)));
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        auto const row = warp_column + 16 * j + lane / 16 * 8 + lane % 8;
        load_matrices(of_columns[j], shared_address(cols + place_of(row, 2 * k + lane / 8 % 2)));
      }
#pragma unroll
      for (int i = 0; i < row_blocks; ++i) {
        if (i >= used_blocks) { continue; }
#pragma unroll
        for (int j = 0; j < column_blocks; ++j) {
          multiply_add(sums[i][j], of_rows[i], of_columns[j / 2][j % 2 * 2], of_columns[j / 2][j % 2 * 2 + 1]);
        }
      }
    }
  }
  asm volatile("cp.async.wait_group 0;");
#pragma unroll
  for (int i = 0; i < row_blocks; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      auto const row = first_row + row_of_block(i) + 8 * half + lane / 4;
      if (row >= end_row) { continue; }
      auto* const out = a.out + static_cast<std::size_t>(row) * (a.width / Epilogue::width_divisor);
      Epilogue::write(sums[i], half, out, first_column + warp_column, lane);
    }
  }
  __syncthreads();  // the stages are free
}

/// Tiles in turn, by whichever block is free, as those that are not full take less: rows of one column of tiles after
/// each other, so that weights are read from memory once. `tiles` [slots + 1] is room in shared memory.
template <int tile_rows, class Epilogue>
__device__ void compute_tiles(arguments const& a, bf16* shared, std::uint32_t* tiles) {
  auto const in_row = static_cast<std::uint32_t>(a.width / columns);
  if (threadIdx.x < 32) {
    std::uint32_t before = 0;
    for (int first = 0; first < a.num_slots; first += 32) {
      auto const slot = first + static_cast<int>(threadIdx.x);
      std::uint32_t own = 0;
      if (slot < a.num_slots) {
        own = (__ldcg(a.begins + slot + 1) - __ldcg(a.begins + slot) + tile_rows - 1) / tile_rows * in_row;
      }
      auto sum = own;
      for (int step = 1; step < 32; step *= 2) {
        auto const other = __shfl_up_sync(0xffffffffU, sum, step);
        if (static_cast<int>(threadIdx.x) >= step) { sum += other; }
      }
      if (slot < a.num_slots) { tiles[slot] = before + sum - own; }
      before += __shfl_sync(0xffffffffU, sum, 31);
    }
    if (threadIdx.x == 0) { tiles[a.num_slots] = before; }
  }
  __syncthreads();
  auto const count = tiles[a.num_slots];
  __shared__ std::uint32_t next;
  int slot = 0;
  for (auto tile = blockIdx.x; tile < count; tile = next) {
    // Asked for now, and there when this tile is done.
    std::uint32_t taken = 0;
    if (threadIdx.x == 0) { taken = atomicAdd(a.taken, 1U); }
    while (tiles[slot + 1] <= tile) { ++slot; }
    auto const begin = __ldcg(a.begins + slot);
    auto const end = __ldcg(a.begins + slot + 1);
    auto const rows_of_tiles = (end - begin + tile_rows - 1) / tile_rows;
    auto const own = tile - tiles[slot];
    auto const first_row = begin + own % rows_of_tiles * tile_rows;
    auto const first_column = static_cast<int>(own / rows_of_tiles) * columns;
    if (end - first_row >= tile_rows) {
      compute_tile<tile_rows, true, Epilogue>(a, shared, slot, first_row, end, first_column);
    } else {
      compute_tile<tile_rows, false, Epilogue>(a, shared, slot, first_row, end, first_column);
    }
    if (threadIdx.x == 0) { next = gridDim.x + taken; }
    __syncthreads();
  }
}

}  // namespace product

}  // namespace engine

#endif
