// SPDX-License-Identifier: Apache-2.0 WITH LLVM-exception
#include "serve.hpp"

namespace {
struct in_cu {};
}  // namespace

ballast::placement ballast_test::serve_in_cu(ballast::in_process_endpoint& endpoint) { return serve<in_cu>(endpoint); }
