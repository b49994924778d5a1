// One total order for scores and positions, so that every form breaks ties alike: the larger score first, of equal
// scores the smaller index. Keys are compared as unsigned integers, ascending.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/portable.h"

namespace trtc
{

//! A score as it is compared: infinity and NaN count as the largest number, so that tokens which are forced by an
//! infinite score come before all others.
TRTC_HOST_DEVICE inline float ordinary(float score)
{
    constexpr float kLARGEST = 3.402823466e38F;
    return score < kLARGEST ? score : kLARGEST;
}

//! Order-preserving: a < b exactly if sortable(a) < sortable(b). Both zeros are the same; NaN lies outside all numbers.
TRTC_HOST_DEVICE inline uint32_t sortable(float value)
{
    float const canonical = value + 0.0F; // -0 becomes +0
    uint32_t bits = 0;
    std::memcpy(&bits, &canonical, sizeof(bits));
    return (bits & 0x80000000U) != 0U ? ~bits : bits | 0x80000000U;
}

TRTC_HOST_DEVICE inline float fromSortable(uint32_t key)
{
    uint32_t const bits = (key & 0x80000000U) != 0U ? key & 0x7fffffffU : ~key;
    float value = 0.0F;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}

//! Ascending keys: larger scores first, then smaller indices.
TRTC_HOST_DEVICE inline uint64_t bestFirst(float score, uint32_t index)
{
    return (static_cast<uint64_t>(~sortable(score)) << 32U) | index;
}

//! The largest key is that of the largest score, of equal scores that of the smallest index: for maximum reductions.
TRTC_HOST_DEVICE inline uint64_t largestIsBest(float score, uint32_t index)
{
    return ~bestFirst(score, index);
}

TRTC_HOST_DEVICE inline uint32_t indexOfBestFirst(uint64_t key)
{
    return static_cast<uint32_t>(key);
}

TRTC_HOST_DEVICE inline float scoreOfBestFirst(uint64_t key)
{
    return fromSortable(~static_cast<uint32_t>(key >> 32U));
}

} // namespace trtc
