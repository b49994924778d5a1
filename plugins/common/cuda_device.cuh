// What the kernels share: float16 and bfloat16, groups of values that move as one, reductions and scans.
#pragma once

#include "common/contract.h"
#include "common/cuda_common.cuh"

namespace trtc
{

__device__ inline float toFloat(float value)
{
    return value;
}

__device__ inline float toFloat(__half value)
{
    return __half2float(value);
}

__device__ inline float toFloat(__nv_bfloat16 value)
{
    return __bfloat162float(value);
}

template <typename T>
__device__ T fromFloat(float value);

template <>
__device__ inline float fromFloat<float>(float value)
{
    return value;
}

template <>
__device__ inline __half fromFloat<__half>(float value)
{
    return __float2half_rn(value);
}

template <>
__device__ inline __nv_bfloat16 fromFloat<__nv_bfloat16>(float value)
{
    return __float2bfloat16_rn(value);
}

//! One value of a tensor whose floating type is known at run time; the branch is the same for all threads.
__device__ inline float loadFloat(void const* data, DType dtype, int64_t index)
{
    switch (dtype)
    {
    case DType::kFLOAT16: return toFloat(static_cast<__half const*>(data)[index]);
    case DType::kBFLOAT16: return toFloat(static_cast<__nv_bfloat16 const*>(data)[index]);
    default: return static_cast<float const*>(data)[index];
    }
}

template <typename T>
struct DeviceTag
{
    using Type = T;
};

//! Calls body(DeviceTag<T>{}) with the CUDA type of a floating dtype.
template <typename Body>
cudaError_t dispatchDeviceFloat(DType dtype, Body const& body)
{
    switch (dtype)
    {
    case DType::kFLOAT32: return body(DeviceTag<float>{});
    case DType::kFLOAT16: return body(DeviceTag<__half>{});
    case DType::kBFLOAT16: return body(DeviceTag<__nv_bfloat16>{});
    default: return cudaErrorInvalidValue;
    }
}

//! Values that are loaded and stored in one access.
template <typename T, int32_t kCOUNT>
struct alignas(sizeof(T) * kCOUNT) Pack
{
    T values[kCOUNT];
};

//! The most values of a row that one access may take, up to 16 bytes, given where rows start and how long they are.
template <typename T>
int32_t packOf(void const* a, void const* b, int64_t rowValues)
{
    auto const bits = reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b)
        | (static_cast<uintptr_t>(rowValues) * sizeof(T));
    return bits % 16U == 0U ? static_cast<int32_t>(16U / sizeof(T)) : 1;
}

template <typename T>
__device__ T warpMin(T value)
{
    for (int32_t offset = 16; offset > 0; offset /= 2)
    {
        T const other = __shfl_xor_sync(kFULL_MASK, value, offset);
        value = other < value ? other : value;
    }
    return value;
}

__device__ inline float warpSum(float value)
{
    for (int32_t offset = 16; offset > 0; offset /= 2)
    {
        value += __shfl_xor_sync(kFULL_MASK, value, offset);
    }
    return value;
}

//! How many threads before this one in the block have `flag` set, and in `total` how many have. Every thread must call
//! it; `scratch` is shared memory of one entry for each warp. Barriers stand at its start and end.
__device__ inline int32_t blockCountBefore(bool flag, int32_t* scratch, int32_t& total)
{
    uint32_t const ballot = __ballot_sync(kFULL_MASK, flag ? 1 : 0);
    uint32_t const lane = threadIdx.x % kWARP_SIZE;
    uint32_t const warp = threadIdx.x / kWARP_SIZE;
    __syncthreads();
    if (lane == 0U)
    {
        scratch[warp] = __popc(ballot);
    }
    __syncthreads();
    int32_t before = __popc(ballot & ((1U << lane) - 1U));
    total = 0;
    for (uint32_t i = 0; i < blockDim.x / kWARP_SIZE; ++i)
    {
        before += i < warp ? scratch[i] : 0;
        total += scratch[i];
    }
    __syncthreads();
    return before;
}

//! Copies one row by the threads of one warp.
template <typename T, int32_t kPACK>
__device__ void warpCopy(T* to, T const* from, int64_t count)
{
    using Group = Pack<T, kPACK>;
    auto const* const source = reinterpret_cast<Group const*>(from);
    auto* const target = reinterpret_cast<Group*>(to);
    for (int64_t i = threadIdx.x % kWARP_SIZE; i < count / kPACK; i += kWARP_SIZE)
    {
        target[i] = source[i];
    }
}

} // namespace trtc
