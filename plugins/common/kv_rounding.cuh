// What the kernels of KVQuantize and KVDequantize share: how one scale lies, and roundings as SPEC wants them.
#pragma once

#include "common/cuda_device.cuh"
#include "common/kv_format.h"
#include "common/rounding.h"

namespace trtc::kv
{

//! A format as a kernel sees it.
struct DeviceFormat
{
    int32_t bits;
    int32_t parts;
    int32_t rowBytes;
    int32_t width;
    int32_t length;
    int32_t group;
    int32_t columns;   //!< scales in a row of them
    int64_t numScales; //!< of one KV head
    int64_t kvHeads;
    int64_t itemStep; //!< from the scales of an item to those of the next, in heads
    int64_t headStep; //!< the same for the KV heads of an item
    bool byToken;
    bool isHalf; //!< the scales are float16
    bool rounds; //!< steps are rounded to float16

    //! Where the scales of a KV head start, counted over all items.
    __device__ int64_t scalesOf(int64_t head) const
    {
        return (head / kvHeads * itemStep + head % kvHeads * headStep) * numScales;
    }

    __device__ float load(void const* scales, int64_t index) const
    {
        return isHalf ? toFloat(static_cast<__half const*>(scales)[index]) : static_cast<float const*>(scales)[index];
    }

    //! Stores a scale; returns it as it is stored.
    __device__ float store(void* scales, int64_t index, float value) const
    {
        if (!isHalf)
        {
            static_cast<float*>(scales)[index] = value;
            return value;
        }
        __half const rounded = fromFloat<__half>(value);
        static_cast<__half*>(scales)[index] = rounded;
        return toFloat(rounded);
    }

    //! To float16 and back where that is wanted and does not overflow.
    __device__ float rounded(float value) const
    {
        float const half = rounds ? toFloat(fromFloat<__half>(value)) : value;
        return fabsf(half) <= 65504.0F ? half : value;
    }
};

inline DeviceFormat deviceFormat(Format const& format, DType scaleType, bool rounds)
{
    return {format.bits, format.parts(), static_cast<int32_t>(format.rowBytes()), static_cast<int32_t>(format.width),
        static_cast<int32_t>(format.length), static_cast<int32_t>(std::max<int64_t>(format.group, 1)),
        static_cast<int32_t>(format.scaleColumns()), format.numScales(), format.kvHeads, format.itemStep,
        format.headStep, format.byToken, scaleType == DType::kFLOAT16, rounds};
}

} // namespace trtc::kv
