// CodebookEncode on the GPU.
#pragma once

#include "codebook_encode/contract.h"
#include "common/fault.cuh"

namespace trtc::codebook_encode
{

size_t codebookEncodeWorkspaceBytes(Sizes const& sizes, DType type);

//! `x` is of type `type`, `codebook` of `codebookType`. If FSQ's codebook holds no numbers of levels, that is reported
//! and nothing is written. The result does not depend on the order in which blocks and threads run.
cudaError_t launchCodebookEncode(Sizes const& sizes, void const* x, DType type, void const* codebook,
    DType codebookType, int64_t* code, void* workspace, FaultSlot fault, cudaStream_t stream);

} // namespace trtc::codebook_encode
