// What CodebookEncode and CodebookDecode share on the GPU: the digits of FSQ, read from the codebook by every block.
#pragma once

#include "codebook_encode/codebook.h"
#include "common/cuda_device.cuh"
#include "common/fault.cuh"

namespace trtc::codebook_encode
{

//! In shared memory.
struct DeviceDigits
{
    int32_t levels[kMOST_FSQ_CHANNELS];
    int32_t base[kMOST_FSQ_CHANNELS]; //!< what one step of the digit adds to the code
    int32_t numCodes;                 //!< 0: the codebook holds no numbers of levels
};

//! Reads the levels of at most kMOST_FSQ_CHANNELS channels. Every thread must call it; barriers stand inside and at its
//! end. False if they are not allowed; that was reported then.
__device__ inline bool readDigits(
    void const* codebook, DType type, int32_t channels, DeviceDigits& digits, FaultSlot fault)
{
    auto const mine = static_cast<int32_t>(threadIdx.x);
    if (mine < channels)
    {
        float const number = loadFloat(codebook, type, mine);
        bool const isGood = number >= 2.0F && number <= static_cast<float>(kMOST_LEVELS) && number == floorf(number);
        digits.levels[mine] = isGood ? static_cast<int32_t>(number) : 0;
    }
    __syncthreads();
    if (mine == 0)
    {
        int64_t product = 1;
        for (int32_t d = 0; d < channels; ++d)
        {
            digits.base[d] = static_cast<int32_t>(product);
            product *= digits.levels[d];
            product = product > kMOST_FSQ_CODES ? 0 : product; // stays 0
        }
        digits.numCodes = static_cast<int32_t>(product);
        if (product == 0)
        {
            report(fault, Fault::kLEVELS);
        }
    }
    __syncthreads();
    return digits.numCodes != 0;
}

} // namespace trtc::codebook_encode
