// KVDequantize on the CPU: 64 bytes of codes at a time become values of each part. Multiplied and added apart, as SPEC
// says, so that values are the same in every form.
#pragma once

#include "common/kv_rounding.h"
#include "kv_dequantize/contract.h"

namespace trtc::kv_dequantize
{

namespace cpu
{
//! Values of one part of up to kBLOCK bytes. kROUND: products are rounded to float16.
template <bool kROUND, typename T>
void decode(
    int32_t const* bytes, float const* scale, float const* minimum, int32_t bits, int32_t part, int32_t count, T* to)
{
    float values[kv::kBLOCK];
    for (int32_t i = 0; i < count; i += kLANES)
    {
        IntVector codes;
        std::memcpy(&codes, bytes + i, sizeof(codes));
        codes = (codes >> (bits * part)) & static_cast<int32_t>(largestCode(bits));
        store(values + i, unfused(__builtin_convertvector(codes, FloatVector) * load(scale + i)));
    }
    if (kROUND)
    {
        kv::roundToHalf(values, count);
    }
    for (int32_t i = 0; i < count; i += kLANES)
    {
        store(values + i, load(values + i) + load(minimum + i));
    }
    fromFloats(to, values, count);
}

inline void loadCodes(int32_t* bytes, uint8_t const* from, int32_t count)
{
    for (int32_t i = 0; i < count; ++i)
    {
        bytes[i] = from[i];
    }
    std::fill(bytes + count, bytes + kv::kBLOCK, 0);
}
} // namespace cpu

//! Sizes have been checked.
template <typename S, typename T>
void dequantize(
    Sizes const& sizes, uint8_t const* code, S const* scale, S const* minimum, T* x, ParallelFor const& parallelFor)
{
    constexpr bool kROUND = std::is_same_v<S, Half> && std::is_same_v<T, Half>;
    kv::Format const& format = sizes.format;
    int64_t const width = format.rowBytes();
    int64_t const columns = format.scaleColumns();
    parallelFor(sizes.heads * format.length, kv::kTASK_VALUES / (format.width + 1) + 1,
        [&](int64_t begin, int64_t end)
        {
            int32_t bytes[kv::kBLOCK];
            float scales[4][kv::kBLOCK];
            float minima[4][kv::kBLOCK];
            int64_t ofHead = 0;
            // Block by block over all tokens: scales of a group of tokens are loaded once.
            for (int64_t first = 0; first < width; first += kv::kBLOCK)
            {
                auto const count = static_cast<int32_t>(std::min(kv::kBLOCK, width - first));
                for (int64_t token = begin; token < end; ++token)
                {
                    int64_t const slot = token % format.length;
                    bool const isNew = token == begin || format.byToken || slot % format.group == 0;
                    if (token == begin || slot == 0)
                    {
                        ofHead = format.scalesOf(token / format.length);
                    }
                    int64_t const at = ofHead + (format.byToken ? slot : slot / format.group) * columns;
                    cpu::loadCodes(bytes, code + token * width + first, count);
                    for (int32_t part = 0; part < format.parts(); ++part)
                    {
                        int64_t const channel = part * width + first;
                        if (isNew && format.byToken)
                        {
                            kv::spreadBlock(scales[part], scale + at, format.group, channel, count);
                            kv::spreadBlock(minima[part], minimum + at, format.group, channel, count);
                        }
                        else if (isNew)
                        {
                            kv::loadBlock(scales[part], scale + at + channel, count);
                            kv::loadBlock(minima[part], minimum + at + channel, count);
                        }
                        cpu::decode<kROUND>(bytes, scales[part], minima[part], format.bits, part, count,
                            x + token * format.width + channel);
                    }
                }
            }
        });
}

} // namespace trtc::kv_dequantize
