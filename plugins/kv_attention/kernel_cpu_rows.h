// KVAttention on the CPU: rows of codes as vectors of numbers, their products with queries, their weighted sums.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "common/simd_half.h"
#include "kv_attention/kernel_cpu_plan.h"

namespace trtc::kv_attention
{

namespace cpu
{
//! Vectors of one row: codes of kBITS bits, or floats of a kind.
template <int32_t kBITS>
struct Row
{
    static constexpr int32_t kPARTS = partsOf(kBITS);
    using Element = uint8_t;

    IntVector bytes;

    //! The vector at `at` of a row of `width` bytes; kWHOLE if the row does not end inside of it.
    template <bool kWHOLE>
    static Row at(uint8_t const* row, int64_t at, int64_t width)
    {
        if constexpr (kWHOLE)
        {
            return {loadBytes(row + at)};
        }
        else
        {
            return {loadBytes(row + at, width - at)};
        }
    }

    FloatVector part(int32_t index) const
    {
        IntVector codes = bytes >> (index * kBITS);
        if (index + 1 < kPARTS)
        {
            codes &= static_cast<int32_t>(largestCode(kBITS));
        }
        return __builtin_convertvector(codes, FloatVector);
    }
};

//! Rows of one part that are floats; kPADDED: to whole vectors, so that no row ends inside of one.
template <typename T, bool kPADDED>
struct FloatRow
{
    static constexpr int32_t kPARTS = 1;
    using Element = T;

    FloatVector values;

    template <bool kWHOLE>
    static FloatRow at(T const* row, int64_t at, int64_t width)
    {
        if constexpr (kWHOLE || kPADDED)
        {
            return {loadFloats(row + at)};
        }
        else
        {
            float some[kLANES] = {};
            toFloats(some, row + at, width - at);
            return {load(some)};
        }
    }

    FloatVector part(int32_t /*index*/) const
    {
        return values;
    }
};

template <>
struct Row<kMADE> : FloatRow<float, true>
{
};

template <>
struct Row<kFLOAT> : FloatRow<float, false>
{
};

template <>
struct Row<kHALF> : FloatRow<Half, false>
{
};

template <>
struct Row<kBFLOAT> : FloatRow<BFloat16, false>
{
};

//! Calls body(block, isWhole) for the vectors of a part.
template <typename Body>
inline __attribute__((always_inline)) void forVectors(Side const& side, Body const& body)
{
    int64_t const whole = side.width / kLANES;
    for (int64_t block = 0; block < whole; ++block)
    {
        body(block, std::true_type{});
    }
    if (whole < side.blocks)
    {
        body(whole, std::false_type{});
    }
}

constexpr int64_t kAHEAD = 16; //!< tokens whose rows are fetched before they are asked for

//! Fetches what follows in a cache of floats: walks over rows are too many at a time for the processor to see them.
template <int32_t kKIND, typename T>
void prefetchAhead(T const* from)
{
    if constexpr (kKIND == kFLOAT || kKIND == kHALF || kKIND == kBFLOAT)
    {
        __builtin_prefetch(from);
    }
}

//! Scales of each token, as they lie in memory: [count, groups].
struct TokenScales
{
    float const* scale;
    float const* minimum;
    int64_t groups;
    int32_t const* groupOf; //!< of [part, block]
};

//! Products of kROWS queries with `count` tokens. A token's scales are applied if kSCALED; `constants` are added.
template <int32_t kBITS, int32_t kROWS, bool kSCALED>
void dot(Side const& side, typename Row<kBITS>::Element const* rows, int64_t step, int64_t count,
    TokenScales const& scales, float const* q, float const* constants, float* logits)
{
    constexpr int32_t kTOKENS = kLANES / kROWS;
    constexpr int32_t kPARTS = Row<kBITS>::kPARTS;
    for (int64_t start = 0; start < count; start += kTOKENS)
    {
        FloatVector sums[kLANES] = {};
        int64_t tokens[kTOKENS]; // behind the last one it is taken again
#pragma GCC unroll 16
        for (int32_t t = 0; t < kTOKENS; ++t)
        {
            tokens[t] = std::min(start + t, count - 1);
        }
        auto const addBlock = [&](int64_t block, auto isWhole) __attribute__((always_inline))
        {
            FloatVector query[kPARTS][kROWS];
#pragma GCC unroll 4
            for (int32_t part = 0; part < kPARTS; ++part)
            {
#pragma GCC unroll 4
                for (int32_t row = 0; row < kROWS; ++row)
                {
                    query[part][row] = load(q + row * side.padded + (part * side.blocks + block) * kLANES);
                }
            }
#pragma GCC unroll 16
            for (int32_t t = 0; t < kTOKENS; ++t)
            {
                auto const codes = Row<kBITS>::template at<decltype(isWhole)::value>(
                    rows + tokens[t] * step, block * kLANES, side.width);
                prefetchAhead<kBITS>(rows + (tokens[t] + kAHEAD) * step + block * kLANES);
#pragma GCC unroll 4
                for (int32_t part = 0; part < kPARTS; ++part)
                {
                    FloatVector value = codes.part(part);
                    if constexpr (kSCALED)
                    {
                        int64_t const at = tokens[t] * scales.groups + scales.groupOf[part * side.blocks + block];
                        value = value * scales.scale[at] + scales.minimum[at];
                    }
#pragma GCC unroll 4
                    for (int32_t row = 0; row < kROWS; ++row)
                    {
                        sums[row * kTOKENS + t] += value * query[part][row];
                    }
                }
            }
        };
        forVectors(side, addBlock);
        FloatVector const found = sumsOf(sums);
        int64_t const numStored = std::min<int64_t>(kTOKENS, count - start);
#pragma GCC unroll 4
        for (int32_t row = 0; row < kROWS; ++row)
        {
            for (int64_t t = 0; t < numStored; ++t)
            {
                logits[row * kCHUNK + start + t] = found[row * kTOKENS + static_cast<int32_t>(t)] + constants[row];
            }
        }
    }
}

//! What `accumulate` multiplies rows with: weight of group g, query r, token t is at g * ofGroup + r * ofRow + t.
struct Weights
{
    float const* at;
    int64_t ofGroup;
    int64_t ofRow;
    int32_t const* groupOf; //!< of [part, block]
    float const* starts;    //!< [groups, kROWS], where sums start; null: at 0
    float const* scale;     //!< of the channels, for the sums; null: 1
    float const* minimum;
    float const* totals; //!< [kROWS], sums of the weights, for the minima
};

//! Adds the weighted rows of `count` tokens to `sums`, kROWS rows of side.padded floats.
template <int32_t kBITS, int32_t kROWS>
void accumulate(Side const& side, typename Row<kBITS>::Element const* rows, int64_t step, int64_t count,
    Weights const& weights, float* sums)
{
    constexpr int32_t kPARTS = Row<kBITS>::kPARTS;
    // Enough sums that do not wait for each other.
    constexpr int32_t kCHAINS = kPARTS * kROWS >= 8 ? 1 : 8 / (kPARTS * kROWS);
    auto const addBlock = [&](int64_t block, auto isWhole) __attribute__((always_inline))
    {
        FloatVector chains[kCHAINS][kPARTS][kROWS] = {};
        float const* ofPart[kPARTS];
#pragma GCC unroll 4
        for (int32_t part = 0; part < kPARTS; ++part)
        {
            int64_t const group = weights.groupOf == nullptr ? 0 : weights.groupOf[part * side.blocks + block];
            ofPart[part] = weights.at + group * weights.ofGroup;
#pragma GCC unroll 4
            for (int32_t row = 0; row < kROWS; ++row)
            {
                float const start = weights.starts == nullptr ? 0.0F : weights.starts[group * kROWS + row];
                chains[0][part][row] = broadcast(start);
            }
        }
        auto const addToken = [&](int64_t token, int32_t chain) __attribute__((always_inline))
        {
            auto const codes =
                Row<kBITS>::template at<decltype(isWhole)::value>(rows + token * step, block * kLANES, side.width);
            prefetchAhead<kBITS>(rows + (token + kTILE) * step + block * kLANES);
#pragma GCC unroll 4
            for (int32_t part = 0; part < kPARTS; ++part)
            {
                FloatVector const value = codes.part(part);
#pragma GCC unroll 4
                for (int32_t row = 0; row < kROWS; ++row)
                {
                    chains[chain][part][row] += value * ofPart[part][row * weights.ofRow + token];
                }
            }
        };
        int64_t token = 0;
        for (; token + kCHAINS <= count; token += kCHAINS)
        {
#pragma GCC unroll 8
            for (int32_t chain = 0; chain < kCHAINS; ++chain)
            {
                addToken(token + chain, chain);
            }
        }
        for (; token < count; ++token)
        {
            addToken(token, 0);
        }
#pragma GCC unroll 4
        for (int32_t part = 0; part < kPARTS; ++part)
        {
            int64_t const at = (part * side.blocks + block) * kLANES;
#pragma GCC unroll 4
            for (int32_t row = 0; row < kROWS; ++row)
            {
                FloatVector sum = chains[0][part][row];
#pragma GCC unroll 8
                for (int32_t chain = 1; chain < kCHAINS; ++chain)
                {
                    sum += chains[chain][part][row];
                }
                if (weights.scale != nullptr)
                {
                    sum = sum * load(weights.scale + at) + load(weights.minimum + at) * weights.totals[row];
                }
                float* const to = sums + row * side.padded + at;
                store(to, load(to) + sum);
            }
        }
    };
    forVectors(side, addBlock);
}

//! Calls body(row, numRows), the number as a constant, for blocks of 4, 3, 2 and 1 queries that make up `numRows`.
template <typename Body>
void forBlocks(int64_t numRows, Body const& body)
{
    int64_t row = 0;
    for (; row + 4 <= numRows; row += 4)
    {
        body(row, std::integral_constant<int32_t, 4>{});
    }
    switch (numRows - row)
    {
    case 3: return body(row, std::integral_constant<int32_t, 3>{});
    case 2: return body(row, std::integral_constant<int32_t, 2>{});
    case 1: return body(row, std::integral_constant<int32_t, 1>{});
    default: return;
    }
}

template <typename Body>
void dispatchKind(int32_t kind, Body const& body)
{
    switch (kind)
    {
    case 2: return body(std::integral_constant<int32_t, 2>{});
    case 4: return body(std::integral_constant<int32_t, 4>{});
    case kHALF: return body(std::integral_constant<int32_t, kHALF>{});
    case kBFLOAT: return body(std::integral_constant<int32_t, kBFLOAT>{});
    case kFLOAT: return body(std::integral_constant<int32_t, kFLOAT>{});
    case kMADE: return body(std::integral_constant<int32_t, kMADE>{});
    default: return body(std::integral_constant<int32_t, 8>{});
    }
}

//! Every `step`-th number, then zeros up to `full`.
inline void everyOf(float const* from, int64_t step, int64_t count, int64_t full, float* to)
{
    for (int64_t i = 0; i < count; ++i)
    {
        to[i] = from[i * step];
    }
    std::fill(to + count, to + full, 0.0F);
}

inline void loadScales(float* to, void const* from, DType type, int64_t offset, int64_t count)
{
    if (type == DType::kFLOAT16)
    {
        toFloats(to, static_cast<Half const*>(from) + offset, count);
    }
    else
    {
        std::copy_n(static_cast<float const*>(from) + offset, count, to);
    }
}

//! One row of channels as the parts of a side lie in vectors. What pads it stays as it is.
inline void loadRow(Side const& side, float* to, void const* from, DType type, int64_t offset)
{
    dispatchFloat(type,
        [&](auto tag)
        {
            using T = typename decltype(tag)::Type;
            for (int64_t part = 0; part < side.parts; ++part)
            {
                toFloats(to + part * side.blocks * kLANES, static_cast<T const*>(from) + offset + part * side.width,
                    side.width);
            }
        });
}

} // namespace cpu

} // namespace trtc::kv_attention
