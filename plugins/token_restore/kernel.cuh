// TokenRestore on the GPU.
#pragma once

#include "common/fault.cuh"
#include "token_restore/contract.h"

namespace trtc::token_restore
{

//! Beyond this the positions of one item do not fit the bits of shared memory that check a permutation.
constexpr int64_t kMOST_PERMUTED = 48 * 1024 * 8;

//! Rows are copied as bytes. An index out of range, or twice in a permutation, is reported and its row not written.
cudaError_t launchTokenRestore(Sizes const& sizes, void const* y, size_t itemSize, int64_t const* index, void* x,
    FaultSlot fault, cudaStream_t stream);

} // namespace trtc::token_restore
