// KVQuantize on the CPU: a first pass finds the least and the largest value of each group, a second one makes codes, 64
// bytes at a time. Every step is rounded as SPEC says, so that codes are the same in every form.
#pragma once

#include "common/kv_rounding.h"
#include "kv_quantize/contract.h"

namespace trtc::kv_quantize
{

namespace cpu
{
//! Whether steps are rounded to float16.
template <typename T, typename S>
constexpr bool kROUNDS = std::is_same_v<T, Half> && std::is_same_v<S, Half>;

//! Scale and minimum of a group, as they are stored.
template <typename T, typename S>
void writeScale(float low, float high, int32_t bits, S& scale, S& minimum)
{
    auto const levels = static_cast<float>(largestCode(bits));
    float range = high - low;
    range = kROUNDS<T, S> ? kv::roundedToHalf(range) : range;
    float step = range / levels;
    step = kROUNDS<T, S> ? kv::roundedToHalf(step) : step;
    scale = fromFloat<S>(step);
    minimum = fromFloat<S>(low);
}

//! The codes of up to kBLOCK values of one part, put into their bytes.
template <bool kROUND>
void encode(
    float* values, float const* scale, float const* minimum, int32_t count, int32_t bits, int32_t part, int32_t* bytes)
{
    for (int32_t i = 0; i < count; i += kLANES)
    {
        store(values + i, load(values + i) - load(minimum + i));
    }
    if (kROUND)
    {
        kv::roundToHalf(values, count);
    }
    FloatVector const zero{};
    for (int32_t i = 0; i < count; i += kLANES)
    {
        FloatVector const step = load(scale + i);
        store(values + i, load(values + i) / select(step == zero, zero + 1.0F, step));
    }
    if (kROUND)
    {
        kv::roundToHalf(values, count);
    }
    FloatVector const levels = broadcast(static_cast<float>(largestCode(bits)));
    for (int32_t i = 0; i < count; i += kLANES)
    {
        // Bounded first: then rounding by adding 1.5 * 2^23 is exact, and gives the same.
        FloatVector const bounded = smaller(larger(load(values + i), zero), levels);
        IntVector const code = __builtin_convertvector(roundHalfEven(bounded), IntVector);
        IntVector const isSome = load(scale + i) != zero;
        IntVector all;
        std::memcpy(&all, bytes + i, sizeof(all));
        all |= (code & isSome) << (bits * part);
        std::memcpy(bytes + i, &all, sizeof(all));
    }
}

inline void storeBytes(uint8_t* to, int32_t const* bytes, int32_t count)
{
    for (int32_t i = 0; i < count; ++i)
    {
        to[i] = static_cast<uint8_t>(bytes[i]);
    }
}

//! Bytes `first` and on of the rows of one group of tokens. Pointers are of the head, scales of the group.
template <typename T, typename S>
void quantizeTokens(
    kv::Format const& format, int64_t start, int64_t first, T const* x, uint8_t* code, S* scale, S* minimum)
{
    int64_t const width = format.rowBytes();
    auto const count = static_cast<int32_t>(std::min(kv::kBLOCK, width - first));
    int32_t const parts = format.parts();
    float low[8 / 2][kv::kBLOCK];
    float high[8 / 2][kv::kBLOCK];
    float values[kv::kBLOCK];
    for (int64_t token = start; token < start + format.group; ++token)
    {
        for (int32_t part = 0; part < parts; ++part)
        {
            kv::loadBlock(values, x + token * format.width + part * width + first, count);
            for (int64_t i = 0; i < kv::kBLOCK; i += kLANES)
            {
                FloatVector const value = load(values + i);
                bool const isFirst = token == start;
                store(low[part] + i, isFirst ? value : smaller(value, load(low[part] + i)));
                store(high[part] + i, isFirst ? value : larger(value, load(high[part] + i)));
            }
        }
    }
    for (int32_t part = 0; part < parts; ++part)
    {
        S* const scales = scale + part * width + first;
        S* const minima = minimum + part * width + first;
        for (int32_t i = 0; i < count; ++i)
        {
            writeScale<T>(low[part][i], high[part][i], format.bits, scales[i], minima[i]);
        }
        kv::loadBlock(high[part], scales, count); // as they are stored
        kv::loadBlock(low[part], minima, count);
    }
    for (int64_t token = start; token < start + format.group; ++token)
    {
        int32_t bytes[kv::kBLOCK] = {};
        for (int32_t part = 0; part < parts; ++part)
        {
            kv::loadBlock(values, x + token * format.width + part * width + first, count);
            encode<kROUNDS<T, S>>(values, high[part], low[part], count, format.bits, part, bytes);
        }
        storeBytes(code + token * width + first, bytes, count);
    }
}

//! One token. Pointers are of that token.
template <typename T, typename S>
void quantizeChannels(kv::Format const& format, T const* x, uint8_t* code, S* scale, S* minimum)
{
    float values[kv::kBLOCK];
    for (int64_t group = 0; group < format.scaleColumns(); ++group)
    {
        T const* const from = x + group * format.group;
        FloatVector low = broadcast(toFloat(*from));
        FloatVector high = low;
        for (int64_t at = 0; at < format.group; at += kv::kBLOCK)
        {
            auto const count = static_cast<int32_t>(std::min(kv::kBLOCK, format.group - at));
            toFloats(values, from + at, count);
            std::fill(values + count, values + roundUp(count, kLANES), values[0]);
            for (int32_t i = 0; i < count; i += kLANES)
            {
                low = smaller(load(values + i), low);
                high = larger(load(values + i), high);
            }
        }
        writeScale<T>(-largestOf(-low), largestOf(high), format.bits, scale[group], minimum[group]);
    }
    int64_t const width = format.rowBytes();
    float scales[kv::kBLOCK];
    float minima[kv::kBLOCK];
    for (int64_t first = 0; first < width; first += kv::kBLOCK)
    {
        auto const count = static_cast<int32_t>(std::min(kv::kBLOCK, width - first));
        int32_t bytes[kv::kBLOCK] = {};
        for (int32_t part = 0; part < format.parts(); ++part)
        {
            int64_t const channel = part * width + first;
            kv::loadBlock(values, x + channel, count);
            kv::spreadBlock(scales, scale, format.group, channel, count);
            kv::spreadBlock(minima, minimum, format.group, channel, count);
            encode<kROUNDS<T, S>>(values, scales, minima, count, format.bits, part, bytes);
        }
        storeBytes(code + first, bytes, count);
    }
}
} // namespace cpu

//! Sizes have been checked.
template <typename T, typename S>
void quantize(Sizes const& sizes, T const* x, uint8_t* code, S* scale, S* minimum, ParallelFor const& parallelFor)
{
    kv::Format const& format = sizes.format;
    int64_t const rowBytes = format.rowBytes();
    if (format.byToken)
    {
        parallelFor(sizes.heads * format.length, kv::kTASK_VALUES / (format.width + 1) + 1,
            [&](int64_t begin, int64_t end)
            {
                for (int64_t token = begin; token < end; ++token)
                {
                    int64_t const scales = token * format.scaleColumns();
                    cpu::quantizeChannels(
                        format, x + token * format.width, code + token * rowBytes, scale + scales, minimum + scales);
                }
            });
        return;
    }
    int64_t const blocks = roundUp(rowBytes, kv::kBLOCK) / kv::kBLOCK;
    int64_t const groups = format.scaleRows();
    int64_t const taskValues =
        productUpTo(kv::kTASK_VALUES, format.group, std::min(kv::kBLOCK, rowBytes) * format.parts());
    parallelFor(sizes.heads * groups * blocks, kv::kTASK_VALUES / (taskValues + 1) + 1,
        [&](int64_t begin, int64_t end)
        {
            for (int64_t i = begin; i < end; ++i)
            {
                int64_t const group = i / blocks % groups;
                int64_t const head = i / blocks / groups;
                int64_t const scales = (head * groups + group) * format.width;
                cpu::quantizeTokens(format, group * format.group, i % blocks * kv::kBLOCK,
                    x + head * format.length * format.width, code + head * format.length * rowBytes, scale + scales,
                    minimum + scales);
            }
        });
}

} // namespace trtc::kv_quantize
