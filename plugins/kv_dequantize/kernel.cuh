// KVDequantize on the GPU.
#pragma once

#include "common/cuda_common.cuh"
#include "kv_dequantize/contract.h"

namespace trtc::kv_dequantize
{

//! Slots and channels are 32-bit numbers.
constexpr int64_t kMOST = 2147483647 - 4096;

cudaError_t launchKvDequantize(Sizes const& sizes, uint8_t const* code, void const* scale, void const* minimum,
    DType scaleType, void* x, DType type, cudaStream_t stream);

} // namespace trtc::kv_dequantize
