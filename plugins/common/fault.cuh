// Errors that only the data shows, found by a kernel: it writes nothing and notes the error in one word of mapped host
// memory. The library looks at the word at the next enqueue, and the caller may ask after a synchronisation.
#pragma once

#include "common/contract.h"
#include "common/cuda_common.cuh"

namespace trtc
{

enum class Fault : uint32_t
{
    kNONE,
    kINDEX_RANGE,    //!< an index is out of range
    kINDEX_ORDER,    //!< indices are not strictly ascending
    kINDEX_TWICE,    //!< an index that must be a permutation has a position twice
    kPOSITION_RANGE, //!< a position lies outside of the cache
    kCODE_RANGE,     //!< a number is none of a codebook's codes
    kLEVELS,         //!< a codebook's numbers of levels are not allowed
};

//! Where the kernels of one operator report; passed to a kernel by value.
struct FaultSlot
{
    uint32_t* word;
    uint32_t tag;
};

//! The last report stays; all are of the same kind of mistake.
__device__ inline void report(FaultSlot slot, Fault fault)
{
    *static_cast<uint32_t volatile*>(slot.word) = slot.tag | static_cast<uint32_t>(fault);
}

//! The slot of the operator with this number. Allocates the word at the first call, so call it before any capture;
//! a word that is null says that the memory cannot be had.
FaultSlot faultSlot(uint32_t operatorNumber) noexcept;

//! What was reported since the last call, as a sentence, and forget it. `operators` are those that the numbers name.
Error takeFault(std::vector<Contract const*> const& operators);

//! Whether anything was reported.
bool hasFault() noexcept;

} // namespace trtc
