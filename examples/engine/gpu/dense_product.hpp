// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_EXAMPLES_ENGINE_GPU_DENSE_PRODUCT_HPP
#define BALLAST_EXAMPLES_ENGINE_GPU_DENSE_PRODUCT_HPP

#include "rows.hpp"

#include <cublasLt.h>
#include <cuda_runtime_api.h>

#include <memory>

namespace engine {

/// out[n, N] (+)= in[n, K] * weights[N, K], by one algorithm of cuBLASLt for every n: what a row comes to must not
/// depend on how many there are.
class dense_product {
public:
  struct shape {
    int most_rows = 0;  ///< the algorithm is chosen for these
    int width = 0;      ///< N
    int depth = 0;      ///< K
    bool adds = false;  ///< to what is in `out`
    bool wide = false;  ///< `out` is float, else bf16
  };
  /// @param multiprocessors  that it may use
  /// @throws std::system_error
  dense_product(shape const& of, int multiprocessors);

  /// @throws std::system_error
  void enqueue(cudaStream_t on, int rows, bf16 const* in, bf16 const* weights, void* out) const;

private:
  template <class Handle, cublasStatus_t (*destroy)(Handle)>
  struct destroyer {
    using pointer = Handle;
    void operator()(Handle handle) const noexcept { static_cast<void>(destroy(handle)); }
  };
  using handle = std::unique_ptr<void, destroyer<cublasLtHandle_t, cublasLtDestroy>>;
  using description = std::unique_ptr<void, destroyer<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>>;
  using layout = std::unique_ptr<void, destroyer<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>>;

  [[nodiscard]] static layout make_layout(cudaDataType_t type, int rows, int columns);
  void choose_algorithm();

  shape shape_;
  handle handle_;
  description description_;
  cublasLtMatmulAlgo_t algorithm_{};
};

}  // namespace engine

#endif
