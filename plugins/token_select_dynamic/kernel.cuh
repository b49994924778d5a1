// TokenSelectDynamic on the GPU.
#pragma once

#include "common/cuda_common.cuh"
#include "token_select_dynamic/contract.h"

namespace trtc::token_select_dynamic
{

//! Up to this many tokens the keys of an item stay in shared memory.
constexpr int64_t kSHARED_TOKENS = 8192;

//! Forced positions travel with the launch.
constexpr int64_t kMOST_FORCED = 256;

size_t tokenSelectDynamicWorkspaceBytes(Sizes const& sizes);

//! `x`, `y` and `valid` are of type `type`, `score` of `scoreType`. Trimmed outputs have room for max_kept rows of each
//! item, and are written as long as `largest`. Launches only.
cudaError_t launchTokenSelectDynamic(Sizes const& sizes, void const* x, DType type, void const* score, DType scoreType,
    void* y, int64_t* index, void* valid, int64_t* count, int32_t* largest, void* workspace, cudaStream_t stream);

} // namespace trtc::token_select_dynamic
