// TokenMix on the CPU: a product of matrices in tiles that stay in registers. The matrix is packed by blocks of rows
// and the tokens by panels of channels, as float32 whatever their type; each sum runs over N in order, so the result
// does not depend on the threads.
#pragma once

#include <algorithm>
#include <cstring>

#include "common/half.h"
#include "common/parallel.h"
#include "common/simd.h"
#include "common/softmax.h"
#include "common/tile.h"
#include "token_mix/contract.h"

namespace trtc::token_mix
{

namespace cpu
{
constexpr int64_t kAHEAD = 16;            //!< tokens that are fetched before they are needed
constexpr int64_t kTASK_FLOPS = 1 << 21;  //!< about what is worth a task of its own
constexpr int64_t kTASK_VALUES = 1 << 14; //!< the same for what is done once for each value

inline int64_t numBlocks(Sizes const& sizes)
{
    int64_t const rows = tileRowsFor(sizes.numOut);
    return rows == 0 ? 0 : (sizes.numOut + rows - 1) / rows;
}

inline int64_t numPanels(Sizes const& sizes)
{
    return (sizes.channels + kTILE_COLUMNS - 1) / kTILE_COLUMNS;
}

//! The scratch memory.
struct Layout
{
    int64_t row;    //!< floats of one row of the matrix, with room for whole vectors
    int64_t block;  //!< floats of a packed block of rows, [N, rows]
    int64_t panel;  //!< floats of a packed panel of channels, [N, kTILE_COLUMNS]
    int64_t blocks; //!< where the blocks start
    int64_t panels;
    int64_t end;

    explicit Layout(Sizes const& sizes)
        : row(roundUp(sizes.numTokens, kLANES))
        , block(roundUp(sizes.numTokens * tileRowsFor(sizes.numOut), kLANES))
        , panel(sizes.numTokens * kTILE_COLUMNS)
        , blocks(sizes.numMatrices * sizes.numOut * row)
        , panels(blocks + sizes.numMatrices * numBlocks(sizes) * block)
        , end(panels + sizes.batch * numPanels(sizes) * panel)
    {
    }
};

//! One block of rows of one matrix: float32, softmax if asked for, transposed. Rows beyond the last repeat it.
template <typename Weight>
void packBlock(
    Sizes const& sizes, Layout const& layout, float* scratch, Weight const* weight, int64_t matrix, int64_t block)
{
    int64_t const numRows = tileRowsFor(sizes.numOut);
    float const* rows[kTILE_ROWS];
    for (int64_t i = 0; i < numRows; ++i)
    {
        int64_t const row = matrix * sizes.numOut + std::min(block * numRows + i, sizes.numOut - 1);
        Weight const* const given = weight + row * sizes.numTokens;
        float* const plain = scratch + row * layout.row;
        rows[i] = plain;
        if (std::is_same_v<Weight, float> && !sizes.softmax)
        {
            rows[i] = reinterpret_cast<float const*>(given);
        }
        else if (i == 0 || rows[i] != rows[i - 1])
        {
            toFloats(plain, given, sizes.numTokens);
            if (sizes.softmax)
            {
                softmax(plain, sizes.numTokens);
            }
        }
    }
    float* const to = scratch + layout.blocks + (matrix * numBlocks(sizes) + block) * layout.block;
    trtc::packBlock(numRows, sizes.numTokens, rows, to);
}

//! The last channels of all tokens of one item, fewer than a tile has; what the tile has beyond them is zero.
template <typename T>
void packRest(Sizes const& sizes, T const* x, int64_t first, float* to)
{
    int64_t const count = sizes.channels - first;
    std::fill(to, to + sizes.numTokens * kTILE_COLUMNS, 0.0F);
    for (int64_t n = 0; n < sizes.numTokens; ++n)
    {
        toFloats(to + n * kTILE_COLUMNS, x + n * sizes.channels + first, count);
    }
}

//! The first block of rows with a panel that is not packed yet, and packs it. Done at once, the sums hide the time that
//! it takes to fetch x.
template <int64_t kROWS, typename T>
void packAndMultiplyOf(int64_t depth, float const* block, T const* x, int64_t stride, float* panel, float* to)
{
    FloatVector sum[kROWS][2]{};
    for (int64_t n = 0; n < depth; ++n)
    {
        float* const row = panel + n * kTILE_COLUMNS;
        // Each row of x lies in another page, so the processor does not foresee it. An address beyond x does no harm.
        auto const ahead =
            reinterpret_cast<uintptr_t>(x + n * stride) + kAHEAD * static_cast<uintptr_t>(stride) * sizeof(T);
        __builtin_prefetch(reinterpret_cast<void const*>(ahead));
        __builtin_prefetch(reinterpret_cast<void const*>(ahead + kTILE_COLUMNS * sizeof(T) - 1));
        toFloats(row, x + n * stride, kTILE_COLUMNS);
        FloatVector const right0 = load(row);
        FloatVector const right1 = load(row + kLANES);
#pragma GCC unroll 12
        for (int64_t i = 0; i < kROWS; ++i)
        {
            FloatVector const left = broadcast(block[n * kROWS + i]);
            sum[i][0] += left * right0;
            sum[i][1] += left * right1;
        }
    }
#pragma GCC unroll 12
    for (int64_t i = 0; i < kROWS; ++i)
    {
        store(to + i * kTILE_COLUMNS, sum[i][0]);
        store(to + i * kTILE_COLUMNS + kLANES, sum[i][1]);
    }
}

template <typename T>
void packAndMultiply(
    int64_t rows, int64_t depth, float const* block, T const* x, int64_t stride, float* panel, float* to)
{
    switch (rows)
    {
    case 1: return packAndMultiplyOf<1>(depth, block, x, stride, panel, to);
    case 2: return packAndMultiplyOf<2>(depth, block, x, stride, panel, to);
    case 4: return packAndMultiplyOf<4>(depth, block, x, stride, panel, to);
    case 8: return packAndMultiplyOf<8>(depth, block, x, stride, panel, to);
    default: return packAndMultiplyOf<kTILE_ROWS>(depth, block, x, stride, panel, to);
    }
}

//! All rows of one panel of one item.
template <typename T>
void mixPanel(Sizes const& sizes, Layout const& layout, float* scratch, T const* x, T* y, int64_t item, int64_t panel)
{
    int64_t const first = panel * kTILE_COLUMNS;
    int64_t const count = std::min(kTILE_COLUMNS, sizes.channels - first);
    int64_t const rows = tileRowsFor(sizes.numOut);
    T const* const from = x + item * sizes.numTokens * sizes.channels;
    float* const packed = scratch + layout.panels + (item * numPanels(sizes) + panel) * layout.panel;
    float const* const blocks = scratch + layout.blocks + sizes.matrixOf(item) * numBlocks(sizes) * layout.block;
    bool const isWhole = count == kTILE_COLUMNS;
    if (!isWhole)
    {
        packRest(sizes, from, first, packed);
    }
    float tile[kTILE_ROWS * kTILE_COLUMNS];
    for (int64_t block = 0; block < numBlocks(sizes); ++block)
    {
        if (isWhole && block == 0)
        {
            packAndMultiply(rows, sizes.numTokens, blocks, from + first, sizes.channels, packed, tile);
        }
        else
        {
            multiplyTile(
                rows, sizes.numTokens, blocks + block * layout.block, packed, kTILE_COLUMNS, tile, kTILE_COLUMNS);
        }
        int64_t const used = std::min(rows, sizes.numOut - block * rows);
        T* const to = y + (item * sizes.numOut + block * rows) * sizes.channels + first;
        for (int64_t i = 0; i < used; ++i)
        {
            fromFloats(to + i * sizes.channels, tile + i * kTILE_COLUMNS, count);
        }
    }
}
} // namespace cpu

inline size_t cpuWorkspaceBytes(Sizes const& sizes)
{
    return static_cast<size_t>(cpu::Layout(sizes).end) * sizeof(float);
}

//! `weight` is of any floating type. Sizes have been checked.
template <typename T>
void mixTokens(Sizes const& sizes, T const* x, void const* weight, DType weightType, T* y, void* workspace,
    ParallelFor const& parallelFor)
{
    cpu::Layout const layout(sizes);
    auto* const scratch = static_cast<float*>(workspace);
    int64_t const blocks = cpu::numBlocks(sizes);
    int64_t const panels = cpu::numPanels(sizes);
    int64_t const blockValues = sizes.numTokens * tileRowsFor(sizes.numOut);
    parallelFor(sizes.numMatrices * blocks, cpu::kTASK_VALUES / (blockValues + 1) + 1,
        [&](int64_t begin, int64_t end)
        {
            dispatchFloat(weightType,
                [&](auto tag)
                {
                    using Weight = typename decltype(tag)::Type;
                    for (int64_t i = begin; i < end; ++i)
                    {
                        cpu::packBlock(
                            sizes, layout, scratch, static_cast<Weight const*>(weight), i / blocks, i % blocks);
                    }
                });
        });
    int64_t const panelFlops = 2 * sizes.numOut * sizes.numTokens * kTILE_COLUMNS;
    parallelFor(sizes.batch * panels, cpu::kTASK_FLOPS / (panelFlops + 1) + 1,
        [&](int64_t begin, int64_t end)
        {
            for (int64_t i = begin; i < end; ++i)
            {
                cpu::mixPanel(sizes, layout, scratch, x, y, i / panels, i % panels);
            }
        });
}

} // namespace trtc::token_mix
