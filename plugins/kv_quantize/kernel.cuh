// KVQuantize on the GPU.
#pragma once

#include "common/cuda_common.cuh"
#include "kv_quantize/contract.h"

namespace trtc::kv_quantize
{

//! Slots and channels are 32-bit numbers.
constexpr int64_t kMOST = 2147483647 - 4096;
//! Groups of tokens, over all KV heads: a block has one.
constexpr int64_t kMOST_BLOCKS = 2147483647;
//! Groups of the channels of one token that one warp can keep.
constexpr int64_t kMOST_GROUPS = 6144;

cudaError_t launchKvQuantize(Sizes const& sizes, void const* x, DType type, uint8_t* code, void* scale, void* minimum,
    DType scaleType, cudaStream_t stream);

} // namespace trtc::kv_quantize
