// AttentionScore on the GPU.
#pragma once

#include "attention_score/contract.h"
#include "common/cuda_common.cuh"

namespace trtc::attention_score
{

//! Types of the tensors that may have any floating type.
struct Types
{
    DType q;
    DType k;
    DType bias;
};

size_t attentionScoreWorkspaceBytes(Sizes const& sizes);

//! Launches only.
cudaError_t launchAttentionScore(Sizes const& sizes, Types const& types, void const* q, void const* k,
    int64_t const* position, void const* bias, int64_t const* length, float* score, void* workspace,
    cudaStream_t stream);

} // namespace trtc::attention_score
