// The softmax of a row on the CPU.
#pragma once

#include <algorithm>
#include <limits>

#include "common/simd_math.h"

namespace trtc
{

//! Turns the first `count` values of a row into their softmax. `row` has room for a multiple of kLANES.
inline void softmax(float* row, int64_t count)
{
    if (count <= 0)
    {
        return;
    }
    std::fill(row + count, row + roundUp(count, kLANES), -std::numeric_limits<float>::infinity());
    FloatVector largest = load(row);
    for (int64_t i = kLANES; i < count; i += kLANES)
    {
        largest = larger(largest, load(row + i));
    }
    FloatVector const top = broadcast(largestByQuarters(largest));
    FloatVector sums{};
    for (int64_t i = 0; i < count; i += kLANES)
    {
        FloatVector const part = exponential(load(row + i) - top);
        store(row + i, part);
        sums += part;
    }
    FloatVector const factor = broadcast(1.0F / sumByQuarters(sums));
    for (int64_t i = 0; i < count; i += kLANES)
    {
        store(row + i, load(row + i) * factor);
    }
}

} // namespace trtc
