// What one block of the kernels of KVAttention does.
#pragma once

#include <algorithm>

#include "kv_attention/weigh.cuh"

namespace trtc::kv_attention::gpu
{

constexpr int32_t kTHREADS = kWARPS * static_cast<int32_t>(kWARP_SIZE);

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
template <int32_t kROWS, int32_t kLANES, int32_t kRUNS, bool kFLOATS, bool kINDEXED, bool kSIDES>
__device__ void attendPart(Problem const& problem, Shared<Shape<kROWS, kLANES, kRUNS>, kROWS, kRUNS, kSIDES>& shared)
{
    using S = Shape<kROWS, kLANES, kRUNS>;
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

//! Where something is done to rows beside their codes: blocks have kINDEXED_ROWS queries.
cudaError_t launchWithSides(Problem const& problem, bool isIndexed, int64_t units, cudaStream_t stream);

} // namespace trtc::kv_attention::gpu
