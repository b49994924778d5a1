// KVAttention on the CPU where many queries share a task: keys of a tile are turned around, so that products and sums
// are those of small matrices, a block of queries by two vectors in registers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kv_attention/kernel_cpu_rows.h"

namespace trtc::kv_attention
{

namespace cpu
{
//! Queries and vectors of a block: as many sums as registers hold.
constexpr int32_t kBLOCK_ROWS = 6;
constexpr int32_t kBLOCK_VECTORS = kLANES >= 16 ? 4 : 2;

//! Calls body(row, numRows), the number as a constant, for blocks of kBLOCK_ROWS, 4, 2 and 1 queries.
template <typename Body>
void forWideBlocks(int64_t numRows, Body const& body)
{
    int64_t row = 0;
    for (; row + kBLOCK_ROWS <= numRows; row += kBLOCK_ROWS)
    {
        body(row, std::integral_constant<int32_t, kBLOCK_ROWS>{});
    }
    for (; row + 4 <= numRows; row += 4)
    {
        body(row, std::integral_constant<int32_t, 4>{});
    }
    for (; row + 2 <= numRows; row += 2)
    {
        body(row, std::integral_constant<int32_t, 2>{});
    }
    for (; row < numRows; ++row)
    {
        body(row, std::integral_constant<int32_t, 1>{});
    }
}

//! Calls body(first, numVectors), the number as a constant, for the vectors of `count` floats, a block at a time.
template <typename Body>
void forVectorBlocks(int64_t count, Body const& body)
{
    for (int64_t first = 0; first < count; first += kBLOCK_VECTORS * kLANES)
    {
        switch (std::min<int64_t>((count - first + kLANES - 1) / kLANES, kBLOCK_VECTORS))
        {
        case 1: body(first, std::integral_constant<int32_t, 1>{}); break;
        case 2: body(first, std::integral_constant<int32_t, 2>{}); break;
        case 3: body(first, std::integral_constant<int32_t, std::min(3, kBLOCK_VECTORS)>{}); break;
        default: body(first, std::integral_constant<int32_t, kBLOCK_VECTORS>{}); break;
        }
    }
}

//! Rows as columns: `turned` is [side.padded, kTILE]. Columns up to a whole vector repeat the last row.
template <int32_t kKIND>
void turnRows(Side const& side, typename Row<kKIND>::Element const* rows, int64_t step, int64_t count, float* turned)
{
    for (int64_t first = 0; first < count; first += kLANES)
    {
        forVectors(side,
            [&](int64_t block, auto isWhole)
            {
                FloatVector vectors[kLANES];
#pragma GCC unroll 16
                for (int32_t i = 0; i < kLANES; ++i)
                {
                    int64_t const row = std::min(first + i, count - 1);
                    vectors[i] =
                        Row<kKIND>::template at<decltype(isWhole)::value>(rows + row * step, block * kLANES, side.width)
                            .part(0);
                }
                transpose(vectors);
#pragma GCC unroll 16
                for (int32_t i = 0; i < kLANES; ++i)
                {
                    store(turned + (block * kLANES + i) * kTILE + first, vectors[i]);
                }
            });
    }
}

//! Rows as floats, padded with zeros: `made` is [count, side.padded].
template <int32_t kKIND>
void copyRows(Side const& side, typename Row<kKIND>::Element const* rows, int64_t step, int64_t count, float* made)
{
    for (int64_t row = 0; row < count; ++row)
    {
        forVectors(side,
            [&](int64_t block, auto isWhole)
            {
                auto const values =
                    Row<kKIND>::template at<decltype(isWhole)::value>(rows + row * step, block * kLANES, side.width);
                store(made + row * side.padded + block * kLANES, values.part(0));
            });
    }
}

//! Codes as the numbers they stand for: `made` is [count, side.padded]. Scales are those of each token, or null, and
//! then those of the channels are at `scale` and `minimum`, as the parts of a row lie in vectors.
template <int32_t kBITS>
void makeRows(Side const& side, uint8_t const* rows, int64_t step, int64_t count, TokenScales const* ofToken,
    float const* scale, float const* minimum, float* made)
{
    for (int64_t row = 0; row < count; ++row)
    {
        forVectors(side,
            [&](int64_t block, auto isWhole)
            {
                auto const codes =
                    Row<kBITS>::template at<decltype(isWhole)::value>(rows + row * step, block * kLANES, side.width);
#pragma GCC unroll 4
                for (int32_t part = 0; part < Row<kBITS>::kPARTS; ++part)
                {
                    int64_t const at = part * side.blocks + block;
                    FloatVector value = codes.part(part);
                    if (ofToken == nullptr)
                    {
                        value = value * load(scale + at * kLANES) + load(minimum + at * kLANES);
                    }
                    else
                    {
                        int64_t const group = row * ofToken->groups + ofToken->groupOf[at];
                        value = value * ofToken->scale[group] + ofToken->minimum[group];
                    }
                    store(made + row * side.padded + at * kLANES, value);
                }
            });
    }
}

//! Products of kROWS queries of `depth` channels with `count` turned rows.
template <int32_t kROWS>
void multiplyTurned(float const* q, int64_t depth, float const* turned, int64_t count, float* logits, int64_t ofRow)
{
    forVectorBlocks(count,
        [&](int64_t first, auto numVectors) __attribute__((always_inline))
        {
            constexpr int32_t kVECTORS = decltype(numVectors)::value;
            FloatVector sums[kROWS][kVECTORS] = {};
            for (int64_t channel = 0; channel < depth; ++channel)
            {
                FloatVector values[kVECTORS];
#pragma GCC unroll 4
                for (int32_t i = 0; i < kVECTORS; ++i)
                {
                    values[i] = load(turned + channel * kTILE + first + i * kLANES);
                }
#pragma GCC unroll 6
                for (int32_t row = 0; row < kROWS; ++row)
                {
                    FloatVector const query = broadcast(q[row * depth + channel]);
#pragma GCC unroll 4
                    for (int32_t i = 0; i < kVECTORS; ++i)
                    {
                        sums[row][i] += values[i] * query;
                    }
                }
            }
            int64_t const left = std::min<int64_t>(count - first, kVECTORS * kLANES);
            for (int32_t row = 0; row < kROWS; ++row)
            {
                std::memcpy(logits + row * ofRow + first, sums[row], static_cast<size_t>(left) * sizeof(float));
            }
        });
}

//! Adds `count` rows of `depth` channels, whole vectors of them, to the sums of kROWS queries, weighted.
template <int32_t kROWS>
void addWeighted(float const* weights, int64_t ofRow, float const* rows, int64_t depth, int64_t count, float* sums)
{
    forVectorBlocks(depth,
        [&](int64_t first, auto numVectors) __attribute__((always_inline))
        {
            constexpr int32_t kVECTORS = decltype(numVectors)::value;
            FloatVector found[kROWS][kVECTORS];
#pragma GCC unroll 6
            for (int32_t row = 0; row < kROWS; ++row)
            {
#pragma GCC unroll 4
                for (int32_t i = 0; i < kVECTORS; ++i)
                {
                    found[row][i] = load(sums + row * depth + first + i * kLANES);
                }
            }
            for (int64_t token = 0; token < count; ++token)
            {
                FloatVector values[kVECTORS];
#pragma GCC unroll 4
                for (int32_t i = 0; i < kVECTORS; ++i)
                {
                    values[i] = load(rows + token * depth + first + i * kLANES);
                }
#pragma GCC unroll 6
                for (int32_t row = 0; row < kROWS; ++row)
                {
                    FloatVector const weight = broadcast(weights[row * ofRow + token]);
#pragma GCC unroll 4
                    for (int32_t i = 0; i < kVECTORS; ++i)
                    {
                        found[row][i] += values[i] * weight;
                    }
                }
            }
#pragma GCC unroll 6
            for (int32_t row = 0; row < kROWS; ++row)
            {
#pragma GCC unroll 4
                for (int32_t i = 0; i < kVECTORS; ++i)
                {
                    store(sums + row * depth + first + i * kLANES, found[row][i]);
                }
            }
        });
}

} // namespace cpu

} // namespace trtc::kv_attention
