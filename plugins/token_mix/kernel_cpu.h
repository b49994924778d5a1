// TokenMix on the CPU: a product of matrices in tiles that stay in registers, in float32 whatever the types. How a
// matrix is read depends on the sizes:
// - panels of two vectors of channels times blocks of rows; a panel is packed if several blocks read it, a matrix if
//   several panels do, or once for all if it is the same in every run. The last panel starts earlier where it would not
//   be full.
// - few channels, or what they leave over: vectors lie along the tokens where there are many rows, so that no lane is
//   idle; else one vector holds all channels.
// - few rows: tokens are read in the order in which they lie, and the sums stay in the first cache.
// Each sum depends on the sizes alone, not on the threads.
#pragma once

#include <algorithm>
#include <cstring>

#include "common/half.h"
#include "common/parallel.h"
#include "common/simd.h"
#include "common/softmax.h"
#include "token_mix/contract.h"
#include "token_mix/tiles.h"

namespace trtc::token_mix
{

namespace cpu
{
constexpr int64_t kTASK_FLOPS = 1 << 21;    //!< about what is worth a task of its own
constexpr int64_t kTASK_VALUES = 1 << 14;   //!< the same for what is done once for each value
constexpr int64_t kFEW_ROWS = 4;            //!< up to which tokens are read in order
constexpr int64_t kFEW_ROWS_CHANNELS = 512; //!< channels whose sums stay in the first cache
constexpr int64_t kPANELS_TO_PACK = 6;      //!< readers that are worth packing a matrix
constexpr int64_t kSET_BYTES = 4096;        //!< rows that lie so far apart push each other out of the first cache
constexpr int64_t kTURNED_ROWS = 4;         //!< rows and channels of a tile along the tokens
constexpr int64_t kTURNED_CHANNELS = 4;

//! How the work is done, and where the scratch memory of each step lies, in floats.
struct Plan
{
    bool isInOrder;    //!< few rows
    bool isGiven;      //!< the matrix is read where it lies; else from `plain`
    bool isPacked;     //!< … and then packed by blocks
    bool isTurned;     //!< the channels that whole panels leave over lie along the tokens
    bool isCopied;     //!< too few channels for a vector: tokens are copied, so that reading beyond one does no harm
    int64_t ofRow;     //!< of the matrix
    int64_t blocks;    //!< of rows
    int64_t panels;    //!< without what is turned
    int64_t rest;      //!< channels beyond the whole panels
    int64_t ofTurned;  //!< floats of one turned channel
    int64_t panel;     //!< floats of a packed panel, or of an item that is copied
    int64_t packed;    //!< where the packed blocks start in the memory of the matrix, behind the rows that were made
    int64_t matrixEnd; //!< floats of that memory
    int64_t tokens;    //!< packed panels, or items that were copied
    int64_t turned;
    int64_t end;

    //! `isKept`: what is made of the matrix stays between runs, and so depends on its own sizes only.
    Plan(Sizes const& sizes, bool isFloat, bool isKept)
    {
        int64_t const depth = sizes.numTokens;
        int64_t const rows = sizes.numMatrices * sizes.numOut;
        isInOrder = sizes.numOut <= kFEW_ROWS && sizes.channels >= kPANEL;
        isGiven = isFloat && !sizes.softmax;
        // Rows that were made here lie so that they do not push each other out.
        ofRow = isGiven ? depth : roundUp(depth, kLANES);
        bool const isFar = ofRow * static_cast<int64_t>(sizeof(float)) % kSET_BYTES == 0 && ofRow > 0;
        ofRow += isFar && !isGiven ? kLANES : 0;
        blocks = (sizes.numOut + kMOST_ROWS - 1) / kMOST_ROWS;
        rest = sizes.channels % kPANEL;
        double const tile = static_cast<double>(sizes.numOut) * static_cast<double>(depth);
        double const along = static_cast<double>(rest)
            * (static_cast<double>(sizes.numOut) * static_cast<double>(depth / kLANES + 10)
                + static_cast<double>(depth));
        isTurned = !isInOrder && rest > 0 && rest <= kLANES && (along < tile || sizes.channels == 1);
        isCopied = !isTurned && sizes.channels < kLANES;
        panels = isInOrder ? 0 : sizes.channels / kPANEL + (rest > 0 && !isTurned ? 1 : 0);
        int64_t const readers = panels * (sizes.numMatrices == 1 ? sizes.batch : 1);
        bool const isWorthIt = readers >= kPANELS_TO_PACK || (isFar && isGiven && panels > 0 && blocks > 1);
        isPacked = isKept ? sizes.numOut > kFEW_ROWS : isWorthIt;
        ofTurned = roundUp(depth, kLANES);
        panel = isCopied ? depth * sizes.channels + kLANES : depth * kPANEL;
        panel = roundUp(panel, kLANES);
        packed = isGiven ? 0 : roundUp(rows * ofRow, kLANES);
        matrixEnd = packed + (isPacked ? roundUp(rows * depth, kLANES) : 0);
        tokens = isKept ? 0 : matrixEnd;
        turned = tokens + (panels > 0 ? sizes.batch * panels * panel : 0);
        end = turned + (isTurned ? sizes.batch * rest * ofTurned : 0);
    }
};

//! The rows of a block: as many in each, or one more in the first of them.
struct Block
{
    int64_t first;
    int64_t count;

    Block(int64_t rows, int64_t blocks, int64_t index)
        : first(rows / blocks * index + std::min(rows % blocks, index))
        , count(rows / blocks + (index < rows % blocks ? 1 : 0))
    {
    }
};

//! Where the values of a call lie.
template <typename T>
struct Data
{
    Sizes const& sizes;
    Plan const& plan;
    T const* x;
    T* y;
    float const* given; //!< the matrix, if it is read where it lies
    float* matrix;      //!< what is made of it
    float* scratch;

    float const* rowsOf(int64_t item, int64_t row) const
    {
        return (plan.isGiven ? given : matrix) + (sizes.matrixOf(item) * sizes.numOut + row) * plan.ofRow;
    }

    Rows blockOf(int64_t item, Block const& block) const
    {
        if (!plan.isPacked)
        {
            return {rowsOf(item, block.first), plan.ofRow, 1};
        }
        int64_t const row = sizes.matrixOf(item) * sizes.numOut + block.first;
        return {matrix + plan.packed + row * sizes.numTokens, 1, block.count};
    }

    T const* tokensOf(int64_t item) const
    {
        return x + item * sizes.numTokens * sizes.channels;
    }

    T* outOf(int64_t item, int64_t row) const
    {
        return y + (item * sizes.numOut + row) * sizes.channels;
    }
};

//! One row of the matrix in float32, its softmax if asked for.
template <typename T, typename Weight>
void makeRow(Data<T> const& data, Weight const* weight, int64_t row)
{
    float* const to = data.matrix + row * data.plan.ofRow;
    toFloats(to, weight + row * data.sizes.numTokens, data.sizes.numTokens);
    if (data.sizes.softmax)
    {
        softmax(to, data.sizes.numTokens);
    }
}

//! A block of rows with a panel, which is packed on the way if there is room for that.
inline void multiplyBlock(int64_t depth, int64_t numRows, Rows const& rows, bool isPacked, int64_t vectors,
    Tokens const& tokens, Sums const& to)
{
    dispatchRows(numRows,
        [&](auto count)
        {
            constexpr int64_t kROWS = decltype(count)::value;
            if (vectors == 1)
            {
                isPacked ? multiplyTile<kROWS, 1, true, false>(depth, rows, tokens, to)
                         : multiplyTile<kROWS, 1, false, false>(depth, rows, tokens, to);
            }
            else if (tokens.packed != nullptr)
            {
                isPacked ? multiplyTile<kROWS, 2, true, true>(depth, rows, tokens, to)
                         : multiplyTile<kROWS, 2, false, true>(depth, rows, tokens, to);
            }
            else
            {
                isPacked ? multiplyTile<kROWS, 2, true, false>(depth, rows, tokens, to)
                         : multiplyTile<kROWS, 2, false, false>(depth, rows, tokens, to);
            }
        });
}

//! All rows of one panel of one item. The sums go to y itself if `isDirect`, and `at` says where; else `write` takes a
//! row of y and its sums.
template <typename T, typename Write>
void mixPanel(
    Data<T> const& data, int64_t item, int64_t vectors, Tokens tokens, bool isDirect, Sums at, Write const& write)
{
    Sizes const& sizes = data.sizes;
    alignas(64) float tile[kMOST_ROWS * kPANEL];
    for (int64_t index = 0; index < data.plan.blocks; ++index)
    {
        Block const block(sizes.numOut, data.plan.blocks, index);
        Sums to = at;
        to.first = isDirect ? at.first + block.first * at.ofRow : tile;
        multiplyBlock(sizes.numTokens, block.count, data.blockOf(item, block), data.plan.isPacked, vectors, tokens, to);
        if (tokens.packed != nullptr)
        {
            tokens = {tokens.packed, kPANEL, {0, kLANES}, nullptr};
        }
        for (int64_t i = 0; !isDirect && i < block.count; ++i)
        {
            write(data.outOf(item, block.first + i), tile + i * kPANEL);
        }
    }
}

//! A panel of an item that has a vector of channels or more.
template <typename T>
void mixWide(Data<T> const& data, int64_t item, int64_t panel)
{
    Sizes const& sizes = data.sizes;
    int64_t const first = panel * kPANEL;
    int64_t const count = std::min(kPANEL, sizes.channels - first);
    int64_t const vectors = count > kLANES ? 2 : 1;
    // A panel that would not be full starts with its first channel and ends with its last: vectors overlap.
    int64_t const at = vectors == 2 ? first : sizes.channels - kLANES;
    int64_t const second = std::min(first + kLANES, sizes.channels - kLANES);
    float* const packed = data.scratch + data.plan.tokens + (item * data.plan.panels + panel) * data.plan.panel;
    T const* const from = data.tokensOf(item);
    Tokens tokens{packed, vectors * kLANES, {0, kLANES}, nullptr};
    Sums to{nullptr, kPANEL, {0, kLANES}};
    bool isDirect = false;
    if constexpr (std::is_same_v<T, float>)
    {
        isDirect = vectors == 2 || count == kLANES;
        to = isDirect ? Sums{data.outOf(item, 0) + at, sizes.channels, {0, second - at}} : to;
        bool const packs = data.plan.blocks > 1 && vectors == 2;
        tokens = {
            reinterpret_cast<float const*>(from) + at, sizes.channels, {0, second - at}, packs ? packed : nullptr};
    }
    else
    {
        for (int64_t n = 0; n < sizes.numTokens; ++n)
        {
            toFloats(packed + n * vectors * kLANES, from + n * sizes.channels + at, kLANES);
            if (vectors == 2)
            {
                toFloats(packed + n * kPANEL + kLANES, from + n * sizes.channels + second, kLANES);
            }
        }
    }
    mixPanel(data, item, vectors, tokens, isDirect, to,
        [&](T* row, float const* values)
        {
            if (vectors == 2)
            {
                fromFloats(row + first, values, kLANES);
                fromFloats(row + second, values + kLANES, kLANES);
            }
            else // the channels before these are in another panel, and another task writes them
            {
                fromFloats(row + first, values + kLANES - count, count);
            }
        });
}

//! All rows of an item that has fewer channels than a vector: each vector begins with a token, and what follows it
//! comes from the next one and is not written.
template <typename T>
void mixNarrow(Data<T> const& data, int64_t item)
{
    Sizes const& sizes = data.sizes;
    float* const copied = data.scratch + data.plan.tokens + item * data.plan.panel;
    int64_t const values = sizes.numTokens * sizes.channels;
    toFloats(copied, data.tokensOf(item), values);
    std::fill(copied + values, copied + data.plan.panel, 0.0F);
    mixPanel(data, item, 1, {copied, sizes.channels, {0, 0}, nullptr}, false, {nullptr, kPANEL, {0, 0}},
        [&](T* row, float const* mixed) { fromFloats(row, mixed, sizes.channels); });
}

//! The last channels of one item, each in a row.
template <typename T>
void turn(Data<T> const& data, int64_t item)
{
    Sizes const& sizes = data.sizes;
    Plan const& plan = data.plan;
    float* const to = data.scratch + plan.turned + item * plan.rest * plan.ofTurned;
    T const* const from = data.tokensOf(item) + sizes.channels - plan.rest;
    for (int64_t n = 0; n < sizes.numTokens; ++n)
    {
        for (int64_t c = 0; c < plan.rest; ++c)
        {
            to[c * plan.ofTurned + n] = toFloat(from[n * sizes.channels + c]);
        }
    }
    for (int64_t c = 0; c < plan.rest; ++c)
    {
        std::fill(to + c * plan.ofTurned + sizes.numTokens, to + (c + 1) * plan.ofTurned, 0.0F);
    }
}

//! kROWS rows with all turned channels of an item.
template <int64_t kROWS, typename T>
void mixTurned(Data<T> const& data, int64_t item, int64_t row)
{
    Sizes const& sizes = data.sizes;
    Plan const& plan = data.plan;
    float const* const turned = data.scratch + plan.turned + item * plan.rest * plan.ofTurned;
    float const* const rows = data.rowsOf(item, row);
    float sums[kROWS * kLANES];
    auto const some = [&](auto count, int64_t c)
    {
        multiplyTurned<kROWS, decltype(count)::value>(
            sizes.numTokens, rows, plan.ofRow, turned + c * plan.ofTurned, plan.ofTurned, sums + c, kLANES);
    };
    for (int64_t c = 0; c < plan.rest; c += kTURNED_CHANNELS)
    {
        switch (std::min(kTURNED_CHANNELS, plan.rest - c))
        {
        case 1: some(std::integral_constant<int64_t, 1>{}, c); break;
        case 2: some(std::integral_constant<int64_t, 2>{}, c); break;
        case 3: some(std::integral_constant<int64_t, 3>{}, c); break;
        default: some(std::integral_constant<int64_t, kTURNED_CHANNELS>{}, c); break;
        }
    }
    for (int64_t i = 0; i < kROWS; ++i)
    {
        fromFloats(data.outOf(item, row + i) + sizes.channels - plan.rest, sums + i * kLANES, plan.rest);
    }
}

//! Rows `begin` to `end`, counted through all items.
template <typename T>
void mixTurnedRows(Data<T> const& data, int64_t begin, int64_t end)
{
    for (int64_t i = begin; i < end;)
    {
        int64_t const item = i / data.sizes.numOut;
        int64_t const row = i % data.sizes.numOut;
        if (std::min(end - i, data.sizes.numOut - row) >= kTURNED_ROWS)
        {
            mixTurned<kTURNED_ROWS>(data, item, row);
            i += kTURNED_ROWS;
        }
        else
        {
            mixTurned<1>(data, item, row);
            ++i;
        }
    }
}

//! Few rows: channels `begin` to `end` of one item, at least a vector of them.
template <int64_t kROWS, typename T>
void mixInOrderOf(Data<T> const& data, int64_t item, int64_t begin, int64_t end)
{
    constexpr int64_t kTOKENS = std::min<int64_t>((kLANES == 16 ? 16 : 8) / kROWS, 8);
    Sizes const& sizes = data.sizes;
    int64_t const numVectors = (end - begin + kLANES - 1) / kLANES;
    float sums[kROWS * 2 * kFEW_ROWS_CHANNELS];
    std::fill(sums, sums + kROWS * numVectors * kLANES, 0.0F);
    auto const offset = [&](int64_t v) { return std::min(begin + v * kLANES, end - kLANES); };
    T const* const x = data.tokensOf(item);
    Rows rows{data.rowsOf(item, 0), data.plan.ofRow, 1};
    int64_t n = 0;
    for (; n + kTOKENS <= sizes.numTokens; n += kTOKENS, rows.first += kTOKENS)
    {
        addTokens<kROWS, kTOKENS>(rows, x + n * sizes.channels, sizes.channels, numVectors, offset, sums);
    }
    for (; n < sizes.numTokens; ++n, ++rows.first)
    {
        addTokens<kROWS, 1>(rows, x + n * sizes.channels, sizes.channels, numVectors, offset, sums);
    }
    for (int64_t i = 0; i < kROWS; ++i)
    {
        for (int64_t v = 0; v < numVectors; ++v)
        {
            fromFloats(data.outOf(item, i) + offset(v), sums + (i * numVectors + v) * kLANES, kLANES);
        }
    }
}

//! Few rows: one of the shares of an item's channels.
template <typename T>
void mixInOrder(Data<T> const& data, int64_t item, int64_t share, int64_t shares)
{
    // Whole vectors to each share; the last one takes the channels that are left too.
    Block const vectors(data.sizes.channels / kLANES, shares, share);
    int64_t const begin = vectors.first * kLANES;
    int64_t const end = share + 1 == shares ? data.sizes.channels : begin + vectors.count * kLANES;
    switch (data.sizes.numOut)
    {
    case 1: return mixInOrderOf<1>(data, item, begin, end);
    case 2: return mixInOrderOf<2>(data, item, begin, end);
    case 3: return mixInOrderOf<3>(data, item, begin, end);
    default: return mixInOrderOf<kFEW_ROWS>(data, item, begin, end);
    }
}

template <typename T>
void prepareMatrix(Data<T> const& data, void const* weight, DType weightType, ParallelFor const& parallelFor)
{
    Sizes const& sizes = data.sizes;
    Plan const& plan = data.plan;
    if (!plan.isGiven)
    {
        parallelFor(sizes.numMatrices * sizes.numOut, kTASK_VALUES / (sizes.numTokens + 1) + 1,
            [&](int64_t begin, int64_t end)
            {
                dispatchFloat(weightType,
                    [&](auto tag)
                    {
                        using Weight = typename decltype(tag)::Type;
                        for (int64_t row = begin; row < end; ++row)
                        {
                            makeRow(data, static_cast<Weight const*>(weight), row);
                        }
                    });
            });
    }
    if (plan.isPacked)
    {
        parallelFor(sizes.numMatrices * plan.blocks,
            kTASK_VALUES / (productUpTo(kTASK_VALUES, sizes.numTokens, kMOST_ROWS) + 1) + 1,
            [&](int64_t begin, int64_t end)
            {
                for (int64_t i = begin; i < end; ++i)
                {
                    Block const block(sizes.numOut, plan.blocks, i % plan.blocks);
                    int64_t const row = i / plan.blocks * sizes.numOut + block.first;
                    float const* const rows = plan.isGiven ? data.given : data.matrix;
                    packRows(block.count, sizes.numTokens, rows + row * plan.ofRow, plan.ofRow,
                        data.matrix + plan.packed + row * sizes.numTokens);
                }
            });
    }
}
} // namespace cpu

//! `Memory` has `void* workspace(size_t bytes)`, `bool isKept()`, and `void* kept(size_t bytes, Fill fill)`, which
//! calls fill(memory) in the first run and gives the same memory in every run. `weight` is of any floating type. Sizes
//! have been checked.
template <typename T, typename Memory>
void mixTokens(Sizes const& sizes, T const* x, void const* weight, DType weightType, T* y, Memory&& memory,
    ParallelFor const& parallelFor)
{
    if (sizes.batch * sizes.numOut * sizes.channels == 0)
    {
        return;
    }
    bool const isKept = memory.isKept();
    cpu::Plan const plan(sizes, weightType == DType::kFLOAT32, isKept);
    auto const bytesOf = [](int64_t floats) { return static_cast<size_t>(floats) * sizeof(float); };
    auto* const scratch = static_cast<float*>(memory.workspace(bytesOf(plan.end)));
    cpu::Data<T> data{sizes, plan, x, y, static_cast<float const*>(plan.isGiven ? weight : nullptr), scratch, scratch};
    auto const prepare = [&](void* matrix)
    {
        data.matrix = static_cast<float*>(matrix);
        cpu::prepareMatrix(data, weight, weightType, parallelFor);
    };
    if (isKept)
    {
        data.matrix = static_cast<float*>(memory.kept(bytesOf(plan.matrixEnd), prepare));
    }
    else
    {
        prepare(scratch);
    }
    if (plan.isInOrder)
    {
        int64_t const shares = std::max<int64_t>(sizes.channels / cpu::kFEW_ROWS_CHANNELS, 1);
        int64_t const flops = 2 * sizes.numOut * sizes.numTokens * (sizes.channels / shares);
        parallelFor(sizes.batch * shares, cpu::kTASK_FLOPS / 8 / (flops + 1) + 1,
            [&](int64_t begin, int64_t end)
            {
                for (int64_t i = begin; i < end; ++i)
                {
                    cpu::mixInOrder(data, i / shares, i % shares, shares);
                }
            });
        return;
    }
    int64_t const panelFlops = 2 * sizes.numOut * sizes.numTokens * cpu::kPANEL;
    parallelFor(sizes.batch * plan.panels, cpu::kTASK_FLOPS / (panelFlops + 1) + 1,
        [&](int64_t begin, int64_t end)
        {
            for (int64_t i = begin; i < end; ++i)
            {
                plan.isCopied ? cpu::mixNarrow(data, i) : cpu::mixWide(data, i / plan.panels, i % plan.panels);
            }
        });
    if (plan.isTurned)
    {
        parallelFor(sizes.batch,
            cpu::kTASK_VALUES / (productUpTo(cpu::kTASK_VALUES, sizes.numTokens, plan.rest) + 1) + 1,
            [&](int64_t begin, int64_t end)
            {
                for (int64_t item = begin; item < end; ++item)
                {
                    cpu::turn(data, item);
                }
            });
        int64_t const grain = cpu::kTASK_FLOPS / 4 / (2 * sizes.numTokens * plan.rest + 1) + 1;
        parallelFor(sizes.batch * sizes.numOut, roundUp(grain, cpu::kTURNED_ROWS),
            [&](int64_t begin, int64_t end) { cpu::mixTurnedRows(data, begin, end); });
    }
}

} // namespace trtc::token_mix
