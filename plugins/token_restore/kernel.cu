// One warp copies one row. For a permutation one more block an item marks every position in a bitmap and reports a
// position that comes twice; then some other position was left out.
#include "token_restore/kernel.cuh"

#include <algorithm>

#include "common/cuda_device.cuh"

namespace trtc::token_restore
{

namespace
{
constexpr int32_t kTHREADS = 256;
constexpr int32_t kWARPS = kTHREADS / static_cast<int32_t>(kWARP_SIZE);
constexpr int64_t kMOST_BLOCKS = 65535;
constexpr int32_t kBLOCKS_OF_SM = 4; // said to the compiler: left alone it saves registers until it spills

//! Block (item).
__global__ void __launch_bounds__(kTHREADS)
    checkPermutationKernel(int64_t numTokens, int64_t const* index, FaultSlot fault)
{
    TRTC_DYNAMIC_SHARED(unsigned, seen);
    int64_t const* const mine = index + blockIdx.x * numTokens;
    for (int64_t i = threadIdx.x; i < (numTokens + 31) / 32; i += kTHREADS)
    {
        seen[i] = 0U;
    }
    __syncthreads();
    for (int64_t i = threadIdx.x; i < numTokens; i += kTHREADS)
    {
        int64_t const position = mine[i];
        if (position >= 0 && position < numTokens)
        {
            unsigned const bit = 1U << static_cast<unsigned>(position % 32);
            if ((atomicOr(&seen[position / 32], bit) & bit) != 0U)
            {
                report(fault, Fault::kINDEX_TWICE);
            }
        }
    }
}

//! Block (item, share of the rows). T is as wide as rows and addresses allow.
template <typename T>
__global__ void __launch_bounds__(kTHREADS, kBLOCKS_OF_SM) tokenRestoreKernel(int64_t numTokens, int64_t numRows,
    int64_t rowValues, bool unpermute, T const* y, int64_t const* index, T* x, FaultSlot fault)
{
    int64_t const item = blockIdx.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.y) * kWARPS + threadIdx.x / kWARP_SIZE; i < numTokens;
        i += static_cast<int64_t>(gridDim.y) * kWARPS)
    {
        int64_t const other = index[item * numTokens + i];
        if (other < 0 || other >= numRows)
        {
            report(fault, Fault::kINDEX_RANGE);
            continue;
        }
        int64_t const from = item * numRows + (unpermute ? i : other);
        int64_t const to = item * numTokens + (unpermute ? other : i);
        warpCopy<T, 1>(x + to * rowValues, y + from * rowValues, rowValues);
    }
}

template <typename T>
cudaError_t launchWide(Sizes const& sizes, void const* y, size_t rowBytes, int64_t const* index, void* x,
    FaultSlot fault, cudaStream_t stream)
{
    int64_t const shares = std::min((sizes.numTokens + kWARPS - 1) / kWARPS, kMOST_BLOCKS);
    return launchKernel(tokenRestoreKernel<T>, dim3(static_cast<unsigned>(sizes.batch), static_cast<unsigned>(shares)),
        dim3(kTHREADS), 0, stream, sizes.numTokens, sizes.numRows, static_cast<int64_t>(rowBytes / sizeof(T)),
        sizes.unpermute, static_cast<T const*>(y), index, static_cast<T*>(x), fault);
}
} // namespace

cudaError_t launchTokenRestore(Sizes const& sizes, void const* y, size_t itemSize, int64_t const* index, void* x,
    FaultSlot fault, cudaStream_t stream)
{
    if (sizes.unpermute)
    {
        size_t const bytes = static_cast<size_t>((sizes.numTokens + 31) / 32) * sizeof(unsigned);
        cudaError_t const status = launchKernel(checkPermutationKernel, dim3(static_cast<unsigned>(sizes.batch)),
            dim3(kTHREADS), bytes, stream, sizes.numTokens, index, fault);
        if (status != cudaSuccess)
        {
            return status;
        }
    }
    size_t const rowBytes = static_cast<size_t>(sizes.channels) * itemSize;
    auto const bits = reinterpret_cast<uintptr_t>(y) | reinterpret_cast<uintptr_t>(x) | rowBytes;
    if (bits % sizeof(uint4) == 0U)
    {
        return launchWide<uint4>(sizes, y, rowBytes, index, x, fault, stream);
    }
    return bits % sizeof(uint32_t) == 0U ? launchWide<uint32_t>(sizes, y, rowBytes, index, x, fault, stream)
                                         : launchWide<uint16_t>(sizes, y, rowBytes, index, x, fault, stream);
}

} // namespace trtc::token_restore
