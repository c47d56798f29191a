// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "dense_product.hpp"

#include <ballast/detail/text.hpp>
#include <ballast/status.hpp>

#include <cstdint>

namespace engine {

namespace {

void check(cublasStatus_t result, char const* call) {
  if (result == CUBLAS_STATUS_SUCCESS) { return; }
  ballast::status{ballast::errc::internal, ballast::detail::concat(call, ": ", cublasLtGetStatusString(result))}
      .or_throw();
}

}  // namespace

dense_product::dense_product(shape const& of, int multiprocessors) : shape_{of} {
  cublasLtHandle_t made = nullptr;
  check(cublasLtCreate(&made), "cublasLtCreate");
  handle_.reset(made);
  cublasLtMatmulDesc_t what = nullptr;
  check(cublasLtMatmulDescCreate(&what, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
  description_.reset(what);
  // Columns first there, rows first here: the product is turned around.
  cublasOperation_t const turned = CUBLAS_OP_T;
  check(cublasLtMatmulDescSetAttribute(what, CUBLASLT_MATMUL_DESC_TRANSA, &turned, sizeof turned),
        "cublasLtMatmulDescSetAttribute");
  std::int32_t const target = multiprocessors;
  check(cublasLtMatmulDescSetAttribute(what, CUBLASLT_MATMUL_DESC_SM_COUNT_TARGET, &target, sizeof target),
        "cublasLtMatmulDescSetAttribute");
  choose_algorithm();
}

dense_product::layout dense_product::make_layout(cudaDataType_t type, int rows, int columns) {
  cublasLtMatrixLayout_t made = nullptr;
  check(cublasLtMatrixLayoutCreate(&made, type, static_cast<std::uint64_t>(rows), static_cast<std::uint64_t>(columns),
                                   rows),
        "cublasLtMatrixLayoutCreate");
  return layout{made};
}

void dense_product::choose_algorithm() {
  cublasLtMatmulPreference_t preference = nullptr;
  check(cublasLtMatmulPreferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
  std::unique_ptr<void, destroyer<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>> const owner{preference};
  // Sums that are cut in parts depend on how many rows there are.
  std::uint32_t const whole = CUBLASLT_REDUCTION_SCHEME_NONE;
  check(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &whole,
                                             sizeof whole),
        "cublasLtMatmulPreferenceSetAttribute");
  auto const a = make_layout(CUDA_R_16BF, shape_.depth, shape_.width);
  auto const b = make_layout(CUDA_R_16BF, shape_.depth, shape_.most_rows);
  auto const c = make_layout(shape_.wide ? CUDA_R_32F : CUDA_R_16BF, shape_.width, shape_.most_rows);
  cublasLtMatmulHeuristicResult_t found{};
  int count = 0;
  check(cublasLtMatmulAlgoGetHeuristic(handle_.get(), description_.get(), a.get(), b.get(), c.get(), c.get(),
                                       preference, 1, &found, &count),
        "cublasLtMatmulAlgoGetHeuristic");
  algorithm_ = found.algo;
}

void dense_product::enqueue(cudaStream_t on, int rows, bf16 const* in, bf16 const* weights, void* out) const {
  auto const a = make_layout(CUDA_R_16BF, shape_.depth, shape_.width);
  auto const b = make_layout(CUDA_R_16BF, shape_.depth, rows);
  auto const c = make_layout(shape_.wide ? CUDA_R_32F : CUDA_R_16BF, shape_.width, rows);
  float const one = 1;
  float const kept = shape_.adds ? 1 : 0;
  check(cublasLtMatmul(handle_.get(), description_.get(), &one, weights, a.get(), in, b.get(), &kept, out, c.get(), out,
                       c.get(), &algorithm_, nullptr, 0, on),
        "cublasLtMatmul");
}

}  // namespace engine
