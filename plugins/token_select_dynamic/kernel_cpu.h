// TokenSelectDynamic on the CPU: the number of tokens first, without sorting more than must be looked at; then the best
// of that number, and the rows are copied.
#pragma once

#include <algorithm>
#include <limits>

#include "common/copy.h"
#include "common/half.h"
#include "common/order.h"
#include "common/parallel.h"
#include "common/simd.h"
#include "token_select_dynamic/contract.h"
#include "token_select_dynamic/mass.h"

namespace trtc::token_select_dynamic
{

namespace cpu
{
constexpr int64_t kTASK_BYTES = 1 << 16;  //!< about what is worth a task of its own
constexpr int64_t kTASK_TOKENS = 1 << 11; //!< the same for what is done once for each token

//! The scratch memory of one item of the batch.
struct Item
{
    uint64_t* keys; //!< [N], the best first once they are sorted
    float* score;   //!< [N], infinite where a position is forced
    int32_t* kept;  //!< [max_kept], positions of the kept tokens, ascending
};

inline int64_t itemBytes(Sizes const& sizes)
{
    return roundUp(sizes.numTokens * 12 + sizes.maxKept * 4, 64);
}

inline Item itemOf(Sizes const& sizes, void* workspace, int64_t index)
{
    char* const start = static_cast<char*>(workspace) + itemBytes(sizes) * index;
    auto* const score = reinterpret_cast<float*>(start + sizes.numTokens * 8);
    return {reinterpret_cast<uint64_t*>(start), score, reinterpret_cast<int32_t*>(score + sizes.numTokens)};
}

inline bool isForced(float score)
{
    return score == std::numeric_limits<float>::infinity();
}

//! How many reach the threshold, the forced ones among them.
inline int64_t countByThreshold(Sizes const& sizes, Item const& item)
{
    int64_t count = 0;
    for (int64_t i = 0; i < sizes.numTokens; ++i)
    {
        count += item.score[i] >= sizes.threshold ? 1 : 0;
    }
    return count;
}

//! How many of the best hold the share of the mass. Sorts the best max_kept keys.
inline int64_t countByMass(Sizes const& sizes, Item const& item)
{
    uint32_t largest = 1;
    for (int64_t i = 0; i < sizes.numTokens; ++i)
    {
        largest = std::max(largest, isForced(item.score[i]) ? 1U : exponentOf(item.score[i]));
    }
    uint64_t total = 0;
    for (int64_t i = 0; i < sizes.numTokens; ++i)
    {
        total += isForced(item.score[i]) ? 0U : massOf(item.score[i], largest);
    }
    uint64_t const wanted = wantedMass(total, sizes.threshold);
    if (sizes.maxKept < sizes.numTokens)
    {
        std::nth_element(item.keys, item.keys + sizes.maxKept, item.keys + sizes.numTokens);
    }
    std::sort(item.keys, item.keys + sizes.maxKept);
    uint64_t before = 0;
    int64_t count = 0;
    while (count < sizes.maxKept && before < wanted)
    {
        float const score = item.score[indexOfBestFirst(item.keys[count])];
        before += isForced(score) ? 0U : massOf(score, largest);
        ++count;
    }
    return count;
}

//! One item: its number of tokens, and their positions.
template <typename Score>
int64_t select(Sizes const& sizes, Score const* given, Item const& item)
{
    int64_t const numTokens = sizes.numTokens;
    toFloats(item.score, given, numTokens);
    std::transform(item.score, item.score + numTokens, item.score, &ordinary);
    for (int64_t const position : sizes.forced)
    {
        item.score[position] = std::numeric_limits<float>::infinity();
    }
    auto const makeKeys = [&]
    {
        for (int64_t i = 0; i < numTokens; ++i)
        {
            item.keys[i] = bestFirst(item.score[i], static_cast<uint32_t>(i));
        }
    };
    if (sizes.byMass)
    {
        makeKeys();
    }
    int64_t const wanted = sizes.byMass ? countByMass(sizes, item) : countByThreshold(sizes, item);
    int64_t const least = std::max(sizes.minKept, static_cast<int64_t>(sizes.forced.size()));
    int64_t const count = std::min(std::max(wanted, least), sizes.maxKept);
    if (!sizes.byMass && count == wanted) // those that reach the threshold and no others: nothing to sort
    {
        for (int64_t i = 0, slot = 0; slot < count; ++i)
        {
            item.kept[slot] = static_cast<int32_t>(i);
            slot += item.score[i] >= sizes.threshold ? 1 : 0;
        }
        return count;
    }
    if (!sizes.byMass)
    {
        makeKeys();
        if (count < numTokens)
        {
            std::nth_element(item.keys, item.keys + count, item.keys + numTokens);
        }
    }
    for (int64_t i = 0; i < count; ++i)
    {
        item.kept[i] = static_cast<int32_t>(indexOfBestFirst(item.keys[i]));
    }
    std::sort(item.kept, item.kept + count);
    return count;
}
} // namespace cpu

inline size_t cpuWorkspaceBytes(Sizes const& sizes)
{
    return static_cast<size_t>(cpu::itemBytes(sizes) * sizes.batch);
}

//! Fills `count`, and keeps the positions in the workspace; the largest count. Sizes have been checked.
inline int64_t selectTokens(Sizes const& sizes, void const* score, DType scoreType, int64_t* count, void* workspace,
    ParallelFor const& parallelFor)
{
    parallelFor(sizes.batch, cpu::kTASK_TOKENS / (sizes.numTokens + 1) + 1,
        [&](int64_t begin, int64_t end)
        {
            dispatchFloat(scoreType,
                [&](auto tag)
                {
                    using Score = typename decltype(tag)::Type;
                    for (int64_t b = begin; b < end; ++b)
                    {
                        count[b] = cpu::select(sizes, static_cast<Score const*>(score) + b * sizes.numTokens,
                            cpu::itemOf(sizes, workspace, b));
                    }
                });
        });
    int64_t largest = 0;
    for (int64_t b = 0; b < sizes.batch; ++b)
    {
        largest = std::max(largest, count[b]);
    }
    return largest;
}

//! What selectTokens() found, in outputs of `length` rows.
template <typename T>
void copyTokens(Sizes const& sizes, int64_t length, T const* x, int64_t const* count, T* y, int64_t* index, T* valid,
    void* workspace, ParallelFor const& parallelFor)
{
    auto const rowBytes = static_cast<size_t>(sizes.channels) * sizeof(T);
    parallelFor(sizes.batch * length, cpu::kTASK_BYTES / static_cast<int64_t>(rowBytes + 1) + 1,
        [&](int64_t begin, int64_t end)
        {
            for (int64_t i = begin; i < end; ++i)
            {
                int64_t const b = i / length;
                int64_t const slot = i % length;
                bool const isToken = slot < count[b];
                int64_t const token = isToken ? cpu::itemOf(sizes, workspace, b).kept[slot] : -1;
                index[i] = token;
                valid[i] = fromFloat<T>(isToken ? 1.0F : 0.0F);
                if (isToken)
                {
                    copyBytes(y + i * sizes.channels, x + (b * sizes.numTokens + token) * sizes.channels, rowBytes);
                }
                else
                {
                    clearBytes(y + i * sizes.channels, rowBytes);
                }
            }
        });
}

} // namespace trtc::token_select_dynamic
