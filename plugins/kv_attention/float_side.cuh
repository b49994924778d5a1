// How the kernels of KVAttention read a cache of floats: a lane has a run of 8 channels, in one or two accesses.
#pragma once

#include "kv_attention/packed_side.cuh"

namespace trtc::kv_attention::gpu
{

template <typename T>
__device__ void loadValues(T const* row, Side const& side, int32_t run, float (&values)[kRUN])
{
    constexpr int32_t kACCESS = 16 / static_cast<int32_t>(sizeof(T));
    if (side.isWide)
    {
        auto const* const from = reinterpret_cast<Pack<T, kACCESS> const*>(row + run * kRUN);
#pragma unroll
        for (int32_t i = 0; i < kRUN / kACCESS; ++i)
        {
            Pack<T, kACCESS> const pack = from[i];
#pragma unroll
            for (int32_t j = 0; j < kACCESS; ++j)
            {
                values[i * kACCESS + j] = toFloat(pack.values[j]);
            }
        }
        return;
    }
#pragma unroll
    for (int32_t i = 0; i < kRUN; ++i)
    {
        values[i] = side.has(run, i) ? toFloat(row[run * kRUN + i]) : 0.0F;
    }
}

//! The channels of a run of a row; if Side::isWide the row must have it.
__device__ inline void loadValues(Side const& side, uint8_t const* row, int32_t run, float (&values)[kRUN])
{
    void const* const from = row;
    switch (side.rowType)
    {
    case DType::kFLOAT16: return loadValues(static_cast<__half const*>(from), side, run, values);
    case DType::kBFLOAT16: return loadValues(static_cast<__nv_bfloat16 const*>(from), side, run, values);
    default: return loadValues(static_cast<float const*>(from), side, run, values);
    }
}

} // namespace trtc::kv_attention::gpu
