// KVAppend on the GPU.
#pragma once

#include "common/fault.cuh"
#include "kv_append/contract.h"

namespace trtc::kv_append
{

//! Offsets inside of the slots of one head are 32-bit numbers.
constexpr int64_t kMOST_HEAD_BYTES = 2147483647;

//! Rows are copied as bytes. If `out` is `cache`, nothing but the new rows is written. If any position is out of range,
//! that is reported and nothing is written at all.
cudaError_t launchKvAppend(Sizes const& sizes, void const* cache, void const* rows, int64_t const* position, void* out,
    FaultSlot fault, cudaStream_t stream);

} // namespace trtc::kv_append
