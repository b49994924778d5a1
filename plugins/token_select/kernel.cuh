// TokenSelect on the GPU.
#pragma once

#include "common/cuda_common.cuh"
#include "token_select/contract.h"

namespace trtc::token_select
{

//! Up to this many tokens everything happens in one launch and without a workspace.
constexpr int64_t kONE_LAUNCH_TOKENS = 8192;

//! Forced positions travel with the launch.
constexpr int64_t kMOST_FORCED = 256;

size_t tokenSelectWorkspaceBytes(Sizes const& sizes);

//! `x` and `y` are of type `type`, `score` of `scoreType`. Launches only.
cudaError_t launchTokenSelect(Sizes const& sizes, void const* x, DType type, void const* score, DType scoreType,
    void* y, int64_t* index, int64_t* rest, void* workspace, cudaStream_t stream);

} // namespace trtc::token_select
