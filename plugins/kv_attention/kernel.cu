// One block takes 1, 4 or 8 queries of one KV head (all its query heads, as far as they fit) over one split of the
// cache, so that each code is read and unpacked once for all of them. Its four warps walk over parts of the split on
// their own, a tile of 16 slots (4 queries, D = 128) at a time:
// 1. 8, 16 or 32 lanes share a slot; a lane has a run of 8 codes (2, 4 or 8 bytes, one access) at the same channels of
//    all slots, and the queries at these channels in registers. Groups of tokens put their scale into the queries once
//    for a group; groups of channels turn codes into values first. The sums of 32 products are exchanged so that each
//    lane ends with its share of them, 31 shuffles for 32 products over 32 lanes.
// 2. Lanes turn these into weights with a running maximum, and leave them in shared memory.
// 3. The same lanes add the weighted runs of the values into registers.
// Warps meet only at the end. A second kernel merges the splits in order by the log of their sums.
//
// A cache of floats goes the same way, without scales: a lane has 8 channels of a slot, in one or two accesses.
//
// Codes and scales are read once: B * G * L * D * (k_bits + v_bits) / 8 bytes and the scales. A code costs two
// instructions to become a float (a byte permute below the exponent of 2^23, one subtraction), one for its scale where
// that is not in the query, and one multiply-add for each query.
#include "kv_attention/kernel.cuh"

#include <algorithm>

#include "kv_attention/part.cuh"

namespace trtc::kv_attention
{

namespace
{
using namespace gpu;

constexpr int64_t kSPLIT = 256;  // slots that are worth a block
constexpr int64_t kENOUGH = 512; // blocks beyond which the cache is not cut further
constexpr int64_t kMOST_SPLITS = 256;
constexpr int64_t kMOST_ROWS = 8; // queries of a block

template <int32_t kROWS, int32_t kLANES, int32_t kRUNS, int32_t kBLOCKS_OF_SM, bool kFLOATS, bool kINDEXED>
__global__ void __launch_bounds__(kTHREADS, kBLOCKS_OF_SM) kvAttentionKernel(Problem problem)
{
    __shared__ Shared<Shape<kROWS, kLANES, kRUNS>, kROWS, kRUNS, false> shared;
    attendPart<kROWS, kLANES, kRUNS, kFLOATS, kINDEXED, false>(problem, shared);
}

//! Block (query): the splits in order.
__global__ void __launch_bounds__(kTHREADS) kvAttentionMergeKernel(Problem problem, int32_t blockRows)
{
    __shared__ float factors[kMOST_SPLITS];
    int64_t const head = blockIdx.x / problem.rows;
    int64_t const row = blockIdx.x % problem.rows;
    int64_t const unit = (head * problem.rowBlocks + row / blockRows) * problem.splits;
    auto const partOf = [&](int32_t split) { return (unit + split) * blockRows + row % blockRows; };
    float highest = kLOWEST;
    for (int32_t split = 0; split < problem.splits; ++split)
    {
        highest = fmaxf(highest, problem.stats[partOf(split) * 2]);
    }
    for (int32_t split = static_cast<int32_t>(threadIdx.x); split < problem.splits; split += kTHREADS)
    {
        factors[split] = expf(problem.stats[partOf(split) * 2] - highest);
    }
    __syncthreads();
    float total = 0.0F;
    for (int32_t split = 0; split < problem.splits; ++split)
    {
        total = fmaf(factors[split], problem.stats[partOf(split) * 2 + 1], total);
    }
    for (int32_t channel = static_cast<int32_t>(threadIdx.x); channel < problem.width; channel += kTHREADS)
    {
        float sum = 0.0F;
#pragma unroll 4
        for (int32_t split = 0; split < problem.splits; ++split)
        {
            sum = fmaf(factors[split], problem.sums[partOf(split) * problem.width + channel], sum);
        }
        int64_t const at = static_cast<int64_t>(blockIdx.x) * problem.width + channel;
        storeFloat(problem.y, problem.type, at, total > 0.0F ? sum / total : 0.0F);
    }
    if (threadIdx.x == 0U)
    {
        problem.lse[blockIdx.x] = total > 0.0F ? highest + logf(total) : -INFINITY;
    }
}

Side sideOf(GpuCache const& cache, kv::Format const& format, DType rowType)
{
    auto const rowBytes = static_cast<int32_t>(format.rowBytes());
    auto const partWidth = static_cast<int32_t>(format.width / format.parts());
    auto const address = reinterpret_cast<uintptr_t>(cache.code) | static_cast<uintptr_t>(rowBytes);
    if (format.isFloat())
    {
        bool const isWide = address % 16U == 0U && partWidth % kRUN == 0;
        return {cache.code, nullptr, nullptr, false, 8, 3, rowBytes, partWidth, 1, 0, 0, 1, 0, 0, true, isWide, rowType,
            false};
    }
    bool const isWide = address % static_cast<uintptr_t>(format.bits) == 0U;
    bool isUniform = format.byToken && isWide;
    for (int32_t i = 0; isUniform && i < partWidth; i += format.bits)
    {
        for (int32_t part = 0; part < format.parts(); ++part)
        {
            int64_t const first = part * partWidth + i;
            int64_t const last = part * partWidth + std::min(i + format.bits, partWidth) - 1;
            isUniform = isUniform && first / format.group == last / format.group;
        }
    }
    int32_t const shift = format.bits == 8 ? 3 : format.bits / 2;
    return {cache.code, cache.scale, cache.minimum, cache.scaleType == DType::kFLOAT16, format.bits, shift, rowBytes,
        partWidth, static_cast<int32_t>(std::max<int64_t>(format.group, 1)),
        static_cast<int32_t>(format.scaleColumns()), format.numScales(), format.kvHeads, format.itemStep,
        format.headStep, format.byToken, isWide, rowType, isUniform};
}

Factors factorsOf(GpuFactors const& given, LowRank const& lowRank)
{
    return {given.factor, given.basis, given.type, static_cast<int32_t>(lowRank.rank)};
}

struct Choice
{
    int32_t rows; //!< queries of a block
    int64_t rowBlocks;
    int64_t units;
    int64_t splits;
};

Choice choose(Sizes const& sizes)
{
    int64_t const rows = sizes.rows();
    bool const areFour = sizes.width > 32 * kRUN || sizes.isIndexed || sizes.hasSides();
    int32_t const ofBlock = areFour ? kINDEXED_ROWS : rows <= 1 ? 1 : rows <= 4 ? 4 : 8;
    int64_t const rowBlocks = (rows + ofBlock - 1) / ofBlock;
    int64_t const units = sizes.batch * sizes.kvHeads * rowBlocks;
    int64_t const useful = std::min((sizes.columns + kSPLIT - 1) / kSPLIT, kMOST_SPLITS);
    int64_t const wanted = kENOUGH / std::max<int64_t>(units, 1);
    return {ofBlock, rowBlocks, units, std::max<int64_t>(std::min(useful, wanted), 1)};
}

template <int32_t kROWS, int32_t kLANES, int32_t kRUNS, int32_t kBLOCKS_OF_SM, bool kINDEXED>
cudaError_t launch(Problem const& problem, int64_t units, cudaStream_t stream)
{
    dim3 const grid(static_cast<unsigned>(units), static_cast<unsigned>(problem.splits));
    auto const kernel = problem.keys.rowType == DType::kUINT8
        ? kvAttentionKernel<kROWS, kLANES, kRUNS, kBLOCKS_OF_SM, false, kINDEXED>
        : kvAttentionKernel<kROWS, kLANES, kRUNS, kBLOCKS_OF_SM, true, kINDEXED>;
    return launchKernel(kernel, grid, dim3(kTHREADS), 0, stream, problem);
}

template <int32_t kROWS, int32_t kBLOCKS_OF_SM, bool kINDEXED = false>
cudaError_t launchWidth(Problem const& problem, int64_t units, cudaStream_t stream)
{
    if (problem.width <= 8 * kRUN)
    {
        return launch<kROWS, 8, 1, kBLOCKS_OF_SM, kINDEXED>(problem, units, stream);
    }
    if (problem.width <= 16 * kRUN)
    {
        return launch<kROWS, 16, 1, kBLOCKS_OF_SM, kINDEXED>(problem, units, stream);
    }
    return launch<kROWS, 32, 1, kBLOCKS_OF_SM, kINDEXED>(problem, units, stream);
}
} // namespace

size_t kvAttentionWorkspaceBytes(Sizes const& sizes)
{
    // For all blocks that a launch that cuts the cache may have, whatever the rows of a block: so it grows with sizes.
    int64_t const mostUnits = sizes.batch * sizes.kvHeads * sizes.rows();
    int64_t const useful = std::min((sizes.columns + kSPLIT - 1) / kSPLIT, kMOST_SPLITS);
    int64_t const parts = std::min(mostUnits * useful, kENOUGH);
    return static_cast<size_t>(parts * kMOST_ROWS * (sizes.width + 2)) * sizeof(float);
}

cudaError_t launchKvAttention(Sizes const& sizes, GpuTensors const& tensors, void* workspace, cudaStream_t stream)
{
    if (sizes.width > kMOST_WIDTH || headBytes(sizes.keys, tensors.keys.scaleType) > kMOST_HEAD_BYTES
        || headBytes(sizes.values, tensors.values.scaleType) > kMOST_HEAD_BYTES)
    {
        return cudaErrorInvalidValue;
    }
    Choice const choice = choose(sizes);
    auto* const sums = choice.splits > 1 ? static_cast<float*>(workspace) : nullptr;
    int64_t const numParts = choice.units * choice.splits * choice.rows;
    Problem const problem{sizes.rows(), choice.rowBlocks, static_cast<int32_t>(sizes.width),
        static_cast<int32_t>(sizes.length), static_cast<int32_t>(sizes.columns), static_cast<int32_t>(sizes.kvHeads),
        static_cast<int32_t>(choice.splits), sizes.repeats(), sizes.queries, sizes.scale,
        sideOf(tensors.keys, sizes.keys, sizes.rowType), sideOf(tensors.values, sizes.values, sizes.rowType), tensors.q,
        tensors.type, tensors.bias, tensors.biasType, sizes.bias, sizes.softcap, sizes.sight, tensors.length,
        sizes.lengthHeads > 1, tensors.index, sizes.index, tensors.y, tensors.lse, sums,
        sums == nullptr ? nullptr : sums + numParts * sizes.width, factorsOf(tensors.keyFactors, sizes.ofKeys),
        factorsOf(tensors.valueFactors, sizes.ofValues), static_cast<int32_t>(std::max<int64_t>(sizes.ofKeys.block, 1)),
        static_cast<int32_t>(sizes.ofKeys.blocks), tensors.rope, sizes.turning};
    cudaError_t status = cudaSuccess;
    if (sizes.hasSides())
    {
        status = launchWithSides(problem, sizes.isIndexed, choice.units, stream);
    }
    else if (sizes.width > 32 * kRUN)
    {
        status = sizes.isIndexed ? launch<4, 32, 2, 2, true>(problem, choice.units, stream)
                                 : launch<4, 32, 2, 2, false>(problem, choice.units, stream);
    }
    else if (sizes.isIndexed)
    {
        status = launchWidth<kINDEXED_ROWS, 3, true>(problem, choice.units, stream);
    }
    else if (choice.rows == 1)
    {
        status = launchWidth<1, 4>(problem, choice.units, stream);
    }
    else
    {
        status = choice.rows == 4 ? launchWidth<4, 3>(problem, choice.units, stream)
                                  : launchWidth<8, 2>(problem, choice.units, stream);
    }
    if (status != cudaSuccess || sums == nullptr)
    {
        return status;
    }
    auto const numRows = static_cast<unsigned>(sizes.batch * sizes.kvHeads * sizes.rows());
    return launchKernel(kvAttentionMergeKernel, dim3(numRows), dim3(kTHREADS), 0, stream, problem, choice.rows);
}

} // namespace trtc::kv_attention
