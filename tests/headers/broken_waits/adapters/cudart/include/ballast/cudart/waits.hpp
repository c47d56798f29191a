// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#ifndef BALLAST_CUDART_WAITS_HPP
#define BALLAST_CUDART_WAITS_HPP
// cudaEventSynchronize in a comment, or in a text, is no call.
inline char const* text() { return "cudaDeviceSynchronize"; }
inline auto wait(cudaStream_t on) { return cudaStreamSynchronize(on); }
inline auto (*later)(void*) = &cudaFree;
#endif
