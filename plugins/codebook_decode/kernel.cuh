// CodebookDecode on the GPU.
#pragma once

#include "codebook_decode/contract.h"
#include "common/fault.cuh"

namespace trtc::codebook_decode
{

//! `codebook` and `y` are of type `type`. A number that is no code is reported, and the token (of tables and signs: its
//! values) not written; if FSQ's codebook holds no numbers of levels, nothing is.
cudaError_t launchCodebookDecode(Sizes const& sizes, int64_t const* code, void const* codebook, DType type, void* y,
    FaultSlot fault, cudaStream_t stream);

} // namespace trtc::codebook_decode
