// TokenMerge on the GPU.
#pragma once

#include "common/cuda_common.cuh"
#include "token_merge/contract.h"

namespace trtc::token_merge
{

//! Up to this many tokens everything happens in one launch and without a workspace.
constexpr int64_t kONE_LAUNCH_TOKENS = 1024;

//! Rows of A are spread over the second axis of a grid, 64 to a block.
constexpr int64_t kMOST_FREE = int64_t{2} * 65535 * 64;

size_t tokenMergeWorkspaceBytes(Sizes const& sizes);

//! `x` and `y` are of type `type`, `metric` of `metricType`. Launches only; the result does not depend on the order in
//! which blocks and threads run.
cudaError_t launchTokenMerge(Sizes const& sizes, void const* x, DType type, void const* metric, DType metricType,
    float const* size, void* y, float* ySize, int64_t* dest, void* workspace, cudaStream_t stream);

} // namespace trtc::token_merge
