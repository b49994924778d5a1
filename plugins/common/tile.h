// The heart of a product of matrices on the CPU: a block of packed rows times a panel of packed columns, whose sums
// stay in registers. Each sum runs over the depth in order.
#pragma once

#include "common/simd.h"

namespace trtc
{

//! Rows of a block; with the two vectors of a panel they fill the registers.
constexpr int64_t kTILE_ROWS = kLANES == 16 ? 12 : 6;
constexpr int64_t kTILE_COLUMNS = 2 * kLANES;

//! A smaller block, for numbers of rows that leave less of it empty.
constexpr int64_t kSMALL_TILE_ROWS = kLANES == 16 ? 8 : 4;

//! Rows of blocks that suit `count` rows: few rows need no block that is mostly empty.
constexpr int64_t tileRowsFor(int64_t count)
{
    if (count <= 4)
    {
        return count > 2 ? 4 : count;
    }
    return roundUp(count, kSMALL_TILE_ROWS) < roundUp(count, kTILE_ROWS) ? kSMALL_TILE_ROWS : kTILE_ROWS;
}

template <int64_t kROWS>
void multiplyTileOf(int64_t depth, float const* block, float const* panel, int64_t stride, float* to, int64_t toStride)
{
    FloatVector sum[kROWS][2]{};
    for (int64_t d = 0; d < depth; ++d)
    {
        FloatVector const right0 = load(panel + d * stride);
        FloatVector const right1 = load(panel + d * stride + kLANES);
#pragma GCC unroll 12
        for (int64_t i = 0; i < kROWS; ++i)
        {
            FloatVector const left = broadcast(block[d * kROWS + i]);
            sum[i][0] += left * right0;
            sum[i][1] += left * right1;
        }
    }
#pragma GCC unroll 12
    for (int64_t i = 0; i < kROWS; ++i)
    {
        store(to + i * toStride, sum[i][0]);
        store(to + i * toStride + kLANES, sum[i][1]);
    }
}

//! to[i, j] = sum over d of block[d, i] * panel[d, j], for `rows` (as tileRowsFor() says) by kTILE_COLUMNS.
inline void multiplyTile(
    int64_t rows, int64_t depth, float const* block, float const* panel, int64_t stride, float* to, int64_t toStride)
{
    switch (rows)
    {
    case 1: return multiplyTileOf<1>(depth, block, panel, stride, to, toStride);
    case 2: return multiplyTileOf<2>(depth, block, panel, stride, to, toStride);
    case 4: return multiplyTileOf<4>(depth, block, panel, stride, to, toStride);
    case 8: return multiplyTileOf<8>(depth, block, panel, stride, to, toStride);
    default: return multiplyTileOf<kTILE_ROWS>(depth, block, panel, stride, to, toStride);
    }
}

namespace detail
{
template <int64_t kROWS>
void packRows(int64_t depth, float const* const* rows, float* to)
{
    for (int64_t d = 0; d < depth; ++d)
    {
#pragma GCC unroll 12
        for (int64_t i = 0; i < kROWS; ++i)
        {
            to[d * kROWS + i] = rows[i][d];
        }
    }
}
} // namespace detail

//! A block from rows of `depth` values: to[d, i] = rows[i][d].
inline void packBlock(int64_t numRows, int64_t depth, float const* const* rows, float* to)
{
    switch (numRows)
    {
    case 1: return detail::packRows<1>(depth, rows, to);
    case 2: return detail::packRows<2>(depth, rows, to);
    case 4: return detail::packRows<4>(depth, rows, to);
    case 8: return detail::packRows<8>(depth, rows, to);
    default: return detail::packRows<kTILE_ROWS>(depth, rows, to);
    }
}

} // namespace trtc
