// TokenMerge on the CPU: tiles of the similarity stay in registers, each row of A keeps a running best partner, and the
// merge reads every token once. All pairs go through one micro-kernel that sums over D in order, so that equal features
// give equal similarities wherever they stand, and the result does not depend on the threads.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/copy.h"
#include "common/half.h"
#include "common/order.h"
#include "common/parallel.h"
#include "common/simd.h"
#include "token_merge/contract.h"

namespace trtc::token_merge
{

namespace cpu
{
constexpr int64_t kROWS = kLANES == 16 ? 8 : 4; //!< rows of A in a tile; accumulators fill half of the registers
constexpr int64_t kCOLUMNS = 2 * kLANES;        //!< rows of B in a tile
constexpr int64_t kCHUNK = 256;                 //!< channels merged at a time
constexpr int64_t kTASK_BYTES = 1 << 16;        //!< about what is worth a task of its own

//! The scratch memory of one item of the batch.
struct Item
{
    float* unitA;      //!< [numA rounded up, D], rows of A normalised
    float* unitB;      //!< [panels, D, kCOLUMNS], rows of B normalised, transposed in panels
    float* best;       //!< [numA rounded up], similarity to the partner
    uint64_t* ranking; //!< [numA], keys of the rows of A, the merged ones first
    int32_t* match;    //!< [numA rounded up], the partner in B
    int32_t* place;    //!< [numA], output row of each row of A
    int32_t* source;   //!< [outB], token of each output row before those of B
    int32_t* arrivals; //!< [numMerged], merged rows of A by partner
    int32_t* first;    //!< [numB + 1], where the arrivals of each row of B start
};

class Layout
{
public:
    explicit Layout(Sizes const& sizes)
        : mSizes(sizes)
    {
    }

    size_t itemBytes() const
    {
        int64_t bytes = 0;
        lay(nullptr, bytes);
        return static_cast<size_t>(roundUp(bytes, 64));
    }

    Item item(void* workspace, int64_t index) const
    {
        int64_t bytes = 0;
        return lay(static_cast<char*>(workspace) + itemBytes() * static_cast<size_t>(index), bytes);
    }

private:
    //! Without memory only the bytes are counted.
    Item lay(char* start, int64_t& bytes) const
    {
        Sizes const& s = mSizes;
        int64_t const rowsA = roundUp(s.numA(), kROWS);
        Item item{};
        take(start, bytes, item.unitA, rowsA * s.width);
        take(start, bytes, item.unitB, roundUp(s.numB(), kCOLUMNS) * s.width);
        take(start, bytes, item.best, rowsA);
        take(start, bytes, item.ranking, s.numA());
        take(start, bytes, item.match, rowsA);
        take(start, bytes, item.place, s.numA());
        take(start, bytes, item.source, s.outB());
        take(start, bytes, item.arrivals, s.numMerged);
        take(start, bytes, item.first, s.numB() + 1);
        return item;
    }

    template <typename T>
    static void take(char* start, int64_t& bytes, T*& pointer, int64_t count)
    {
        pointer = start == nullptr ? nullptr : reinterpret_cast<T*>(start + bytes);
        bytes += roundUp(count * static_cast<int64_t>(sizeof(T)), 64);
    }

    Sizes mSizes;
};

//! The length of one row of the metric.
template <typename T>
float lengthOf(T const* row, int64_t width)
{
    float chunk[kCHUNK];
    FloatVector sums{};
    for (int64_t d = 0; d < width; d += kCHUNK)
    {
        int64_t const count = std::min(kCHUNK, width - d);
        toFloats(chunk, row + d, count);
        std::fill(chunk + count, chunk + roundUp(count, kLANES), 0.0F);
        for (int64_t i = 0; i < count; i += kLANES)
        {
            FloatVector const part = load(chunk + i);
            sums += part * part;
        }
    }
    float sum = 0.0F;
    for (int32_t lane = 0; lane < kLANES; ++lane)
    {
        sum += sums[lane];
    }
    return std::sqrt(sum);
}

//! Normalises tokens `begin` to `end` of one item into its A or B, by the parity of their position.
template <typename T>
void pack(Sizes const& sizes, Item const& item, T const* metric, int64_t begin, int64_t end)
{
    int64_t const width = sizes.width;
    float chunk[kCHUNK];
    for (int64_t token = begin; token < end; ++token)
    {
        T const* const row = metric + token * width;
        float const length = lengthOf(row, width);
        bool const counts = hasDirection(length);
        float const divisor = counts ? length : 1.0F;
        int64_t const b = (token - sizes.firstB()) / 2;
        bool const isB = token % 2 == 1;
        float* const to = isB ? item.unitB + b / kCOLUMNS * kCOLUMNS * width + b % kCOLUMNS
                              : item.unitA + (token - sizes.firstA()) / 2 * width;
        int64_t const stride = isB ? kCOLUMNS : 1;
        for (int64_t d = 0; d < width; d += kCHUNK)
        {
            int64_t const count = std::min(kCHUNK, width - d);
            toFloats(chunk, row + d, count);
            if (!counts)
            {
                std::fill(chunk, chunk + count, 0.0F);
            }
            for (int64_t i = 0; i < count; ++i)
            {
                to[(d + i) * stride] = chunk[i] / divisor;
            }
        }
    }
}

//! Zeroes what the tiles read beyond the last row of A and of B.
inline void padTiles(Sizes const& sizes, Item const& item)
{
    int64_t const width = sizes.width;
    int64_t const numA = sizes.numA();
    std::fill(item.unitA + numA * width, item.unitA + roundUp(numA, kROWS) * width, 0.0F);
    int64_t const used = sizes.numB() % kCOLUMNS;
    if (used != 0)
    {
        float* const panel = item.unitB + (sizes.numB() - used) * width;
        for (int64_t d = 0; d < width; ++d)
        {
            std::fill(panel + d * kCOLUMNS + used, panel + (d + 1) * kCOLUMNS, 0.0F);
        }
    }
}

//! The partners of kROWS rows of A, from `row` on.
inline void matchRows(Sizes const& sizes, Item const& item, int64_t row)
{
    int64_t const width = sizes.width;
    int64_t const numB = sizes.numB();
    constexpr float kNONE = -std::numeric_limits<float>::infinity();
    float const* const a = item.unitA + row * width;
    FloatVector best[kROWS][2];
    IntVector match[kROWS][2];
    for (int64_t i = 0; i < kROWS; ++i)
    {
        best[i][0] = best[i][1] = broadcast(kNONE);
        match[i][0] = match[i][1] = IntVector{};
    }
    IntVector column[2] = {lanes(), lanes() + kLANES};
    IntVector const end = broadcast(static_cast<int32_t>(numB));
    for (int64_t b = 0; b < numB; b += kCOLUMNS)
    {
        float const* const panel = item.unitB + b * width;
        FloatVector sum[kROWS][2]{};
        for (int64_t d = 0; d < width; ++d)
        {
            FloatVector const b0 = load(panel + d * kCOLUMNS);
            FloatVector const b1 = load(panel + d * kCOLUMNS + kLANES);
#pragma GCC unroll 8
            for (int64_t i = 0; i < kROWS; ++i)
            {
                FloatVector const left = broadcast(a[i * width + d]);
                sum[i][0] += left * b0;
                sum[i][1] += left * b1;
            }
        }
#pragma GCC unroll 8
        for (int64_t i = 0; i < kROWS; ++i)
        {
            for (int64_t half = 0; half < 2; ++half)
            {
                // Only a larger one replaces the best, so that of equal ones the first stays.
                IntVector const better = (sum[i][half] > best[i][half]) & (column[half] < end);
                best[i][half] = better ? sum[i][half] : best[i][half];
                match[i][half] = better ? column[half] : match[i][half];
            }
        }
        column[0] += static_cast<int32_t>(kCOLUMNS);
        column[1] += static_cast<int32_t>(kCOLUMNS);
    }
    for (int64_t i = 0; i < kROWS; ++i)
    {
        uint64_t key = bestFirst(kNONE, 0);
        for (int64_t lane = 0; lane < kCOLUMNS; ++lane)
        {
            float const value = best[i][lane / kLANES][lane % kLANES];
            key = std::min(key, bestFirst(value, static_cast<uint32_t>(match[i][lane / kLANES][lane % kLANES])));
        }
        item.best[row + i] = scoreOfBestFirst(key);
        item.match[row + i] = static_cast<int32_t>(indexOfBestFirst(key));
    }
}

//! Which rows of A merge, where every row goes, and what arrives at each row of B.
inline void select(Sizes const& sizes, Item const& item, int64_t* dest)
{
    int64_t const numA = sizes.numA();
    int64_t const numB = sizes.numB();
    int64_t const numMerged = sizes.numMerged;
    int64_t const numProtected = sizes.numProtected;
    int64_t const outB = sizes.outB();
    for (int64_t a = 0; a < numA; ++a)
    {
        item.ranking[a] = bestFirst(item.best[a], static_cast<uint32_t>(a));
    }
    if (numMerged < numA)
    {
        std::nth_element(item.ranking, item.ranking + numMerged, item.ranking + numA);
        if (sizes.bySimilarity)
        {
            std::sort(item.ranking + numMerged, item.ranking + numA);
        }
    }
    // place: -1 for what merges, then the output row of the others
    std::fill(item.place, item.place + numA, 0);
    for (int64_t i = 0; i < numMerged; ++i)
    {
        item.place[indexOfBestFirst(item.ranking[i])] = -1;
    }
    auto const put = [&](int64_t a, int64_t row)
    {
        item.place[a] = static_cast<int32_t>(row);
        item.source[row] = static_cast<int32_t>(sizes.firstA() + 2 * a);
    };
    for (int64_t i = 0; i < numProtected; ++i)
    {
        item.source[i] = static_cast<int32_t>(i);
        dest[i] = i;
    }
    if (sizes.bySimilarity)
    {
        for (int64_t i = numMerged; i < numA; ++i)
        {
            put(indexOfBestFirst(item.ranking[i]), numProtected + i - numMerged);
        }
    }
    else
    {
        for (int64_t a = 0, row = numProtected; a < numA; ++a)
        {
            if (item.place[a] >= 0)
            {
                put(a, row++);
            }
        }
    }
    std::fill(item.first, item.first + numB + 1, 0);
    for (int64_t a = 0; a < numA; ++a)
    {
        if (item.place[a] < 0)
        {
            ++item.first[item.match[a] + 1];
            item.place[a] = static_cast<int32_t>(outB + item.match[a]);
        }
        dest[sizes.firstA() + 2 * a] = item.place[a];
    }
    for (int64_t b = 0; b < numB; ++b)
    {
        item.first[b + 1] += item.first[b];
        dest[sizes.firstB() + 2 * b] = outB + b;
    }
    // Filling moves each start to the end of its group, which is the start of the next one: hence backwards.
    for (int64_t a = numA - 1; a >= 0; --a)
    {
        if (item.place[a] >= outB)
        {
            item.arrivals[--item.first[item.match[a] + 1]] = static_cast<int32_t>(a);
        }
    }
    for (int64_t b = 0; b < numB; ++b)
    {
        item.first[b] = item.first[b + 1];
    }
    item.first[numB] = static_cast<int32_t>(numMerged);
}

//! One row of B with all that arrive at it: the mean, weighted by size.
template <typename T>
void mergeRow(Sizes const& sizes, Item const& item, int64_t b, T const* x, float const* size, T* y, float* ySize)
{
    int64_t const channels = sizes.channels;
    int64_t const token = sizes.firstB() + 2 * b;
    int32_t const* const begin = item.arrivals + item.first[b];
    int32_t const* const end = item.arrivals + item.first[b + 1];
    float total = size[token];
    for (int32_t const* a = begin; a != end; ++a)
    {
        total += size[sizes.firstA() + 2 * *a];
    }
    *ySize = total;
    if (begin == end)
    {
        copyBytes(y, x + token * channels, static_cast<size_t>(channels) * sizeof(T));
        return;
    }
    float sum[kCHUNK];
    float row[kCHUNK];
    for (int64_t c = 0; c < channels; c += kCHUNK)
    {
        int64_t const count = std::min(kCHUNK, channels - c);
        float const own = size[token] / total;
        toFloats(sum, x + token * channels + c, count);
        for (int64_t i = 0; i < count; ++i)
        {
            sum[i] *= own;
        }
        for (int32_t const* a = begin; a != end; ++a)
        {
            int64_t const from = sizes.firstA() + 2 * *a;
            float const share = size[from] / total;
            toFloats(row, x + from * channels + c, count);
            for (int64_t i = 0; i < count; ++i)
            {
                sum[i] += row[i] * share;
            }
        }
        fromFloats(y + c, sum, count);
    }
}
} // namespace cpu

inline size_t cpuWorkspaceBytes(Sizes const& sizes)
{
    return cpu::Layout(sizes).itemBytes() * static_cast<size_t>(sizes.batch);
}

//! `metric` is of any floating type. Sizes have been checked.
template <typename T>
void mergeTokens(Sizes const& sizes, T const* x, void const* metric, DType metricType, float const* size, T* y,
    float* ySize, int64_t* dest, void* workspace, ParallelFor const& parallelFor)
{
    cpu::Layout const layout(sizes);
    int64_t const numTokens = sizes.numTokens;
    int64_t const width = sizes.width;
    int64_t const numOut = sizes.numOut();
    int64_t const channels = sizes.channels;
    int64_t const numFree = numTokens - sizes.numProtected;
    int64_t const numBlocks = roundUp(sizes.numA(), cpu::kROWS) / cpu::kROWS;

    int64_t const packGrain = cpu::kTASK_BYTES / (8 * width + 1) + 1;
    parallelFor(sizes.batch * numFree, packGrain,
        [&](int64_t begin, int64_t end)
        {
            dispatchFloat(metricType,
                [&](auto tag)
                {
                    using Metric = typename decltype(tag)::Type;
                    while (begin < end)
                    {
                        int64_t const b = begin / numFree;
                        int64_t const from = begin % numFree;
                        int64_t const to = std::min(numFree, from + end - begin);
                        cpu::Item const item = layout.item(workspace, b);
                        cpu::pack(sizes, item, static_cast<Metric const*>(metric) + b * numTokens * width,
                            sizes.numProtected + from, sizes.numProtected + to);
                        if (to == numFree)
                        {
                            cpu::padTiles(sizes, item);
                        }
                        begin += to - from;
                    }
                });
        });
    int64_t const blockFlops = 2 * cpu::kROWS * sizes.numB() * width;
    parallelFor(sizes.batch * numBlocks, (1 << 19) / (blockFlops + 1) + 1,
        [&](int64_t begin, int64_t end)
        {
            for (int64_t block = begin; block < end; ++block)
            {
                cpu::matchRows(sizes, layout.item(workspace, block / numBlocks), block % numBlocks * cpu::kROWS);
            }
        });
    parallelFor(sizes.batch, (1 << 11) / numTokens + 1,
        [&](int64_t begin, int64_t end)
        {
            for (int64_t b = begin; b < end; ++b)
            {
                cpu::select(sizes, layout.item(workspace, b), dest + b * numTokens);
            }
        });
    size_t const rowBytes = static_cast<size_t>(channels) * sizeof(T);
    parallelFor(sizes.batch * numOut, cpu::kTASK_BYTES / static_cast<int64_t>(rowBytes + 1) + 1,
        [&](int64_t begin, int64_t end)
        {
            for (int64_t index = begin; index < end; ++index)
            {
                int64_t const b = index / numOut;
                int64_t const row = index % numOut;
                cpu::Item const item = layout.item(workspace, b);
                T const* const tokens = x + b * numTokens * channels;
                float const* const sizesOfItem = size + b * numTokens;
                T* const to = y + index * channels;
                if (row < sizes.outB())
                {
                    copyBytes(to, tokens + item.source[row] * channels, rowBytes);
                    ySize[index] = sizesOfItem[item.source[row]];
                }
                else
                {
                    cpu::mergeRow(sizes, item, row - sizes.outB(), tokens, sizesOfItem, to, ySize + index);
                }
            }
        });
}

} // namespace trtc::token_merge
