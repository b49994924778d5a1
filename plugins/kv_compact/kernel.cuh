// KVCompact on the GPU.
#pragma once

#include "common/fault.cuh"
#include "kv_compact/contract.h"

namespace trtc::kv_compact
{

//! Offsets inside of the slots of one head are 32-bit numbers.
constexpr int64_t kMOST_HEAD_BYTES = 2147483647;

//! Rows are copied as bytes. If `out` is `cache`, slots behind the kept ones are not written. A head whose index is out
//! of range or not strictly ascending is reported and none of its slots written.
cudaError_t launchKvCompact(
    Sizes const& sizes, void const* cache, int64_t const* index, void* out, FaultSlot fault, cudaStream_t stream);

} // namespace trtc::kv_compact
