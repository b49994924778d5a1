// TokenMix on the GPU.
#pragma once

#include "common/cuda_common.cuh"
#include "token_mix/contract.h"

namespace trtc::token_mix
{

size_t tokenMixWorkspaceBytes(Sizes const& sizes);

//! `x` and `y` are of type `type`, `weight` of `weightType`. Launches only.
cudaError_t launchTokenMix(Sizes const& sizes, void const* x, DType type, void const* weight, DType weightType, void* y,
    void* workspace, cudaStream_t stream);

} // namespace trtc::token_mix
