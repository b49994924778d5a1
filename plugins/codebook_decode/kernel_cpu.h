// CodebookDecode on the CPU: rows of the codebook are copied, or summed over the stages in float32; levels are looked
// up; digits and signs are computed, kLANES values at a time.
#pragma once

#include <algorithm>
#include <atomic>
#include <limits>

#include "codebook_decode/contract.h"
#include "codebook_encode/digits.h"
#include "common/copy.h"
#include "common/half.h"
#include "common/parallel.h"
#include "common/simd.h"

namespace trtc::codebook_decode
{

using codebook_encode::Digits;

namespace cpu
{
constexpr int64_t kCHUNK = 256;           //!< values summed or converted at a time
constexpr int64_t kTASK_VALUES = 1 << 14; //!< about what is worth a task of its own
constexpr int64_t kPERIOD = codebook_encode::kMOST_FSQ_CHANNELS * kLANES;

//! One token: the sum of the stages' codes, the first one first.
template <typename T>
void sumStages(Sizes const& sizes, int64_t const* code, T const* codebook, T* y)
{
    int64_t const width = sizes.width;
    if (sizes.stages == 1)
    {
        copyBytes(y, codebook + code[0] * width, static_cast<size_t>(width) * sizeof(T));
        return;
    }
    float sum[kCHUNK];
    float row[kCHUNK];
    for (int64_t d = 0; d < width; d += kCHUNK)
    {
        int64_t const count = std::min(kCHUNK, width - d);
        toFloats(sum, codebook + code[0] * width + d, count);
        for (int64_t stage = 1; stage < sizes.stages; ++stage)
        {
            toFloats(row, codebook + (stage * sizes.numCodes + code[stage]) * width + d, count);
            for (int64_t i = 0; i < count; ++i)
            {
                sum[i] += row[i];
            }
        }
        fromFloats(y + d, sum, count);
    }
}

//! Constants of FSQ for kLANES tokens, as their values lie in memory.
struct Pattern
{
    float levels[kPERIOD]{};
    float base[kPERIOD]{};
    float middle[kPERIOD]{};

    explicit Pattern(Digits const& digits)
    {
        for (int64_t i = 0; i < digits.channels * kLANES; ++i)
        {
            levels[i] = digits.levels[i % digits.channels];
            base[i] = digits.base[i % digits.channels];
            middle[i] = static_cast<float>(static_cast<int32_t>(levels[i]) / 2);
        }
    }
};

//! a / b rounded down, for whole numbers below 2^24: there the quotient's own rounding cannot reach the next one.
inline FloatVector quotient(FloatVector const& a, FloatVector const& b)
{
    return __builtin_convertvector(__builtin_convertvector(a / b, IntVector), FloatVector);
}

//! At most kLANES tokens.
template <typename T>
void decodeDigits(int64_t channels, Pattern const& pattern, int64_t const* code, int64_t count, T* y)
{
    float values[kPERIOD] = {};
    for (int64_t token = 0; token < count; ++token)
    {
        std::fill(values + token * channels, values + (token + 1) * channels, static_cast<float>(code[token]));
    }
    for (int64_t i = 0; i < channels * kLANES; i += kLANES)
    {
        FloatVector const levels = load(pattern.levels + i);
        FloatVector const middle = load(pattern.middle + i);
        FloatVector const above = quotient(load(values + i), load(pattern.base + i));
        FloatVector const digit = above - quotient(above, levels) * levels;
        store(values + i, (digit - middle) / middle);
    }
    fromFloats(y, values, count * channels);
}

//! The signs of codes `begin` to `end`.
template <typename T>
void decodeSigns(int64_t group, int64_t const* code, int64_t begin, int64_t end, T* y)
{
    float signs[codebook_encode::kMOST_BITS];
    for (int64_t q = begin; q < end; ++q)
    {
        auto const bits = static_cast<int32_t>(code[q]);
        for (int32_t bit = 0; bit < static_cast<int32_t>(group); ++bit)
        {
            signs[bit] = static_cast<float>(((bits >> bit) & 1) * 2 - 1);
        }
        fromFloats(y + q * group, signs, group);
    }
}
} // namespace cpu

//! How many codes there are.
inline int64_t numCodes(Sizes const& sizes, Digits const& digits)
{
    bool const isListed = sizes.kind == Kind::kVECTOR || sizes.kind == Kind::kTABLE;
    return isListed ? sizes.numCodes : sizes.kind == Kind::kFSQ ? digits.numCodes : int64_t{1} << sizes.group;
}

//! Whether every number is a code; the sentence otherwise.
inline Error checkCode(Sizes const& sizes, Digits const& digits, int64_t const* code, ParallelFor const& parallelFor)
{
    auto const number = static_cast<uint64_t>(numCodes(sizes, digits));
    constexpr int64_t kNONE = std::numeric_limits<int64_t>::max();
    std::atomic<int64_t> firstWrong{kNONE};
    parallelFor(sizes.numTokens * sizes.perToken, cpu::kTASK_VALUES,
        [&](int64_t begin, int64_t end)
        {
            bool isWrong = false;
            for (int64_t i = begin; i < end; ++i)
            {
                isWrong |= static_cast<uint64_t>(code[i]) >= number; // a negative one becomes very large
            }
            if (isWrong)
            {
                int64_t const* const wrong = std::find_if(
                    code + begin, code + end, [&](int64_t value) { return static_cast<uint64_t>(value) >= number; });
                int64_t before = firstWrong.load();
                while (wrong - code < before && !firstWrong.compare_exchange_weak(before, wrong - code))
                {
                }
            }
        });
    if (firstWrong == kNONE)
    {
        return {};
    }
    return "code holds " + std::to_string(code[firstWrong]) + ", and the codebook has the codes 0.."
        + std::to_string(number - 1) + "; give codes that this codebook made.";
}

//! The numbers have been checked, and for FSQ the digits.
template <typename T>
void decodeTokens(Sizes const& sizes, Digits const& digits, int64_t const* code, T const* codebook, T* y,
    ParallelFor const& parallelFor)
{
    int64_t const width = sizes.width;
    switch (sizes.kind)
    {
    case Kind::kVECTOR:
        parallelFor(sizes.numTokens, cpu::kTASK_VALUES / (productUpTo(cpu::kTASK_VALUES, width, sizes.stages) + 1) + 1,
            [&](int64_t begin, int64_t end)
            {
                for (int64_t token = begin; token < end; ++token)
                {
                    cpu::sumStages(sizes, code + token * sizes.stages, codebook, y + token * width);
                }
            });
        break;
    case Kind::kTABLE:
        parallelFor(sizes.numTokens, cpu::kTASK_VALUES / (width + 1) + 1,
            [&](int64_t begin, int64_t end)
            {
                for (int64_t token = begin; token < end; ++token)
                {
                    for (int64_t d = 0; d < width; ++d)
                    {
                        y[token * width + d] = codebook[code[token * width + d] * width + d];
                    }
                }
            });
        break;
    case Kind::kFSQ:
    {
        cpu::Pattern const pattern(digits);
        parallelFor(sizes.numTokens, roundUp(cpu::kTASK_VALUES / (width + 1) + 1, kLANES),
            [&](int64_t begin, int64_t end)
            {
                for (int64_t token = begin; token < end; token += kLANES)
                {
                    int64_t const count = std::min<int64_t>(kLANES, end - token);
                    cpu::decodeDigits(width, pattern, code + token, count, y + token * width);
                }
            });
        break;
    }
    case Kind::kSIGN:
        parallelFor(sizes.numTokens * sizes.perToken, cpu::kTASK_VALUES / sizes.group + 1,
            [&](int64_t begin, int64_t end) { cpu::decodeSigns(sizes.group, code, begin, end, y); });
        break;
    }
}

} // namespace trtc::codebook_decode
