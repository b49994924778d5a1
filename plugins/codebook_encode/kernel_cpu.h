// CodebookEncode on the CPU: vectors by the search of kernel_cpu_vectors.h, the other kinds on lanes of channels.
#pragma once

#include <cmath>

#include "codebook_encode/digits.h"
#include "codebook_encode/kernel_cpu_vectors.h"

namespace trtc::codebook_encode
{

namespace cpu
{
constexpr int64_t kVECTORS = 4; //!< vectors of channels that go through a table together
constexpr int64_t kTABLE_CHUNK = kVECTORS * kLANES;
constexpr int64_t kPERIOD = kMOST_BITS * kLANES; //!< the longest pattern of constants that vectors repeat
static_assert(kMOST_FSQ_CHANNELS <= kMOST_BITS);

inline int64_t tableWidth(Sizes const& sizes)
{
    return roundUp(sizes.width, kTABLE_CHUNK);
}

//! The levels of a table as float32, rows rounded up to whole chunks.
inline void readTable(Sizes const& sizes, void const* codebook, DType codebookType, float* table)
{
    int64_t const padded = tableWidth(sizes);
    std::fill(table, table + sizes.numCodes * padded, 0.0F);
    dispatchFloat(codebookType,
        [&](auto tag)
        {
            using Level = typename decltype(tag)::Type;
            for (int64_t k = 0; k < sizes.numCodes; ++k)
            {
                toFloats(table + k * padded, static_cast<Level const*>(codebook) + k * sizes.width, sizes.width);
            }
        });
}

template <typename T>
void encodeLevels(Sizes const& sizes, T const* x, float const* table, int64_t* code)
{
    int64_t const padded = tableWidth(sizes);
    float values[kTABLE_CHUNK];
    int32_t numbers[kTABLE_CHUNK];
    for (int64_t d = 0; d < sizes.width; d += kTABLE_CHUNK)
    {
        int64_t const count = std::min(kTABLE_CHUNK, sizes.width - d);
        std::fill(values, values + kTABLE_CHUNK, 0.0F);
        toFloats(values, x + d, count);
        FloatVector value[kVECTORS];
        FloatVector best[kVECTORS];
        IntVector number[kVECTORS];
        for (int64_t i = 0; i < kVECTORS; ++i)
        {
            value[i] = load(values + i * kLANES);
            best[i] = broadcast(std::numeric_limits<float>::infinity());
            number[i] = IntVector{};
        }
        for (int64_t k = 0; k < sizes.numCodes; ++k)
        {
            float const* const levels = table + k * padded + d;
            IntVector const current = broadcast(static_cast<int32_t>(k));
#pragma GCC unroll 4
            for (int64_t i = 0; i < kVECTORS; ++i)
            {
                FloatVector const difference = value[i] - load(levels + i * kLANES);
                FloatVector const distance = difference < 0.0F ? -difference : difference;
                IntVector const nearer = distance < best[i];
                best[i] = nearer ? distance : best[i];
                number[i] = nearer ? current : number[i];
            }
        }
        std::memcpy(numbers, number, sizeof(numbers));
        std::copy(numbers, numbers + count, code + d);
    }
}

//! Constants of FSQ for kLANES tokens, as their values lie in memory.
struct Pattern
{
    float shift[kPERIOD]{};
    float reach[kPERIOD]{};
    float down[kPERIOD]{};
    float middle[kPERIOD]{};
    float largest[kPERIOD]{};
    float base[kPERIOD]{};

    explicit Pattern(Digits const& digits)
    {
        for (int64_t i = 0; i < digits.channels * kLANES; ++i)
        {
            float const levels = digits.levels[i % digits.channels];
            middle[i] = std::floor(levels * 0.5F);
            down[i] = 2.0F * middle[i] == levels ? 0.5F : 0.0F;
            reach[i] = (levels - 1.0F) * kWIDENING * 0.5F;
            shift[i] = std::atanh(down[i] / reach[i]);
            largest[i] = levels - 1.0F;
            base[i] = digits.base[i % digits.channels];
        }
    }
};

//! Right to 1e-7 of the largest value, which is 1.
inline FloatVector tanhOf(FloatVector const& value)
{
    FloatVector const power = exponential(value < 0.0F ? 2.0F * value : -2.0F * value);
    FloatVector const result = (1.0F - power) / (1.0F + power);
    return value < 0.0F ? -result : result;
}

//! At most kLANES tokens.
template <typename T>
void encodeDigits(Digits const& digits, Pattern const& pattern, T const* x, int64_t count, int64_t* code)
{
    int64_t const channels = digits.channels;
    float values[kPERIOD];
    toFloats(values, x, count * channels);
    std::fill(values + count * channels, values + channels * kLANES, 0.0F);
    for (int64_t i = 0; i < channels * kLANES; i += kLANES)
    {
        FloatVector const squashed = tanhOf(load(values + i) + load(pattern.shift + i));
        FloatVector const bounded = squashed * load(pattern.reach + i) - load(pattern.down + i);
        FloatVector digit = roundHalfEven(bounded) + load(pattern.middle + i);
        FloatVector const largest = load(pattern.largest + i);
        digit = digit < 0.0F ? broadcast(0.0F) : digit < largest ? digit : largest;
        store(values + i, digit * load(pattern.base + i));
    }
    for (int64_t token = 0; token < count; ++token)
    {
        float sum = 0.0F; // whole numbers up to 2^24, exact
        for (int64_t d = 0; d < channels; ++d)
        {
            sum += values[token * channels + d];
        }
        code[token] = static_cast<int64_t>(sum);
    }
}

//! At most kLANES codes. `weights` holds the powers of two of a group, again and again.
template <typename T>
void encodeSigns(int64_t group, int32_t const* weights, T const* x, int64_t count, int64_t* code)
{
    float values[kPERIOD];
    int32_t bits[kPERIOD];
    toFloats(values, x, count * group);
    std::fill(values + count * group, values + group * kLANES, 0.0F);
    for (int64_t i = 0; i < group * kLANES; i += kLANES)
    {
        IntVector weight;
        std::memcpy(&weight, weights + i, sizeof(weight));
        IntVector const set = (load(values + i) > 0.0F) & weight;
        std::memcpy(bits + i, &set, sizeof(set));
    }
    for (int64_t q = 0; q < count; ++q)
    {
        int32_t sum = 0;
        for (int64_t bit = 0; bit < group; ++bit)
        {
            sum += bits[q * group + bit];
        }
        code[q] = sum;
    }
}
} // namespace cpu

inline size_t cpuWorkspaceBytes(Sizes const& sizes)
{
    int64_t values = 0;
    if (sizes.kind == Kind::kVECTOR)
    {
        values = cpu::Search::values(sizes);
    }
    if (sizes.kind == Kind::kTABLE)
    {
        values = sizes.numCodes * cpu::tableWidth(sizes);
    }
    return static_cast<size_t>(values) * sizeof(float);
}

//! Sizes have been checked, and for FSQ the digits.
template <typename T>
void encodeTokens(Sizes const& sizes, Digits const& digits, T const* x, void const* codebook, DType codebookType,
    int64_t* code, void* workspace, ParallelFor const& parallelFor)
{
    int64_t const width = sizes.width;
    switch (sizes.kind)
    {
    case Kind::kVECTOR: cpu::encodeVectors(sizes, x, codebook, codebookType, code, workspace, parallelFor); break;
    case Kind::kTABLE:
    {
        auto* const table = static_cast<float*>(workspace);
        cpu::readTable(sizes, codebook, codebookType, table);
        int64_t const work = cpu::tableWidth(sizes) * sizes.numCodes / kLANES;
        parallelFor(sizes.numTokens, cpu::kTASK_VALUES / (work + 1) + 1,
            [&](int64_t begin, int64_t end)
            {
                for (int64_t token = begin; token < end; ++token)
                {
                    cpu::encodeLevels(sizes, x + token * width, table, code + token * width);
                }
            });
        break;
    }
    case Kind::kFSQ:
    {
        cpu::Pattern const pattern(digits);
        parallelFor(sizes.numTokens, roundUp(cpu::kTASK_VALUES / (width + 1) + 1, kLANES),
            [&](int64_t begin, int64_t end)
            {
                for (int64_t token = begin; token < end; token += kLANES)
                {
                    int64_t const count = std::min<int64_t>(kLANES, end - token);
                    cpu::encodeDigits(digits, pattern, x + token * width, count, code + token);
                }
            });
        break;
    }
    case Kind::kSIGN:
    {
        int32_t weights[cpu::kPERIOD];
        for (int64_t i = 0; i < sizes.group * kLANES; ++i)
        {
            weights[i] = static_cast<int32_t>(1U << static_cast<uint32_t>(i % sizes.group));
        }
        parallelFor(sizes.numTokens * width / sizes.group, roundUp(4 * cpu::kTASK_VALUES / sizes.group + 1, kLANES),
            [&](int64_t begin, int64_t end)
            {
                for (int64_t q = begin; q < end; q += kLANES)
                {
                    int64_t const count = std::min<int64_t>(kLANES, end - q);
                    cpu::encodeSigns(sizes.group, weights, x + q * sizes.group, count, code + q);
                }
            });
        break;
    }
    }
}

} // namespace trtc::codebook_encode
