// The micro-kernels of TokenMix on the CPU. Each of them keeps its sums in registers, and every sum depends on the
// sizes alone, not on how the work is cut.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "common/half.h"
#include "common/simd.h"
#include "common/simd_math.h"

namespace trtc::token_mix::cpu
{

constexpr int64_t kMOST_ROWS = kLANES == 16 ? 12 : 6; //!< rows of a tile: with two vectors each they fill the registers
constexpr int64_t kPANEL = 2 * kLANES;                //!< channels of a panel
constexpr int64_t kIN_FLIGHT = 8;                     //!< sums that hide the time of a multiply-add
constexpr int64_t kAHEAD = 16;                        //!< tokens that are fetched before they are needed

//! Some rows of a matrix: value (i, n) lies at first[i * ofRow + n * ofToken].
struct Rows
{
    float const* first;
    int64_t ofRow;
    int64_t ofToken;
};

//! Calls body(std::integral_constant) with the number of rows, 1 to kMOST_ROWS.
template <int64_t kROWS = 1, typename Body>
void dispatchRows(int64_t rows, Body const& body)
{
    if constexpr (kROWS < kMOST_ROWS)
    {
        if (rows > kROWS)
        {
            return dispatchRows<kROWS + 1>(rows, body);
        }
    }
    body(std::integral_constant<int64_t, kROWS>{});
}

//! Where the tokens of a panel lie: vector v of token n at first[n * ofToken + at[v]].
struct Tokens
{
    float const* first;
    int64_t ofToken;
    int64_t at[2];
    float* packed; //!< [N, kPANEL] to be filled on the way, or null
};

//! Where the sums go: vector v of row i to first[i * ofRow + at[v]].
struct Sums
{
    float* first;
    int64_t ofRow;
    int64_t at[2];
};

//! kROWS rows times kVECTORS vectors of channels.
template <int64_t kROWS, int64_t kVECTORS, bool kPACKED, bool kPACKS>
void multiplyTile(int64_t depth, Rows const& rows, Tokens const& tokens, Sums const& to)
{
    constexpr int64_t kPARTS = std::max<int64_t>(kIN_FLIGHT / (kROWS * kVECTORS), 1);
    FloatVector sum[kPARTS][kROWS][kVECTORS]{};
    int64_t const ofRow = kPACKED ? 1 : rows.ofRow;
    float const* left = rows.first;
    float const* right = tokens.first;
    float* packed = tokens.packed;
    auto const step = [&](FloatVector(&into)[kROWS][kVECTORS])
    {
        FloatVector of[kVECTORS];
#pragma GCC unroll 2
        for (int64_t v = 0; v < kVECTORS; ++v)
        {
            of[v] = load(right + tokens.at[v]);
        }
        if constexpr (kPACKS)
        {
            // Each token may lie in another page, so the processor does not foresee it. An address beyond does no harm.
            auto const ahead =
                reinterpret_cast<uintptr_t>(right) + static_cast<uintptr_t>(kAHEAD * tokens.ofToken) * sizeof(float);
            __builtin_prefetch(reinterpret_cast<void const*>(ahead));
            __builtin_prefetch(reinterpret_cast<void const*>(ahead + kPANEL * sizeof(float) - 1));
#pragma GCC unroll 2
            for (int64_t v = 0; v < kVECTORS; ++v)
            {
                store(packed + v * kLANES, of[v]);
            }
            packed += kVECTORS * kLANES;
        }
#pragma GCC unroll 12
        for (int64_t i = 0; i < kROWS; ++i)
        {
            FloatVector const factor = broadcast(left[i * ofRow]);
#pragma GCC unroll 2
            for (int64_t v = 0; v < kVECTORS; ++v)
            {
                into[i][v] += factor * of[v];
            }
        }
        left += kPACKED ? kROWS : 1;
        right += tokens.ofToken;
    };
    int64_t n = 0;
    for (; n + kPARTS <= depth; n += kPARTS)
    {
#pragma GCC unroll 8
        for (int64_t p = 0; p < kPARTS; ++p)
        {
            step(sum[p]);
        }
    }
    for (; kPARTS > 1 && n < depth; ++n)
    {
        step(sum[0]);
    }
#pragma GCC unroll 12
    for (int64_t i = 0; i < kROWS; ++i)
    {
#pragma GCC unroll 2
        for (int64_t v = 0; v < kVECTORS; ++v)
        {
#pragma GCC unroll 8
            for (int64_t p = 1; p < kPARTS; ++p)
            {
                sum[0][i][v] += sum[p][i][v];
            }
            store(to.first + i * to.ofRow + to.at[v], sum[0][i][v]);
        }
    }
}

//! A vector of any floating type as float32.
template <typename T>
FloatVector loadFloats(T const* from)
{
    if constexpr (std::is_same_v<T, float>)
    {
        return load(from);
    }
    float values[kLANES];
    toFloats(values, from, kLANES);
    return load(values);
}

//! A block of rows as `Rows` with ofToken = numRows: to[n, i] = row i's value n.
inline void packRows(int64_t numRows, int64_t depth, float const* rows, int64_t ofRow, float* to)
{
    dispatchRows(numRows,
        [&](auto count)
        {
            constexpr int64_t kROWS = decltype(count)::value;
            for (int64_t n = 0; n < depth; ++n)
            {
#pragma GCC unroll 12
                for (int64_t i = 0; i < kROWS; ++i)
                {
                    to[n * kROWS + i] = rows[i * ofRow + n];
                }
            }
        });
}

//! Rows of the matrix times turned channels, vectors along the tokens: to[i, c]. `turned` [kCHANNELS, ofChannel] is
//! padded with zeros to whole vectors.
template <int64_t kROWS, int64_t kCHANNELS>
inline void multiplyTurned(
    int64_t depth, float const* rows, int64_t ofRow, float const* turned, int64_t ofChannel, float* to, int64_t ofOut)
{
    FloatVector sum[kROWS][kCHANNELS]{};
    auto const step = [&](float const* left, int64_t ofLeft, int64_t n)
    {
        FloatVector of[kCHANNELS];
#pragma GCC unroll 4
        for (int64_t c = 0; c < kCHANNELS; ++c)
        {
            of[c] = load(turned + c * ofChannel + n);
        }
#pragma GCC unroll 4
        for (int64_t i = 0; i < kROWS; ++i)
        {
            FloatVector const row = load(left + i * ofLeft);
#pragma GCC unroll 4
            for (int64_t c = 0; c < kCHANNELS; ++c)
            {
                sum[i][c] += row * of[c];
            }
        }
    };
    int64_t n = 0;
    for (; n + kLANES <= depth; n += kLANES)
    {
        step(rows + n, ofRow, n);
    }
    if (n < depth)
    {
        float rest[kROWS * kLANES] = {}; // what lies behind a row may be no number, and 0 times that is none either
        for (int64_t i = 0; i < kROWS; ++i)
        {
            std::copy(rows + i * ofRow + n, rows + i * ofRow + depth, rest + i * kLANES);
        }
        step(rest, kLANES, n);
    }
#pragma GCC unroll 4
    for (int64_t i = 0; i < kROWS; ++i)
    {
#pragma GCC unroll 4
        for (int64_t c = 0; c < kCHANNELS; ++c)
        {
            to[i * ofOut + c] = sumByQuarters(sum[i][c]);
        }
    }
}

//! Adds kTOKENS tokens, kROWS times weighted, to sums [kROWS, count] that lie in memory. For few rows: tokens are read
//! once, from their first channel to their last. `offset(v)` is where vector v starts.
template <int64_t kROWS, int64_t kTOKENS, typename T, typename Offset>
inline void addTokens(
    Rows const& rows, T const* x, int64_t ofToken, int64_t numVectors, Offset const& offset, float* sums)
{
    FloatVector factor[kROWS][kTOKENS];
#pragma GCC unroll 4
    for (int64_t i = 0; i < kROWS; ++i)
    {
#pragma GCC unroll 8
        for (int64_t t = 0; t < kTOKENS; ++t)
        {
            factor[i][t] = broadcast(rows.first[i * rows.ofRow + t]);
        }
    }
    for (int64_t v = 0; v < numVectors; ++v)
    {
        FloatVector sum[kROWS];
#pragma GCC unroll 4
        for (int64_t i = 0; i < kROWS; ++i)
        {
            sum[i] = load(sums + (i * numVectors + v) * kLANES);
        }
        T const* const from = x + offset(v);
#pragma GCC unroll 8
        for (int64_t t = 0; t < kTOKENS; ++t)
        {
            FloatVector const of = loadFloats(from + t * ofToken);
#pragma GCC unroll 4
            for (int64_t i = 0; i < kROWS; ++i)
            {
                sum[i] += factor[i][t] * of;
            }
        }
#pragma GCC unroll 4
        for (int64_t i = 0; i < kROWS; ++i)
        {
            store(sums + (i * numVectors + v) * kLANES, sum[i]);
        }
    }
}

} // namespace trtc::token_mix::cpu
