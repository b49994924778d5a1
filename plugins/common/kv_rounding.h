// The roundings of KVQuantize and KVDequantize on the CPU, and how both walk over a cache in blocks of bytes.
#pragma once

#include <algorithm>
#include <cmath>

#include "common/half.h"
#include "common/kv_format.h"
#include "common/parallel.h"
#include "common/simd_math.h"

namespace trtc::kv
{

constexpr int64_t kBLOCK = 64;            //!< bytes of codes of one token that are made or read at a time
constexpr int64_t kTASK_VALUES = 1 << 16; //!< about what is worth a task of its own
constexpr float kLARGEST_HALF = 65504.0F;

//! Rounds the first `count` of kBLOCK numbers to float16 where that does not overflow.
inline void roundToHalf(float* values, int32_t count)
{
    Half halves[kBLOCK];
    float rounded[kBLOCK] = {};
    fromFloats(halves, values, count);
    toFloats(rounded, halves, count);
    for (int32_t i = 0; i < count; i += kLANES)
    {
        FloatVector const value = load(rounded + i);
        IntVector const fits = (value <= kLARGEST_HALF) & (value >= -kLARGEST_HALF);
        store(values + i, select(fits, value, load(values + i)));
    }
}

inline float roundedToHalf(float value)
{
    float const rounded = toFloat(fromFloat<Half>(value));
    return std::isinf(rounded) ? value : rounded;
}

//! `count` numbers as float, then zeros up to kBLOCK.
template <typename T>
void loadBlock(float* to, T const* from, int32_t count)
{
    toFloats(to, from, count);
    std::fill(to + count, to + kBLOCK, 0.0F);
}

//! Scales of the channels from `channel` on of one token, each as often as its group has channels there.
template <typename T>
void spreadBlock(float* to, T const* scales, int64_t group, int64_t channel, int32_t count)
{
    for (int32_t i = 0; i < count;)
    {
        int64_t const next = ((channel + i) / group + 1) * group - channel;
        auto const end = static_cast<int32_t>(std::min<int64_t>(count, next));
        std::fill(to + i, to + end, toFloat(scales[(channel + i) / group]));
        i = end;
    }
    std::fill(to + count, to + kBLOCK, 0.0F);
}

} // namespace trtc::kv
