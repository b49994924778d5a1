// TokenSelect on the CPU: the best are found without sorting the rest, then rows are copied and the rest is summed.
#pragma once

#include <algorithm>
#include <limits>

#include "common/copy.h"
#include "common/half.h"
#include "common/order.h"
#include "common/parallel.h"
#include "common/simd.h"
#include "token_select/contract.h"

namespace trtc::token_select
{

namespace cpu
{
constexpr int64_t kCHUNK = 128;           //!< channels fused at a time
constexpr int64_t kTASK_BYTES = 1 << 16;  //!< about what is worth a task of its own
constexpr int64_t kTASK_TOKENS = 1 << 11; //!< the same for what is done once for each token

inline size_t itemBytes(Sizes const& sizes)
{
    return static_cast<size_t>(roundUp(sizes.numTokens * static_cast<int64_t>(sizeof(uint64_t) + sizeof(float)), 64));
}

//! One item: its scores as float, and the positions of the kept and of the other tokens.
template <typename Score>
void select(Sizes const& sizes, Score const* given, uint64_t* keys, float* score, int64_t* index, int64_t* rest)
{
    int64_t const numTokens = sizes.numTokens;
    int64_t const numKept = sizes.numKept;
    toFloats(score, given, numTokens);
    for (int64_t i = 0; i < numTokens; ++i)
    {
        keys[i] = bestFirst(ordinary(score[i]), static_cast<uint32_t>(i));
    }
    for (int64_t const position : sizes.forced)
    {
        keys[position] = bestFirst(std::numeric_limits<float>::infinity(), static_cast<uint32_t>(position));
    }
    if (numKept > 0 && numKept < numTokens)
    {
        std::nth_element(keys, keys + numKept, keys + numTokens);
    }
    if (sizes.byScore)
    {
        std::sort(keys, keys + numKept);
    }
    for (int64_t i = 0; i < numKept; ++i)
    {
        index[i] = indexOfBestFirst(keys[i]);
    }
    for (int64_t i = numKept; i < numTokens; ++i)
    {
        rest[i - numKept] = indexOfBestFirst(keys[i]);
    }
    if (!sizes.byScore)
    {
        std::sort(index, index + numKept);
    }
    std::sort(rest, rest + sizes.numRest());
}

//! Channels `begin` to `end` of the sum of score * x over the rest, by position.
template <typename T>
void fuse(Sizes const& sizes, T const* x, float const* score, int64_t const* rest, T* y, int64_t begin, int64_t end)
{
    float sum[kCHUNK] = {};
    float row[kCHUNK];
    int64_t const count = end - begin;
    for (int64_t i = 0; i < sizes.numRest(); ++i)
    {
        toFloats(row, x + rest[i] * sizes.channels + begin, count);
        float const weight = score[rest[i]];
        for (int64_t c = 0; c < count; ++c)
        {
            sum[c] += weight * row[c];
        }
    }
    fromFloats(y + begin, sum, count);
}
} // namespace cpu

inline size_t cpuWorkspaceBytes(Sizes const& sizes)
{
    return cpu::itemBytes(sizes) * static_cast<size_t>(sizes.batch);
}

//! `score` is of any floating type. Sizes have been checked.
template <typename T>
void selectTokens(Sizes const& sizes, T const* x, void const* score, DType scoreType, T* y, int64_t* index,
    int64_t* rest, void* workspace, ParallelFor const& parallelFor)
{
    int64_t const numTokens = sizes.numTokens;
    int64_t const channels = sizes.channels;
    auto const keysOf = [&](int64_t item)
    {
        return reinterpret_cast<uint64_t*>(
            static_cast<char*>(workspace) + cpu::itemBytes(sizes) * static_cast<size_t>(item));
    };
    auto const scoreOf = [&](int64_t item) { return reinterpret_cast<float*>(keysOf(item) + numTokens); };
    parallelFor(sizes.batch, cpu::kTASK_TOKENS / (numTokens + 1) + 1,
        [&](int64_t begin, int64_t end)
        {
            dispatchFloat(scoreType,
                [&](auto tag)
                {
                    using Score = typename decltype(tag)::Type;
                    for (int64_t b = begin; b < end; ++b)
                    {
                        cpu::select(sizes, static_cast<Score const*>(score) + b * numTokens, keysOf(b), scoreOf(b),
                            index + b * sizes.numKept, rest + b * sizes.numRest());
                    }
                });
        });
    size_t const rowBytes = static_cast<size_t>(channels) * sizeof(T);
    parallelFor(sizes.batch * sizes.numKept, cpu::kTASK_BYTES / static_cast<int64_t>(rowBytes + 1) + 1,
        [&](int64_t begin, int64_t end)
        {
            for (int64_t i = begin; i < end; ++i)
            {
                int64_t const b = i / sizes.numKept;
                T* const to = y + (b * sizes.numOut() + i % sizes.numKept) * channels;
                copyBytes(to, x + (b * numTokens + index[i]) * channels, rowBytes);
            }
        });
    if (!sizes.fuse)
    {
        return;
    }
    int64_t const chunks = roundUp(channels, cpu::kCHUNK) / cpu::kCHUNK;
    parallelFor(sizes.batch * chunks, cpu::kTASK_BYTES / (cpu::kCHUNK * sizes.numRest() + 1) + 1,
        [&](int64_t begin, int64_t end)
        {
            for (int64_t i = begin; i < end; ++i)
            {
                int64_t const b = i / chunks;
                int64_t const first = i % chunks * cpu::kCHUNK;
                cpu::fuse(sizes, x + b * numTokens * channels, scoreOf(b), rest + b * sizes.numRest(),
                    y + (b * sizes.numOut() + sizes.numKept) * channels, first,
                    std::min(first + cpu::kCHUNK, channels));
            }
        });
}

} // namespace trtc::token_select
