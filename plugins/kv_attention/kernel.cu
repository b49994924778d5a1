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

#include "kv_attention/walk.cuh"

namespace trtc::kv_attention
{

namespace
{
using namespace gpu;

constexpr int32_t kTHREADS = kWARPS * static_cast<int32_t>(kWARP_SIZE);
constexpr int64_t kSPLIT = 256;  // slots that are worth a block
constexpr int64_t kENOUGH = 512; // blocks beyond which the cache is not cut further
constexpr int64_t kMOST_SPLITS = 256;
constexpr int64_t kMOST_ROWS = 8; // queries of a block

__device__ inline void storeFloat(void* data, DType type, int64_t index, float value)
{
    switch (type)
    {
    case DType::kFLOAT16: static_cast<__half*>(data)[index] = fromFloat<__half>(value); break;
    case DType::kBFLOAT16: static_cast<__nv_bfloat16*>(data)[index] = fromFloat<__nv_bfloat16>(value); break;
    default: static_cast<float*>(data)[index] = value; break;
    }
}

//! The code of the channel that the channel of a code is turned with; itself where it is not turned.
__device__ inline int16_t partnerOf(Side const& keys, int32_t turned, int32_t code)
{
    int32_t const half = turned / 2;
    int32_t const channel = keys.has(code / kRUN, code % kRUN) ? keys.channel(code / kRUN, code % kRUN) : turned;
    if (channel >= turned)
    {
        return static_cast<int16_t>(code);
    }
    int32_t const other = channel < half ? channel + half : channel - half;
    int32_t const part = other / keys.partWidth;
    int32_t const ofPart = other % keys.partWidth;
    int32_t const ofRun = (part << keys.shift) | (ofPart & (keys.bits - 1));
    return static_cast<int16_t>((ofPart >> keys.shift) * kRUN + ofRun);
}

//! Block (KV head and block of queries, split).
template <int32_t kROWS, int32_t kLANES, int32_t kRUNS, int32_t kBLOCKS_OF_SM, bool kFLOATS, bool kINDEXED, bool kSIDES>
__global__ void __launch_bounds__(kTHREADS, kBLOCKS_OF_SM) kvAttentionKernel(Problem problem)
{
    using S = Shape<kROWS, kLANES, kRUNS>;
    __shared__ Shared<S, kROWS, kRUNS, kSIDES> shared;
    int64_t const head = blockIdx.x / problem.rowBlocks;
    int64_t const firstRow = blockIdx.x % problem.rowBlocks * kROWS;
    int64_t const item = head / problem.kvHeads;
    int64_t const given = problem.lengths[problem.areLengthsOfHeads ? head : item];
    for (int32_t row = static_cast<int32_t>(threadIdx.x); row < kROWS; row += kTHREADS)
    {
        int64_t const ofHead = firstRow + row;
        int64_t const query = ofHead % problem.queries;
        Spans const spans = problem.sight.spans(given, query);
#pragma unroll
        for (int32_t i = 0; i < kSPANS; ++i)
        {
            bool const isThere = ofHead < problem.rows && !spans.of[i].isEmpty();
            shared.first[row][i] = isThere ? static_cast<int32_t>(spans.of[i].first) : 0;
            shared.last[row][i] = isThere ? static_cast<int32_t>(spans.of[i].last) : 0;
        }
        int64_t const queryHead = head % problem.kvHeads * problem.repeats + ofHead / problem.queries;
        BiasSteps const& steps = problem.biasSteps;
        shared.bias[row] = item * steps.item + queryHead / steps.headsOfStep * steps.head + query * steps.query;
    }
    Side const& keys = problem.keys;
    Side const& values = problem.values;
    if (threadIdx.x == 0U)
    {
        shared.keys = HeadData::of(keys, head, problem.length);
        shared.values = HeadData::of(values, head, problem.length);
        if (kINDEXED)
        {
            shared.index = problem.index + problem.indexSteps.list(item, head % problem.kvHeads) * problem.columns;
            int64_t const written = given < problem.length ? given : problem.length;
            shared.written = static_cast<int32_t>(written > 0 ? written : 0);
        }
        if constexpr (kSIDES)
        {
            shared.sides.head = head;
            shared.sides.table = problem.turning.rowAt(item, head % problem.kvHeads, problem.length, 0);
        }
    }
    if constexpr (kSIDES)
    {
        for (int32_t i = static_cast<int32_t>(threadIdx.x); i < S::kWIDTH; i += kTHREADS)
        {
            shared.sides.partners[i] = partnerOf(keys, static_cast<int32_t>(problem.turning.channels), i);
        }
    }
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < kROWS * S::kWIDTH; i += kTHREADS)
    {
        int32_t const row = i / S::kWIDTH;
        int32_t const run = i % S::kWIDTH / kRUN;
        bool const isThere = firstRow + row < problem.rows && keys.has(run, i % kRUN);
        int64_t const at = (head * problem.rows + firstRow + row) * problem.width + keys.channel(run, i % kRUN);
        shared.q[row][i % S::kWIDTH] = isThere ? loadFloat(problem.q, problem.type, at) : 0.0F;
    }
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < S::kWIDTH / 2; i += kTHREADS)
    {
        int32_t const run = i / (kRUN / 2);
        int32_t const code = i % (kRUN / 2) * 2;
        shared.keyGroups[i] = keys.has(run, code) ? keys.channel(run, code) / keys.group : 0;
        shared.valueGroups[i] = values.has(run, code) ? values.channel(run, code) / values.group : 0;
    }
    __syncthreads();
    int32_t low = problem.length;
    int32_t high = 0;
#pragma unroll
    for (int32_t row = 0; row < kROWS; ++row)
    {
#pragma unroll
        for (int32_t i = 0; i < kSPANS; ++i)
        {
            bool const isThere = shared.last[row][i] > 0;
            low = isThere ? min(low, shared.first[row][i]) : low;
            high = max(high, shared.last[row][i]);
        }
    }
    low = kINDEXED ? 0 : low / S::kTILE * S::kTILE;
    high = kINDEXED && high > 0 ? problem.columns : high;
    // Whole tiles for splits and warps; sums do not overflow, for slots are few enough.
    auto const share = [](int32_t slots, int32_t parts)
    { return ((slots + parts - 1) / parts + S::kTILE - 1) / S::kTILE * S::kTILE; };
    int32_t const ofSplit = share(max(high - low, 0), problem.splits);
    int64_t const splitBegin = low + static_cast<int64_t>(blockIdx.y) * ofSplit;
    int32_t const splitEnd = static_cast<int32_t>(min(splitBegin + ofSplit, static_cast<int64_t>(high)));
    int32_t const ofWarp = share(ofSplit, kWARPS);
    int64_t const begin = splitBegin + static_cast<int64_t>(threadIdx.x / kWARP_SIZE) * ofWarp;
    int32_t const end = static_cast<int32_t>(min(begin + ofWarp, static_cast<int64_t>(splitEnd)));
    Walk<kROWS, kLANES, kRUNS, kFLOATS, kINDEXED, kSIDES> walk(problem, shared, end);
    for (int64_t start = begin; start < end; start += S::kTILE)
    {
        walk.tile(static_cast<int32_t>(start));
    }
    __syncthreads(); // the queries make room for the sums
    walk.finish();
    __syncthreads();
    int64_t const unit = (static_cast<int64_t>(blockIdx.x) * problem.splits + blockIdx.y) * kROWS;
    for (int32_t i = static_cast<int32_t>(threadIdx.x); i < kROWS * S::kWIDTH; i += kTHREADS)
    {
        int32_t const row = i / S::kWIDTH;
        int32_t const code = i % S::kWIDTH;
        if (firstRow + row >= problem.rows || !values.has(code / kRUN, code % kRUN))
        {
            continue;
        }
        float highest = kLOWEST;
#pragma unroll
        for (int32_t warp = 0; warp < kWARPS; ++warp)
        {
            highest = fmaxf(highest, shared.highest[warp][row]);
        }
        float total = 0.0F;
        float sum = 0.0F;
#pragma unroll
        for (int32_t warp = 0; warp < kWARPS; ++warp)
        {
            float const factor = expf(shared.highest[warp][row] - highest);
            total = fmaf(factor, shared.totals[warp][row], total);
            sum = fmaf(factor, shared.sums[warp][row][code], sum);
        }
        int32_t const channel = values.channel(code / kRUN, code % kRUN);
        if (problem.sums != nullptr)
        {
            problem.sums[(unit + row) * problem.width + channel] = sum;
            if (code == 0)
            {
                problem.stats[(unit + row) * 2] = highest;
                problem.stats[(unit + row) * 2 + 1] = total;
            }
            continue;
        }
        int64_t const out = head * problem.rows + firstRow + row;
        storeFloat(problem.y, problem.type, out * problem.width + channel, total > 0.0F ? sum / total : 0.0F);
        if (code == 0)
        {
            problem.lse[out] = total > 0.0F ? highest + logf(total) : -INFINITY;
        }
    }
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

template <int32_t kROWS, int32_t kLANES, int32_t kRUNS, int32_t kBLOCKS_OF_SM, bool kINDEXED, bool kSIDES>
cudaError_t launch(Problem const& problem, int64_t units, cudaStream_t stream)
{
    dim3 const grid(static_cast<unsigned>(units), static_cast<unsigned>(problem.splits));
    auto kernel = kvAttentionKernel<kROWS, kLANES, kRUNS, kBLOCKS_OF_SM, false, kINDEXED, kSIDES>;
    if constexpr (!kSIDES) // nothing is done to rows of floats
    {
        kernel = problem.keys.rowType == DType::kUINT8
            ? kernel
            : kvAttentionKernel<kROWS, kLANES, kRUNS, kBLOCKS_OF_SM, true, kINDEXED, false>;
    }
    return launchKernel(kernel, grid, dim3(kTHREADS), 0, stream, problem);
}

template <int32_t kROWS, int32_t kBLOCKS_OF_SM, bool kINDEXED, bool kSIDES>
cudaError_t launchWidth(Problem const& problem, int64_t units, cudaStream_t stream)
{
    if (problem.width <= 8 * kRUN)
    {
        return launch<kROWS, 8, 1, kBLOCKS_OF_SM, kINDEXED, kSIDES>(problem, units, stream);
    }
    if (problem.width <= 16 * kRUN)
    {
        return launch<kROWS, 16, 1, kBLOCKS_OF_SM, kINDEXED, kSIDES>(problem, units, stream);
    }
    if (problem.width <= 32 * kRUN)
    {
        return launch<kROWS, 32, 1, kBLOCKS_OF_SM, kINDEXED, kSIDES>(problem, units, stream);
    }
    return launch<kINDEXED_ROWS, 32, 2, 2, kINDEXED, kSIDES>(problem, units, stream);
}

//! Where blocks have kINDEXED_ROWS queries for any reason but their number.
cudaError_t launchFour(Problem const& problem, bool isIndexed, bool hasSides, int64_t units, cudaStream_t stream)
{
    if (hasSides)
    {
        return isIndexed ? launchWidth<kINDEXED_ROWS, 3, true, true>(problem, units, stream)
                         : launchWidth<kINDEXED_ROWS, 3, false, true>(problem, units, stream);
    }
    return isIndexed ? launchWidth<kINDEXED_ROWS, 3, true, false>(problem, units, stream)
                     : launchWidth<kINDEXED_ROWS, 3, false, false>(problem, units, stream);
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
    if (choice.rows == kINDEXED_ROWS)
    {
        status = launchFour(problem, sizes.isIndexed, sizes.hasSides(), choice.units, stream);
    }
    else
    {
        status = choice.rows == 1 ? launchWidth<1, 4, false, false>(problem, choice.units, stream)
                                  : launchWidth<8, 2, false, false>(problem, choice.units, stream);
    }
    if (status != cudaSuccess || sums == nullptr)
    {
        return status;
    }
    auto const numRows = static_cast<unsigned>(sizes.batch * sizes.kvHeads * sizes.rows());
    return launchKernel(kvAttentionMergeKernel, dim3(numRows), dim3(kTHREADS), 0, stream, problem, choice.rows);
}

} // namespace trtc::kv_attention
