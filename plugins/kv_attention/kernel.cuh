// KVAttention on the GPU.
#pragma once

#include <algorithm>

#include "common/cuda_common.cuh"
#include "kv_attention/contract.h"

namespace trtc::kv_attention
{

//! Wider heads have no kernel.
constexpr int64_t kMOST_WIDTH = 512;
//! Offsets inside of the codes and of the scales of one KV head are 32-bit numbers, with room for a tile.
constexpr int64_t kMOST_HEAD_BYTES = 2147483647 - 4096;

//! One side of the cache.
struct GpuCache
{
    uint8_t const* code; //!< or rows of floats
    void const* scale;
    void const* minimum;
    DType scaleType; //!< float32 or float16
};

//! Bytes of codes, or of scales if they are more, of one KV head.
inline int64_t headBytes(kv::Format const& format, DType scaleType)
{
    int64_t const rows = format.length * format.rowBytes();
    return format.isFloat() ? rows : std::max(rows, format.numScales() * static_cast<int64_t>(sizeOf(scaleType)));
}

//! What is added to the rows of a side.
struct GpuFactors
{
    void const* factor; //!< not read unless LowRank::rank is more than 0
    void const* basis;
    DType type; //!< float32 or float16
};

struct GpuTensors
{
    void const* q;
    DType type;
    GpuCache keys;
    GpuCache values;
    int64_t const* length;
    void const* bias;
    DType biasType;
    int64_t const* index; //!< not read unless Sizes::isIndexed
    void* y;
    float* lse;
    GpuFactors keyFactors{};
    GpuFactors valueFactors{};
    float const* rope{nullptr}; //!< not read unless Turning::channels is more than 0
};

//! What the kernels cannot do though the contracts allow it.
Error gpuLimits(Sizes const& sizes, DType keyScales, DType valueScales);

//! Results of the splits, where a cache is cut; for any smaller sizes it is no more.
size_t kvAttentionWorkspaceBytes(Sizes const& sizes);

cudaError_t launchKvAttention(Sizes const& sizes, GpuTensors const& tensors, void* workspace, cudaStream_t stream);

} // namespace trtc::kv_attention
